"""torch modules: in memory, or from a function in a Python file that the user names."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir as ir

from edgeq import graph
from edgeq.errors import ExportError
from edgeq.export.parity import Arrays, Reference, check_parity, dynamic_axes, usable, vary
from edgeq.export.requirements import need, version
from edgeq.export.tidy import keep_outputs, tidy
from edgeq.progress import Progress
from edgeq.source import Source

if TYPE_CHECKING:
    import torch

__all__ = [
    "DynamicShapes",
    "export_module",
    "from_file",
    "from_module",
    "name_inputs",
    "quiet",
    "run_module",
    "weights_digest",
]

DynamicShapes: TypeAlias = Mapping[str, Any] | Sequence[Any] | None
"""What ``torch.export.export`` takes as ``dynamic_shapes``: by input name or by position."""


def from_file(spec: str, *, task: str | None, opset: int, progress: Progress) -> Source:
    """Export ``path/to/module.py:function``.

    The file is executed, because the user named it. The function takes nothing and returns
    ``(module, example_inputs)`` or ``(module, example_inputs, dynamic_shapes)``; see
    :func:`from_module` for both.

    Raises:
        ExportError: no such file or function, the code raises, or it returns something else.
    """
    need("torch", extra="torch", purpose="a torch module")
    location, _, function = spec.rpartition(":")
    path = Path(location)
    result = _call(path, function)
    if not isinstance(result, tuple) or len(result) not in (2, 3):
        raise ExportError(
            f"{function}() returned {type(result).__name__}, not (module, example_inputs[, dynamic_shapes])",
            where=spec,
            remedy="return a tuple of a torch.nn.Module and its example inputs",
        )
    module, inputs, shapes = result if len(result) == 3 else (*result, None)
    return from_module(
        module,
        inputs,
        dynamic_shapes=shapes,
        name=path.stem if function in ("main", "model", "build", "load", "export") else function,
        origin=f"{path.name}:{function}",
        task=task,
        opset=opset,
        progress=progress,
    )


def _call(path: Path, function: str) -> object:
    if not path.is_file():
        raise ExportError("the Python file does not exist", where=str(path), remedy="check the path")
    spec = importlib.util.spec_from_file_location(f"edgeq_source_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ExportError("not a Python file", where=str(path))
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles of the user's file look their module up by name; siblings import each other.
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
        build = getattr(module, function, None)
        if callable(build):
            return build()
    except Exception as error:  # whatever the user's code raises
        raise ExportError(
            f"the code fails: {type(error).__name__}: {error}",
            where=_last_line(error, path) or f"{path}:{function}",
            remedy="make the function run on its own first",
        ) from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    names = sorted(name for name, value in vars(module).items() if inspect.isfunction(value))
    raise ExportError(
        f"the file has no function {function!r}", where=str(path), remedy=f"it has: {', '.join(names) or 'none'}"
    )


def _last_line(error: Exception, path: Path) -> str | None:
    """File and line of the deepest frame in the user's own file."""
    place, trace = None, error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename).name == path.name:
            place = f"{path}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def from_module(
    module: torch.nn.Module,
    example_inputs: object,
    *,
    dynamic_shapes: DynamicShapes = None,
    name: str | None = None,
    origin: str = "module in memory",
    task: str | None = None,
    opset: int,
    progress: Progress,
) -> Source:
    """Export a module and check its outputs against the module's own.

    Args:
        module: Put into evaluation mode for the export, and back afterwards. It must be on the CPU.
        example_inputs: A tensor, a tuple of tensors in the order of ``forward``, or a dict by name.
        dynamic_shapes: As for ``torch.export.export``; None makes every size fixed.
        name: Name of the source; default: the module's class.
        origin: Where the module comes from, for the provenance.
        task: What the model does, if known.
        opset: Opset version of the ONNX model.
        progress: Told of the steps.

    Raises:
        ExportError: not a module, no usable inputs, the exporter fails, or the outputs differ.
    """
    torch = need("torch", extra="torch", purpose="a torch module")
    if not isinstance(module, torch.nn.Module):
        raise ExportError(f"expected a torch.nn.Module, found {type(module).__name__}", where=origin)
    inputs = name_inputs(module, example_inputs, where=origin)
    with _evaluation(module):
        reference = run_module(module, where=origin)
        progress.start("export", 2)
        model = export_module(module, inputs, dynamic_shapes=dynamic_shapes, opset=opset, where=origin)
        progress.advance()
        example = {key: _array(value) for key, value in inputs.items()}
        other = usable(reference, vary(example, dynamic_axes(model)), vary(example, {}))
        parity = check_parity(model, reference, [example, other], source=f"torch {torch.__version__}, eager")
        progress.advance()
        progress.finish()
    return Source(
        name=name or type(module).__name__,
        model=model,
        example_inputs=example,
        provenance={
            "route": "torch",
            "origin": origin,
            "exporter": f"torch.onnx.export(dynamo=True), torch {torch.__version__}, onnxscript {version('onnxscript')}",
            "weights_sha256": weights_digest(module.state_dict()),
        },
        task=task,
        parity=parity,
    )


