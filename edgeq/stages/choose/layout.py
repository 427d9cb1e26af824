"""Which nodes run in integers, and which tensors are quantized for them: structure only, no numbers.

The layout follows from the graph, the target profile and the scheme. It is found before
calibration, so that only tensors which need statistics are observed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from edgeq.graph import constant_array, outer_nodes
from edgeq.qtypes import Scheme
from edgeq.roles import is_float, roles_of
from edgeq.target import Capability, TargetProfile

__all__ = ["Layout", "find_layout"]


@dataclass(frozen=True)
class Layout:
    """The structural half of a plan.

    ``integer`` maps the name of each integer node to its capability; ``reasons`` tells for every
    other node why it stays float. ``activations`` maps each tensor to be quantized to the nodes
    that read its quantized form (all readers if it leaves an integer kernel), ``owner`` to the
    tensor whose statistics and scale it shares. ``absorbed`` maps Relu and Clip nodes to the node
    whose kernel takes them over. ``produced`` holds tensors that leave an integer kernel,
    ``constants`` the owners that are constants: a table, whose scale its looked-up rows share.
    ``node_bits`` and ``tensor_bits`` hold the nodes and tensors whose activations have another width
    than the scheme's: a kernel reads and writes one width, a tensor has that of the kernel it leaves,
    or, computed in float, the largest of its readers'.
    """

    scheme: Scheme
    integer: Mapping[str, Capability]
    reasons: Mapping[str, str]
    activations: Mapping[str, tuple[str, ...]]
    owner: Mapping[str, str]
    absorbed: Mapping[str, str]
    produced: frozenset[str] = field(default_factory=frozenset)
    constants: frozenset[str] = field(default_factory=frozenset)
    node_bits: Mapping[str, int] = field(default_factory=dict)
    tensor_bits: Mapping[str, int] = field(default_factory=dict)

    def bits_in(self, node: str) -> int | None:
        """The width of the activations that ``node`` reads and writes; None in weight-only schemes."""
        return self.node_bits.get(node, self.scheme.activation_bits)

    def bits_of(self, tensor: str) -> int | None:
        """The width in which ``tensor`` is quantized; None in weight-only schemes."""
        return self.tensor_bits.get(tensor, self.scheme.activation_bits)

    @property
    def observed(self) -> tuple[str, ...]:
        """The tensors whose statistics the plan needs, in graph order, each once (a constant needs none)."""
        owners = dict.fromkeys(self.owner[name] for name in self.activations)
        return tuple(owner for owner in owners if owner not in self.constants)

    def channel_axes(self, model: ir.Model) -> dict[str, int]:
        """The channel axis of each observed tensor that a Conv or Gemm (axis 1) or a MatMul (the last) reads."""
        axes: dict[str, int] = {}
        for node in model.graph:
            value = node.inputs[0] if node.inputs else None
            if value is None or value.shape is None or str(node.name) not in self.integer:
                continue
            axis = {"Conv": 1, "Gemm": 1, "MatMul": len(value.shape) - 1}.get(node.op_type)
            # A shared scale belongs to a tensor of another shape: its channels are not these.
            owned = self.owner.get(str(value.name)) == value.name
            if axis is not None and owned and isinstance(value.shape[axis], int):
                axes[str(value.name)] = axis
        return axes


def find_layout(
    model: ir.Model, target: TargetProfile, scheme: Scheme, *, bits: Mapping[str, int] | None = None
) -> Layout:
    """Decide for every node of the main graph whether it runs in integers on ``target``.

    ``bits`` gives some nodes another width of activations than the scheme's, by name: 16-bit islands
    for what 8 bits break. A node that has kernels of the other width only becomes one by itself. Kernels
    that only move data take the width of what they move.
    """
    search = _Search(model, target, scheme, bits or {})
    search.nominate()
    if not scheme.weight_only:
        search.absorb()
        search.move_widths()
        if not target.floats.avoid:
            search.prune()
    return search.layout()


class _Search:
    """One search; the methods run once, in the order of ``find_layout``."""

    def __init__(self, model: ir.Model, target: TargetProfile, scheme: Scheme, bits: Mapping[str, int]) -> None:
        self.nodes = list(model.graph)
        self.outer = outer_nodes(model)
        self.inside = Counter(self.outer.values())
        self.target = target
        self.scheme = scheme
        self.integer: dict[str, Capability] = {}
        self.reasons: dict[str, str] = {}
        self.absorbed: dict[str, str] = {}
        self.absorbing: dict[str, ir.Node] = {}
        self.constants: set[str] = set()
        self.widths: dict[str, int] = dict(bits)

    # -- step 1: what could run in integers, judged node by node

    def nominate(self) -> None:
        for node in self.nodes:
            name = str(node.name)
            choice = self._capability(node, self._bits(name))
            width = self._other_width()
            if isinstance(choice, str) and name not in self.widths and width is not None:
                other = self._capability(node, width)
                if not isinstance(other, str) and other.kind in ("compute", "elementwise"):
                    choice, self.widths[name] = other, width
            if isinstance(choice, str):
                self.reasons[name] = choice
            else:
                self.integer[name] = choice

    def _bits(self, name: str) -> int | None:
        return None if self.scheme.weight_only else self.widths.get(name, self.scheme.activation_bits)

    def _other_width(self) -> int | None:
        """What a kernel may have that has none of the scheme's width.

        Fewer bits only where floats are to be avoided: there a provider takes an operator between Q and DQ
        for an integer one, whether its kernel of that width is right or not (the HTP's Log of 16 bits: -7 dB).
        """
        other = {8: 16, 16: 8}.get(self.scheme.activation_bits or 0)
        if str(other) not in self.target.activations.types or (other == 8 and not self.target.floats.avoid):
            return None
        return other

    def _capability(self, node: ir.Node, bits: int | None) -> Capability | str:
        """The first capability that fits ``node`` with activations of ``bits``, or why there is none."""
        inside = self.inside[node]
        if inside:
            return f"the {inside} nodes inside {node.op_type} stay float"
        if node.domain not in ("", "ai.onnx"):
            return f"{self.target.name} has no integer kernel for {node.domain}::{node.op_type}"
        if not any(is_float(value) for value in node.inputs) or not is_float(node.outputs[0]):
            return "works on integers already"
        if self.scheme.floating:
            return "fp16 quantizes nothing"
        reason = f"{self.target.name} has no integer kernel for {node.op_type} in {self.scheme.name}"
        for capability in self.target.capabilities(node.op_type):
            if capability.passive or capability.kind == "float":
                continue
            if capability.kind != "table" and (capability.kind == "weight-only") != self.scheme.weight_only:
                continue
            refusal = self._refusal(node, capability, bits)
            if refusal is None:
                return capability
            reason = refusal
        return reason

    def _refusal(self, node: ir.Node, capability: Capability, bits: int | None) -> str | None:
        scheme, roles = self.scheme, roles_of(node.op_type)
        if capability.kind == "table":
            table = constant_array(node.inputs[0])
            if table is None or table.dtype != "float32" or table.ndim != 2 or node.attributes.get_int("axis", 0) != 0:
                return "only rows of a constant matrix can be looked up in integers"
            if capability.blocks and not any(table.shape[1] % size == 0 for size in capability.blocks):
                return f"its rows do not divide into blocks of {' or '.join(map(str, capability.blocks))}"
            return None if table.nbytes >= 1 << 16 else "the table is too small to be worth it"
        if bits is not None and bits not in capability.activation_bits:
            return f"{self.target.name} has no {bits}-bit integer kernel for {node.op_type}"
        if roles.weight is None or not capability.weight_bits:
            return self._dynamic_attribute(node)
        weight = node.inputs[roles.weight] if len(node.inputs) > roles.weight else None
        if weight is None or constant_array(weight) is None:
            return "both operands are activations" if capability.constant_weight else None
        if capability.blocks and not scheme.weight_only:
            rows = weight.shape[0] if weight.shape is not None and len(weight.shape) == 2 else None
            if scheme.block not in capability.blocks or not isinstance(rows, int) or rows % scheme.block:
                return f"its weight does not divide into blocks of {scheme.block}"
        if not scheme.weight_only and roles.bias is not None and self.target.bias.mode == "int32":
            refusal = _bias_refusal(node, roles.bias)
            if refusal is not None:
                return refusal
        if scheme.weight_only and (weight.shape is None or len(weight.shape) != 2):
            return "only matrices are stored in blocks"
        if scheme.weight_only and not _divides(weight, capability.columns):
            return f"its output channels are no multiple of {capability.columns}"
        if scheme.weight_only and capability.blocks and scheme.block not in capability.blocks:
            return f"{self.target.name} has no kernel for {node.op_type} with blocks of {scheme.block}"
        if scheme.weight_bits not in capability.weight_bits and 8 not in capability.weight_bits:
            return f"{self.target.name} has no kernel for {node.op_type} with {scheme.weight_bits}-bit weights"
        return None

    @staticmethod
    def _dynamic_attribute(node: ir.Node) -> str | None:
        if node.op_type == "Clip" and any(v is not None and constant_array(v) is None for v in node.inputs[1:]):
            return "the bounds of Clip are computed at run time"
        return None

    # -- step 2: Relu and Clip that the producer's kernel takes over

    def absorb(self) -> None:
        for node in self.nodes:
            value = node.inputs[0] if node.inputs else None
            if node.op_type not in self.target.absorbs or value is None or not self._absorbable(node):
                continue
            producer = value.producer()
            if producer is None or value.is_graph_output() or len(value.uses()) != 1:
                continue
            capability = self.integer.get(str(producer.name))
            if capability is None or capability.kind not in ("compute", "elementwise") or not capability.absorbs:
                continue
            self.absorbed[str(node.name)] = str(producer.name)
            self.absorbing[str(producer.name)] = node
            self.integer.pop(str(node.name), None)
            self.reasons[str(node.name)] = f"absorbed by {producer.name}"

    def _absorbable(self, node: ir.Node) -> bool:
        """Whether the kernel before ``node`` can do its work.

        A kernel that computes it before rounding takes any constant bounds. Where the integers' ends
        are to cut, their range must lie within the bounds; zero is always in it, so it must be within,
        too. Symmetric types reach as far below zero as above, beyond any Relu.
        """
        if self._dynamic_attribute(node):
            return False
        if self.target.activations.absorption == "kernel":
            return True
        if self.target.activations.symmetric:
            return False
        if node.op_type != "Clip":
            return True
        low, high = (constant_array(v) for v in (*node.inputs[1:], None, None)[:2])
        return (low is None or float(low) <= 0) and (high is None or float(high) >= 0)

    def outputs_of(self, node: ir.Node) -> list[ir.Value]:
        """The float tensors that leave the kernel: those of the absorbed Relu or Clip, if there is one."""
        return [value for value in self.absorbing.get(str(node.name), node).outputs if is_float(value)]

    def move_widths(self) -> None:
        """Kernels that only move data take the width of what they move; one that cannot falls to floats."""
        if not self.widths:
            return
        for node in self.nodes:
            name = str(node.name)
            capability, data = self.integer.get(name), self.data_inputs(node)
            if capability is None or capability.kind != "moves-data" or not data:
                continue
            width = self._tensor_width(data[0], {str(n.name) for n in self.nodes if str(n.name) in self.integer})
            if width is None or width == self._bits(name):
                continue
            if width in capability.activation_bits:
                self.widths[name] = width
            else:
                del self.integer[name]
                self.reasons[name] = f"{self.target.name} has no {width}-bit integer kernel for {node.op_type}"

    def _tensor_width(self, value: ir.Value, quantizes: Container[str]) -> int | None:
        """The width of a tensor: that of the kernel that it leaves, or the largest of its integer readers'."""
        producer = value.producer()
        if producer is not None and self._leaves_integer(value):
            return self._bits(self.absorbed.get(str(producer.name), str(producer.name)))
        widths = [self._bits(reader) for reader in self.readers(value) if reader in quantizes]
        return max((width for width in widths if width is not None), default=None)

    # -- step 3: elementwise kernels and data movement only between integer neighbours

    def prune(self) -> None:
        changed = True
        while changed:
            changed = False
            for node in self.nodes:
                capability = self.integer.get(str(node.name))
                if capability is None or capability.kind not in ("elementwise", "moves-data"):
                    continue
                reason = self._not_worth(node)
                if reason:
                    del self.integer[str(node.name)]
                    self.reasons[str(node.name)] = reason
                    follower = self.absorbing.pop(str(node.name), None)
                    if follower is not None:
                        del self.absorbed[str(follower.name)]
                        self.reasons[str(follower.name)] = reason
                    changed = True

    def _not_worth(self, node: ir.Node) -> str | None:
        for value in self.data_inputs(node):
            if not self._leaves_integer(value):
                return "an input is computed in float, so integers would only add conversions"
        if not any(reader in self.integer for value in self.outputs_of(node) for reader in self.readers(value)):
            return "no integer kernel reads its output"
        return None

    def readers(self, value: ir.Value) -> list[str]:
        """The nodes of the main graph that read ``value``, if only from inside one of their subgraphs."""
        return [str(self.outer.get(reader, reader).name) for reader, _ in value.uses()]

    def _leaves_integer(self, value: ir.Value) -> bool:
        producer = value.producer()
        if producer is None:
            return False
        name = self.absorbed.get(str(producer.name), str(producer.name))
        capability = self.integer.get(name)
        return capability is not None and capability.kind != "table"

    def data_inputs(self, node: ir.Node) -> list[ir.Value]:
        """The float activations that ``node`` reads (constants left out)."""
        roles = roles_of(node.op_type)
        positions = roles.data if roles.data is not None else tuple(range(len(node.inputs)))
        if roles.weight is not None and len(node.inputs) > roles.weight:
            positions = (*positions, roles.weight)
        values = [node.inputs[i] for i in positions if i < len(node.inputs)]
        return [v for v in values if v is not None and is_float(v) and constant_array(v) is None]

    # -- step 4: the tensors that follow from it

    def layout(self) -> Layout:
        activations: dict[str, dict[str, None]] = {}
        owner: dict[str, str] = {}
        produced: set[str] = set()
        quantizes = {name for name, c in self.integer.items() if c.kind not in ("weight-only", "table")}
        for node in self.nodes:
            name = str(node.name)
            if name not in quantizes:
                continue
            for value in self.data_inputs(node):
                activations.setdefault(str(value.name), {})[name] = None
                owner.setdefault(str(value.name), str(value.name))
            # A Relu that the Q behind it cuts off needs that Q (and without it, ONNX Runtime's CPU kernels
            # fuse nothing at all, see docs/targets.md, traps); one that the kernel computes needs none.
            cut = name in self.absorbing and self.target.activations.absorption != "kernel"
            required = self.integer[name].output == "required" or cut or self._would_merge(node)
            for output in self.outputs_of(node):
                wanted = [reader for reader in self.readers(output) if required or reader in quantizes]
                if required or wanted:
                    produced.add(str(output.name))
                    activations.setdefault(str(output.name), {}).update(dict.fromkeys(wanted))
                    owner[str(output.name)] = self._owner(node, output, owner)
        return Layout(
            self.scheme,
            self.integer,
            self.reasons,
            {tensor: tuple(readers) for tensor, readers in activations.items()},
            owner,
            self.absorbed,
            frozenset(produced),
            frozenset(owner.values()) & self.constants,
            *self._widths(activations, quantizes),
        )

    def _widths(self, tensors: Iterable[str], quantizes: Container[str]) -> tuple[dict[str, int], dict[str, int]]:
        """The nodes and the tensors whose width is not the scheme's."""
        values = {str(v.name): v for node in self.nodes for v in (*node.inputs, *node.outputs) if v is not None}
        usual = self.scheme.activation_bits
        nodes = {name: bits for name, bits in self.widths.items() if name in quantizes and bits != usual}
        held = {name: self._tensor_width(values[name], quantizes) for name in tensors} if nodes else {}
        return nodes, {name: bits for name, bits in held.items() if bits is not None and bits != usual}

    def _would_merge(self, node: ir.Node) -> bool:
        """A matrix product and the Add behind it, which ONNX Runtime makes a float Gemm of unless a Q parts them.

        Where the Add is of a constant, ``shape_float`` has parted them already.
        """
        if self.target.graph.linear != "guarded-add" or node.op_type != "MatMul":
            return False
        output = node.outputs[0]
        readers = [reader.op_type for reader, _ in output.uses()]
        return readers == ["Add"] and output.shape is not None and len(output.shape) == 2

    def _owner(self, node: ir.Node, output: ir.Value, owner: Mapping[str, str]) -> str:
        if self.integer[str(node.name)].kind != "moves-data":
            return str(output.name)
        data = self.data_inputs(node)
        return owner[str(data[0].name)] if data else self._table_of(node)

    def _table_of(self, node: ir.Node) -> str:
        """The constant that ``node`` moves: its own range is known, and rows that calibration never saw fit, too."""
        position = (roles_of(node.op_type).data or (0,))[0]
        name = str(node.inputs[position].name)  # type: ignore[union-attr]
        self.constants.add(name)
        return name


def _divides(weight: ir.Value, columns: int) -> bool:
    """Whether a matrix ``[K, N]`` has a number of columns that ``columns`` divides."""
    count = None if weight.shape is None else weight.shape[-1]
    return columns == 1 or (isinstance(count, int) and count % columns == 0)


def _bias_refusal(node: ir.Node, position: int) -> str | None:
    """Integer kernels add one int32 per channel to the plain product (measured, ONNX Runtime 1.32)."""
    bias = node.inputs[position] if len(node.inputs) > position else None
    if bias is None:
        return None
    array = constant_array(bias)
    if array is None:
        return "its bias is computed at run time, and integer kernels add constants only"
    if array.ndim != 1:
        return f"its bias has the shape {list(array.shape)}, and integer kernels add one number per channel"
    if node.attributes.get_float("alpha", 1.0) != 1.0 or node.attributes.get_float("beta", 1.0) != 1.0:
        return "it scales its product or bias by alpha or beta, which integer kernels do not"
    return None
