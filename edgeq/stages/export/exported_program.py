"""Programs that ``torch.export`` made: in memory, or saved as ``.pt2``."""

from __future__ import annotations

import contextlib
import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeq.errors import ExportError
from edgeq.progress import Progress
from edgeq.source import Source
from edgeq.stages.export.parity import Arrays, Reference, check_parity, dynamic_axes, usable, vary
from edgeq.stages.export.requirements import exporter_version, file_digest, need
from edgeq.stages.export.torch_interface import first_line, named_outputs, quiet, tensor_to_array, weights_digest
from edgeq.stages.export.torch_module import export_module

if TYPE_CHECKING:
    import torch

__all__ = ["from_program", "from_pt2"]


def from_pt2(
    path: Path, *, task: str | None, opset: int, example_inputs: object | None, allow_pickle: bool, progress: Progress
) -> Source:
    """Load a file of ``torch.export.save`` and export it.

    torch keeps weights as plain bytes, but its loader falls back to full unpickling for example
    inputs, for tensor subclasses and for custom objects, and loads compiled libraries. So the
    archive is looked through first, and torch's restricted unpickler is forced while it loads.
    A file that needs more is refused unless ``allow_pickle``.

    Raises:
        ExportError: the file is missing, not such an archive, unsafe, of another torch version, or
            holds no example inputs and none are given.
    """
    torch = need("torch", extra="torch", purpose="an exported program")
    if not path.is_file():
        raise ExportError("the file does not exist", where=str(path), remedy="check the path")
    try:
        reason = _needs_trust(path)
    except (zipfile.BadZipFile, OSError, ValueError, AttributeError) as error:
        raise ExportError(
            f"the file is not a program saved by torch.export.save: {error}",
            where=str(path),
            remedy="save it with torch.export.save(program, path), not with torch.save",
        ) from None
    if reason is not None and not allow_pickle:
        raise ExportError(
            f"the file can run code when it is loaded: {reason}",
            where=str(path),
            remedy="save the program without example inputs and custom objects, "
            "or allow pickle files if you trust its author",
        )
    progress.start("load", None)
    try:
        with quiet(), contextlib.nullcontext() if allow_pickle else _restricted_unpickler():
            program = torch.export.load(path)
    except Exception as error:  # torch raises its own types, zipfile's and pickle's
        raise ExportError(
            f"torch {torch.__version__} cannot load the program: {type(error).__name__}: "
            + " ".join(str(error).split())[:300],
            where=str(path),
            remedy="load and save it with the version of torch that made it, and export again",
        ) from error
    progress.finish()
    return from_program(
        program,
        task=task,
        opset=opset,
        example_inputs=example_inputs,
        progress=progress,
        name=path.stem,
        origin=path.name,
        digest=file_digest([path]),
    )


def _needs_trust(path: Path) -> str | None:
    """Why loading the archive would run more than torch's restricted unpickler; None if it would not."""
    import torch

    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len(set(names)) != len(names):
            return "it holds two entries of one name"
        for name in names:
            if "/aotinductor/" in name or name.endswith((".so", ".dll", ".dylib")):
                return f"it holds compiled code ({name})"
            if name.endswith("_config.json"):
                for key, entry in json.loads(archive.read(name)).get("config", {}).items():
                    if entry.get("use_pickle") or not str(entry.get("path_name")).startswith(("weight_", "tensor_")):
                        return f"{key!r} is stored as a pickle"
            if name.endswith(".pt"):
                data = archive.read(name)
                try:
                    if data:
                        torch.load(io.BytesIO(data), weights_only=True)
                except Exception as error:  # pickle's, zipfile's or torch's own
                    return f"{name}: {' '.join(str(error).split())[:160]}"
    return None


@contextlib.contextmanager
def _restricted_unpickler() -> Iterator[None]:
    """torch.load with weights_only=True wherever torch itself asks for more (torch's own switch)."""
    switch = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(switch)
    os.environ[switch] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[switch]
        else:
            os.environ[switch] = before


