"""torch modules: in memory, or from a function in a Python file that the user names."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import onnx_ir as ir

from edgeq.errors import ExportError
from edgeq.progress import Progress
from edgeq.source import Source
from edgeq.stages.export.parity import check_parity, dynamic_axes, usable, vary
from edgeq.stages.export.requirements import exporter_version, need
from edgeq.stages.export.tidy import keep_outputs, name_dims, tidy
from edgeq.stages.export.torch_interface import (
    first_line,
    is_positional,
    name_inputs,
    quiet,
    run_module,
    tensor_to_array,
    weights_digest,
)

if TYPE_CHECKING:
    import torch

__all__ = ["DynamicShapes", "export_module", "from_file", "from_module"]

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
        with contextlib.redirect_stdout(sys.stderr):  # what the user's file prints is no result of edgeq
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
        example = {key: tensor_to_array(value) for key, value in inputs.items()}
        names = tuple(reference(example))
        model = export_module(module, inputs, dynamic_shapes=dynamic_shapes, names=names, opset=opset, where=origin)
        progress.advance()
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
            "exporter": exporter_version(),
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
    names: tuple[str, ...],
    keep: tuple[str, ...] | None = None,
    opset: int,
    where: str,
) -> ir.Model:
    """Trace with ``torch.export`` and translate to ONNX; parity is the caller's to check.

    Args:
        module: In evaluation mode, on the CPU.
        inputs: One batch by name. A dynamic axis must not have size 1: torch would fix it.
        dynamic_shapes: As for ``torch.export.export``; an axis may be given by its name, a string.
        names: What to call the outputs, in their order; see :func:`run_module`.
        keep: Keep only these outputs and what they need; default: all.
        opset: Opset version of the ONNX model.
        where: The source, for errors.

    Raises:
        ExportError: torch cannot trace the module, or ONNX has no form for one of its operators.
    """
    torch = need("torch", extra="torch", purpose="a torch module")
    need("onnxscript", extra="torch", purpose="torch's ONNX exporter")
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(module, torch.nn.Module):
        if is_positional(module):
            args = tuple(inputs.values())
        else:
            kwargs = dict(inputs)
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
    _rename(model.graph.outputs, names, "outputs", where)
    if keep is not None:
        keep_outputs(model, keep)
    for value in model.graph.initializers.values():
        if value.const_value is not None:  # numpy in place of torch tensors, over the same memory
            value.const_value = ir.Tensor(value.const_value.numpy(), dtype=value.dtype, name=value.name)
    model.graph.name = "main_graph"
    name_dims(model)
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


def _root_cause(error: BaseException) -> str:
    """First line of the exception at the bottom of the chain, which the exporter wraps several times, and its place.

    torch writes the line of the model that it could not trace into the message.
    """
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    place = re.search(r'File "([^"]+)", line (\d+), in \w+\n\s*(.+)', str(error))
    line = f" ({Path(place[1]).name}:{place[2]}: {place[3].strip()})" if place else ""
    return f"{type(error).__name__}: {first_line(error)}{line}"
