"""``TorchGraph``: an ONNX graph as a torch module that runs between any of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgeq.errors import ModelError
from edgeq.graph import name_nodes
from edgeq.torch_graph import ops_arith, ops_linear, ops_norm, ops_pool, ops_quant, ops_reduce, ops_resize, ops_shape
from edgeq.torch_graph.dtypes import STORAGE, to_torch
from edgeq.torch_graph.operators import OPERATORS, Call, Operator

__all__ = ["Hook", "TorchGraph", "unsupported"]

# Importing them fills the table.
_TABLES = (ops_arith, ops_linear, ops_norm, ops_pool, ops_quant, ops_reduce, ops_resize, ops_shape)

Hook = Callable[[str, Tensor], Tensor]
"""``(name, tensor)`` -> what goes on in place of the tensor."""

_HOST_ELEMENTS = 64
"""Integer constants of one dimension up to this size are shapes and axes: they stay on the CPU."""


@dataclass(frozen=True)
class _Step:
    """One node, ready to run. An omitted input is an empty name."""

    name: str
    call: Call
    operator: Operator
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class _Schedule:
    """The steps that some outputs need, and after each the tensors that nobody reads any more."""

    steps: tuple[_Step, ...]
    done: tuple[tuple[str, ...], ...]


class TorchGraph(nn.Module):
    """An ONNX graph in torch, with the names of its tensors and nodes.

    Float initializers are parameters, all other constants are buffers; ``weights`` reaches them by their ONNX
    names. Parameters of a single element (bounds of Clip, factors) ask for no gradient until told to: few want it,
    and it doubles the time of an activation's backward pass. What QuantizeLinear computes are whole numbers in
    float32, so that gradients pass (straight-through, see ``edgeq.torch_graph.fake_quant``). Results are
    deterministic on the CPU; on a GPU, float32 is not shortened to TF32 in the convolutions of the forward pass.

    Args:
        model: Opset 13 or later. It is not changed, its arrays are copied.

    Raises:
        ModelError: a node cannot run in torch (``unsupported`` lists them all).
    """

    def __init__(self, model: ir.Model) -> None:
        super().__init__()
        found = unsupported(model)
        if found:
            raise ModelError(
                f"{len(found)} nodes cannot run in torch: " + "; ".join(found[:5]),
                remedy="use a method that needs no gradients",
            )
        model = _named(model)
        self._places: dict[str, str] = {}
        self._host: dict[str, Tensor] = {}
        for name, value in model.graph.initializers.items():
            assert value.const_value is not None
            self._add(name, to_torch(value.const_value), trainable=True)
        for node in model.graph:
            if node.op_type == "Constant" and node.domain == "":
                self._add(str(node.outputs[0].name), _constant(node), trainable=False)
        self._steps = tuple(_step(model, node) for node in model.graph if node.op_type != "Constant")
        self._makers = {name: index for index, step in enumerate(self._steps) for name in step.outputs}
        self._levels = _level_names(self._steps)
        self._inputs = tuple(str(v.name) for v in model.graph.inputs if v.name not in model.graph.initializers)
        self._outputs = tuple(str(v.name) for v in model.graph.outputs)
        self._schedules: dict[tuple[frozenset[str], tuple[str, ...]], _Schedule] = {}

    def _add(self, name: str, tensor: Tensor, *, trainable: bool) -> None:
        if tensor.dtype in (torch.int32, torch.int64) and tensor.ndim <= 1 and tensor.numel() <= _HOST_ELEMENTS:
            self._host[name] = tensor
            return
        place = f"constant_{len(self._places)}"  # ONNX names hold dots, which torch forbids
        self._places[name] = place
        if trainable and tensor.is_floating_point():
            self.register_parameter(place, nn.Parameter(tensor, requires_grad=tensor.numel() > 1))
        else:
            self.register_buffer(place, tensor)

    @property
    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers by the names of their ONNX tensors; the tensors themselves, not copies."""
        return self._host | {name: getattr(self, place) for name, place in self._places.items()}

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors that the model is fed."""
        return self._inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the model's outputs."""
        return self._outputs

    def forward(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All outputs of the model."""
        return self.run(feeds, self._outputs)

    def run(
        self,
        feeds: Mapping[str, Tensor],
        outputs: Sequence[str],
        *,
        hook: Hook | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Compute ``outputs`` from ``feeds``, running only the nodes in between.

        Args:
            feeds: Tensors by name: inputs of the model, or any computed tensors, which then are not computed.
            outputs: Names of tensors to return; a tensor that is fed may be among them.
            hook: Applied to every float tensor that is fed or computed (not to constants, and not to the levels
                between QuantizeLinear and DequantizeLinear); what it returns goes on in its place.
            weights: Tensors that replace constants, by name.

        Raises:
            ModelError: an output does not exist or needs an input that is not fed, or a node fails.
        """
        schedule = self._schedule(feeds, outputs)
        constants = self.weights | dict(weights or {})
        known: dict[str, Tensor] = {}
        for name, tensor in feeds.items():
            known[name] = hook(name, tensor) if hook and tensor.is_floating_point() else tensor
        with _exact_float32():
            for step, done in zip(schedule.steps, schedule.done, strict=True):
                arguments = [
                    None if not name else known[name] if name in known else constants[name] for name in step.inputs
                ]
                for name, tensor in zip(step.outputs, _run(step, arguments), strict=False):
                    hooked = hook is not None and name not in self._levels and tensor.is_floating_point()
                    known[name] = hook(name, tensor) if hook is not None and hooked else tensor
                del arguments
                for name in done:
                    known.pop(name, None)
        return {name: known[name] if name in known else constants[name] for name in outputs}

    def run_stacked(
        self,
        feeds: Mapping[str, Tensor],
        outputs: Sequence[str],
        *,
        hook: Hook | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """``run`` for many samples at once where the model's shapes are fixed: one more axis in front of all.

        ``feeds`` are ``[samples, *shape in the model]``, and so are the outputs. Each sample is computed as by
        itself, whatever the model reshapes; ``hook`` sees one sample's shapes (torch.vmap).
        """

        def one(sample: dict[str, Tensor]) -> dict[str, Tensor]:
            return self.run(sample, outputs, hook=hook, weights=weights)

        return torch.vmap(one, randomness="different")(dict(feeds))

    def _schedule(self, feeds: Iterable[str], outputs: Sequence[str]) -> _Schedule:
        key = (frozenset(feeds), tuple(outputs))
        if key not in self._schedules:
            self._schedules[key] = self._plan(*key)
        return self._schedules[key]

    def _plan(self, feeds: frozenset[str], outputs: tuple[str, ...]) -> _Schedule:
        needed: set[int] = set()
        missing: list[str] = []
        stack = list(outputs)
        seen: set[str] = set()
        while stack:
            name = stack.pop()
            if not name or name in seen or name in feeds or name in self._places or name in self._host:
                continue
            seen.add(name)
            if name not in self._makers:
                missing.append(name)
            elif self._makers[name] not in needed:
                needed.add(self._makers[name])
                stack.extend(self._steps[self._makers[name]].inputs)
        if missing:
            raise ModelError(
                f"cannot compute {', '.join(outputs)}: no tensor {', '.join(sorted(missing))}",
                remedy="feed it, or name tensors of the graph",
            )
        steps = tuple(self._steps[index] for index in sorted(needed))
        last = {name: place for place, step in enumerate(steps) for name in (*step.outputs, *step.inputs) if name}
        done: list[list[str]] = [[] for _ in steps]
        for name, place in last.items():
            if name not in outputs:
                done[place].append(name)
        return _Schedule(steps, tuple(tuple(names) for names in done))


def unsupported(model: ir.Model) -> list[str]:
    """The nodes that cannot run in torch, each with its operator and the reason; empty when all can."""
    found = []
    for node in model.graph:
        where = f"{node.op_type} {node.name!r}"
        domain = node.domain if node.domain != "ai.onnx" else ""
        if domain == "" and node.op_type == "Constant":
            continue
        entry = OPERATORS.get((domain, node.op_type))
        if entry is None:
            place = f" of domain {domain}" if domain else ""
            found.append(f"{where}: the operator{place} is not known")
            continue
        reason = _untyped(node) or (entry.check(_call(model, node)) if entry.check else None)
        if reason:
            found.append(f"{where}: {reason}")
    for name, value in model.graph.initializers.items():
        if value.const_value is None or value.const_value.dtype not in STORAGE:
            found.append(f"initializer {name!r}: no torch type for {value.dtype}")
    return found


def _untyped(node: ir.Node) -> str | None:
    """Why torch cannot hold what the node reads, or None."""
    for value in node.inputs:
        if value is not None and isinstance(value.type, (ir.SequenceType, ir.OptionalType)):
            return f"reads a sequence or an optional value, {value.name!r}"
        if value is not None and value.dtype not in (None, ir.DataType.UNDEFINED) and value.dtype not in STORAGE:
            return f"no torch type for {value.dtype}, the type of {value.name!r}"
    return None


def _named(model: ir.Model) -> ir.Model:
    """``model``, or a copy in which every tensor has a name."""
    if all(output.name is not None for node in model.graph for output in node.outputs):
        return model
    copy = model.clone()
    name_nodes(copy)
    return copy


def _constant(node: ir.Node) -> Tensor:
    tensor = ir.convenience.get_const_tensor(node.outputs[0])
    assert tensor is not None
    return to_torch(tensor)


def _call(model: ir.Model, node: ir.Node) -> Call:
    domain = node.domain if node.domain != "ai.onnx" else ""
    return Call(
        op_type=node.op_type,
        attributes={name: attribute.value for name, attribute in node.attributes.items()},
        opset=node.version or model.opset_imports.get(domain, 1),
        types=tuple(None if value is None else value.dtype for value in node.inputs),
        outputs=tuple(bool(value.name) for value in node.outputs),
    )


def _step(model: ir.Model, node: ir.Node) -> _Step:
    domain = node.domain if node.domain != "ai.onnx" else ""
    return _Step(
        name=str(node.name),
        call=_call(model, node),
        operator=OPERATORS[domain, node.op_type],
        inputs=tuple("" if value is None else str(value.name) for value in node.inputs),
        outputs=tuple(str(value.name or "") for value in node.outputs),
    )


def _level_names(steps: Iterable[_Step]) -> frozenset[str]:
    """The tensors that hold integers in ONNX and float levels here: QuantizeLinear's, also moved by other nodes."""
    levels: set[str] = set()
    for step in steps:
        made = step.call.op_type in ("QuantizeLinear", "DynamicQuantizeLinear")
        moved = step.call.op_type not in ("DequantizeLinear", "Cast") and any(name in levels for name in step.inputs)
        if made or moved:
            levels.add(step.outputs[0])
    return frozenset(levels)


def _run(step: _Step, arguments: list[Tensor | None]) -> tuple[Tensor, ...]:
    """All outputs of a node; inputs that do not steer it are moved to the device of the others."""
    host = step.operator.host
    devices = [a.device for i, a in enumerate(arguments) if a is not None and i not in host and a.device.type != "cpu"]
    if devices:
        arguments = [a if a is None or i in host else a.to(devices[0]) for i, a in enumerate(arguments)]
    try:
        result = step.operator.function(step.call, *arguments)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        shapes = ", ".join("-" if a is None else f"{str(a.dtype)[6:]}{list(a.shape)}" for a in arguments)
        raise ModelError(
            f"{step.call.op_type} fails in torch on ({shapes}): {str(error).splitlines()[0]}",
            where=f"node {step.name!r}",
        ) from error
    return result if isinstance(result, tuple) else (result,)


class _exact_float32:  # noqa: N801 (used as a function)
    """On a GPU, convolutions in float32 rather than TF32, as ONNX Runtime computes them on the CPU."""

    def __enter__(self) -> None:
        self._before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False

    def __exit__(self, *error: object) -> None:
        torch.backends.cudnn.allow_tf32 = self._before