def export_module(
    module: torch.nn.Module | torch.export.ExportedProgram,
    inputs: Mapping[str, torch.Tensor],
    *,
    dynamic_shapes: DynamicShapes = None,
    outputs: tuple[str, ...] | None = None,
    opset: int,
    where: str,
) -> ir.Model:
    """Trace with ``torch.export`` and translate to ONNX; parity is the caller's to check.

    Args:
        module: In evaluation mode, on the CPU.
        inputs: One batch by name. A dynamic axis must not have size 1: torch would fix it.
        dynamic_shapes: As for ``torch.export.export``; an axis may be given by its name, a string.
        outputs: Keep only these; default: all. The names come from the module's output structure.
        opset: Opset version of the ONNX model.
        where: The source, for errors.

    Raises:
        ExportError: torch cannot trace the module, or ONNX has no form for one of its operators.
    """
    torch = need("torch", extra="torch", purpose="a torch module")
    need("onnxscript", extra="torch", purpose="torch's ONNX exporter")
    args: tuple[torch.Tensor, ...] = ()
    kwargs: dict[str, torch.Tensor] = {}
    if isinstance(module, torch.nn.Module):
        names = _output_names(_forward(module, inputs, where))
        if _positional(module):
            args = tuple(inputs.values())
        else:
            kwargs = dict(inputs)
    else:
        names = None
    with quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                module, args, kwargs=kwargs, dynamo=True, opset_version=opset, dynamic_shapes=dynamic_shapes,
                verbose=False,
            )  # fmt: skip
        except Exception as error:  # the exporter raises its own types, torch's and those of the module
            raise ExportError(
                f"torch cannot export the model: {_root_cause(error)}",
                where=where,
                remedy="change the part of forward() that is named, or give fixed shapes; "
                "see the documentation of torch.export",
            ) from error
    model: ir.Model = program.model
    _rename(model.graph.inputs, tuple(inputs), "inputs", where)
    if names is not None:
        _rename(model.graph.outputs, names, "outputs", where)
    if outputs is not None:
        keep_outputs(model, outputs)
    for value in model.graph.initializers.values():
        if value.const_value is not None:  # numpy in place of torch tensors, over the same memory
            value.const_value = ir.Tensor(value.const_value.numpy(), dtype=value.dtype, name=value.name)
    # torch's counters in symbol names and its class names in the graph's name say nothing to a reader
    model.graph.name = "main_graph"
    return tidy(model)


def _rename(values: Sequence[ir.Value], names: Sequence[str], kind: str, where: str) -> None:
    if len(values) != len(names):
        raise ExportError(
            f"the exported model has {len(values)} {kind}, its source {len(names)}: {', '.join(names)}",
            where=where,
            remedy="let forward() take and return tensors only",
        )
    # Two passes: a new name may be the old name of another value.
    for index, value in enumerate(values):
        value.name = f"edgeq.{kind}.{index}"
    for value, name in zip(values, names, strict=True):
        value.name = name