def from_program(
    program: torch.export.ExportedProgram,
    *,
    task: str | None,
    opset: int,
    example_inputs: object | None,
    progress: Progress,
    name: str = "program",
    origin: str = "program in memory",
    digest: str | None = None,
) -> Source:
    """Export a program with the dynamic shapes it was traced with, and check its outputs against its own.

    ``example_inputs`` are a tensor, a tuple or a dict; default: those that the program carries.

    Raises:
        ExportError: no example inputs, the exporter fails, or the outputs differ.
    """
    torch = need("torch", extra="torch", purpose="an exported program")
    if _in_training(program):
        raise ExportError(
            "the program was traced in training mode: its dropout or batch normalization is that of training",
            where=origin,
            remedy="call module.eval() before torch.export.export",
        )
    with quiet():
        module = program.module(check_guards=False)
    inputs = _inputs(program, example_inputs, origin)
    reference = _reference(program, module, origin)
    progress.start("export", 2)
    example = {key: tensor_to_array(value) for key, value in inputs.items()}
    model = export_module(program, inputs, names=tuple(reference(example)), opset=opset, where=origin)
    progress.advance()
    other = usable(reference, vary(example, dynamic_axes(model)), vary(example, {}))
    parity = check_parity(model, reference, [example, other], source=f"torch {torch.__version__}, exported program")
    progress.advance()
    progress.finish()
    return Source(
        name=name,
        model=model,
        example_inputs=example,
        provenance={
            "route": "exported-program",
            "origin": origin,
            "exporter": exporter_version(),
            "weights_sha256": digest or weights_digest(program.state_dict),
        },
        task=task,
        parity=parity,
    )


def _arguments(program: torch.export.ExportedProgram) -> list[tuple[str | None, Any]]:
    """The program's arguments, flat: (name, None) of a tensor, (None, value) of a constant such as None."""
    specs = [spec.arg for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
    return [(None, arg.value) if hasattr(arg, "value") else (str(arg.name), None) for arg in specs]


def _inputs(program: torch.export.ExportedProgram, given: object | None, where: str) -> dict[str, torch.Tensor]:
    """The caller's inputs by name, or those of the trace."""
    import torch
    from torch.utils import _pytree as pytree

    arguments = _arguments(program)
    names = [name for name, _ in arguments if name is not None]
    values: Any
    if given is None:
        if not program.example_inputs:
            raise ExportError(
                "the program carries no example inputs", where=where, remedy=f"give them, for {', '.join(names)}"
            )
        leaves = pytree.tree_leaves(program.example_inputs)
        values = [leaf for leaf, (name, _) in zip(leaves, arguments, strict=True) if name is not None]
    elif isinstance(given, Mapping):
        values = [given[name] for name in names if name in given] if set(given) == set(names) else list(given)
    else:
        values = [given] if isinstance(given, (torch.Tensor, np.ndarray)) else given
    arrays = [torch.from_numpy(value) if isinstance(value, np.ndarray) else value for value in values]
    if len(arrays) != len(names) or not all(isinstance(value, torch.Tensor) for value in arrays):
        raise ExportError(
            "the example inputs do not fit the program",
            where=where,
            remedy=f"give a tensor for each of: {', '.join(names)}",
        )
    return dict(zip(names, arrays, strict=True))


def _reference(program: torch.export.ExportedProgram, module: torch.nn.Module, where: str) -> Reference:
    """The program as a function of arrays; constants and nesting as they were traced."""
    import torch
    from torch.utils import _pytree as pytree

    arguments = _arguments(program)

    def reference(inputs: Arrays) -> dict[str, np.ndarray]:
        leaves = [value if name is None else torch.from_numpy(np.array(inputs[name])) for name, value in arguments]
        args, kwargs = pytree.tree_unflatten(leaves, program.call_spec.in_spec)
        with quiet(), torch.no_grad():
            try:
                return named_outputs(module(*args, **kwargs))
            except Exception as error:  # whatever torch raises
                raise ExportError(
                    f"the program fails on the example inputs: {type(error).__name__}: {first_line(error)}", where=where
                ) from error

    return reference


def _in_training(program: torch.export.ExportedProgram) -> bool:
    """Dropout or batch normalization traced with their flag of training set."""
    flags: dict[str, int] = {"aten.dropout.default": 2, "aten.batch_norm.default": 5}
    return any(
        len(node.args) > flags[str(node.target)] and node.args[flags[str(node.target)]] is True
        for node in program.graph.nodes
        if str(node.target) in flags
    )