def name_inputs(module: torch.nn.Module, inputs: object, *, where: str) -> dict[str, torch.Tensor]:
    """Tensors by input name, from a tensor, a tuple or a dict, in the order of ``forward``.

    Raises:
        ExportError: not tensors, more than ``forward`` takes, names that it does not take, or one
            tensor for two inputs without a default.
    """
    torch = need("torch", extra="torch", purpose="a torch module")
    parameters = inspect.signature(module.forward).parameters
    named: dict[str, Any]
    if isinstance(inputs, Mapping):
        unknown = [name for name in inputs if name not in parameters]
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        if unknown and not takes_any:
            raise ExportError(
                f"forward() takes no input {', '.join(unknown)}",
                where=where,
                remedy=f"it takes: {', '.join(parameters)}",
            )
        order = [name for name in parameters if name in inputs] + unknown
        named = {name: inputs[name] for name in order}
    else:
        values = (inputs,) if isinstance(inputs, torch.Tensor) else inputs
        if not isinstance(values, (tuple, list)) or not values:
            raise ExportError(
                "example inputs are needed: a tensor, a tuple of tensors or a dict of tensors by name; "
                f"found {type(inputs).__name__}",
                where=where,
            )
        named = dict(zip(_positional_names(parameters, len(values), where), values, strict=True))
    for name, value in named.items():
        if not isinstance(value, torch.Tensor):
            raise ExportError(
                f"example input {name!r} is {type(value).__name__}, not a tensor",
                where=where,
                remedy="give tensors only; bind other arguments in a module of your own",
            )
        if value.device.type != "cpu":
            raise ExportError(f"example input {name!r} is on {value.device}", where=where, remedy="move it to the CPU")
    return named


def _positional_names(parameters: Mapping[str, inspect.Parameter], count: int, where: str) -> list[str]:
    names = [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    rest = next((p.name for p in parameters.values() if p.kind is p.VAR_POSITIONAL), None)
    if count > len(names):
        if rest is None:
            raise ExportError(
                f"{count} example inputs for a forward() that takes {len(names)}: {', '.join(names)}", where=where
            )
        names += [f"{rest}_{index}" for index in range(count - len(names))]
    return names[:count]


def _positional(module: torch.nn.Module) -> bool:
    kinds = {p.kind for p in inspect.signature(module.forward).parameters.values()}
    return bool(kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY})


def run_module(module: torch.nn.Module, *, where: str) -> Reference:
    """The module as a function of arrays: the reference for parity."""
    import torch

    def reference(inputs: Arrays) -> dict[str, np.ndarray]:
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in inputs.items()}
        result = _forward(module, tensors, where)
        return dict(zip(_output_names(result), map(_array, _flatten(result)), strict=True))

    return reference


def _forward(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor], where: str) -> object:
    import torch

    with quiet(), torch.no_grad():
        try:
            return module(*inputs.values()) if _positional(module) else module(**inputs)
        except Exception as error:  # whatever the module raises
            raise ExportError(
                f"the module fails on the example inputs: {type(error).__name__}: {_first_line(error)}",
                where=where,
                remedy="check the inputs' shapes and types against forward()",
            ) from error


def _named_leaves(result: object, name: str = "") -> Iterator[tuple[str, Any]]:
    """Tensors of a nested output and their names, in the order of torch's pytree; None is skipped."""
    if result is None:
        return
    if isinstance(result, Mapping):
        items = [(str(key), value) for key, value in result.items()]
    elif isinstance(result, tuple) and hasattr(result, "_fields"):
        items = list(zip(result._fields, result, strict=True))
    elif isinstance(result, (tuple, list)):
        items = [(f"output_{index}" if not name else str(index), value) for index, value in enumerate(result)]
    else:
        yield name or "output", result
        return
    for key, value in items:
        yield from _named_leaves(value, f"{name}_{key}" if name else key)


def _output_names(result: object) -> tuple[str, ...]:
    return tuple(name for name, _ in _named_leaves(result))


def _flatten(result: object) -> list[Any]:
    return [value for _, value in _named_leaves(result)]


def _array(value: Any) -> np.ndarray:
    """A torch tensor as a numpy array; bfloat16 and the small floats keep their type through ml_dtypes."""
    import torch

    if not isinstance(value, torch.Tensor):
        raise ExportError(f"the module returns {type(value).__name__}, not a tensor", remedy="return tensors only")
    return np.array(ir.tensor_adapters.TorchTensor(value.detach().contiguous()).numpy())


def weights_digest(state: Mapping[str, torch.Tensor]) -> str:
    """sha256 over the names, types, shapes and bytes of a state dict, in the order of names."""
    import hashlib

    digest = hashlib.sha256()
    for name in sorted(state):
        array = _array(state[name])
        digest.update(f"{name}:{array.dtype}:{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _evaluation(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside, each submodule's own mode restored after."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing on stdout, no warnings, no log lines below errors: exporters and model code are chatty."""
    disabled = logging.root.manager.disable
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)


def _root_cause(error: BaseException) -> str:
    """First line of the exception at the bottom of the chain: the exporter wraps it several times."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else "no message"
