"""Anything that holds a model -> a float ONNX model, checked against what it came from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from edgeq.errors import ExportError
from edgeq.progress import Progress, Silent
from edgeq.source import Source

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir
    import torch

    from edgeq.stages.export.onnx_file import FirstSample
    from edgeq.stages.export.torch_module import DynamicShapes

    ModelSource: TypeAlias = (
        str | os.PathLike[str] | torch.nn.Module | torch.export.ExportedProgram | ir.Model | onnx.ModelProto
    )

__all__ = ["FORMS", "example_names", "load_source"]

FORMS = """\
  model.onnx               an ONNX file, with its external data beside it
  module.py:function       a Python function that returns (torch module, example inputs)
  program.pt2              a program saved by torch.export.save
  folder                   a Hugging Face folder: config.json and safetensors
  org/name                 a Hugging Face id
  example:NAME             a bundled example: efficientnet-lite0, minilm"""
"""The accepted forms of a source, one a line, for help and errors."""


def load_source(
    source: ModelSource,
    *,
    task: str | None = None,
    opset: int = 21,
    example_inputs: object | None = None,
    dynamic_shapes: DynamicShapes = None,
    fixed_dims: Mapping[str, int] | None = None,
    first_sample: FirstSample | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> Source:
    """A float ONNX model from any source edgeq knows, parity-checked where there is something to check against.

    Args:
        source: One of :data:`FORMS`; or, in Python, a ``torch.nn.Module``, an ``ExportedProgram``,
            an ``onnx_ir.Model`` or an ``onnx.ModelProto``.
        task: What the model does (``"image-classification"``, ...); for Hugging Face models the
            default is inferred, for others it is unknown.
        opset: Opset version of the result. ONNX models that are newer, or that cannot be converted,
            keep theirs; ``provenance["opset"]`` says so.
        example_inputs: One batch. Needed for a module in memory: a tensor, a tuple or a dict of
            tensors. Optional for ONNX and exported programs: a dict of arrays by input name.
        dynamic_shapes: For a module in memory, as for ``torch.export.export``; None: fixed shapes.
        fixed_dims: For ONNX: sizes of dynamic dimensions that made-up example inputs are to have.
        first_sample: For ONNX without ``example_inputs``: gives one batch of the user's own data.
        trust_remote_code: Run Python code that a Hugging Face model brings along.
        allow_pickle: Load pickle files, which can run code, where there is no safe form.
        progress: Told of the steps.

    Raises:
        ExportError: unknown form, missing packages, a source that cannot be exported, no parity.
        ModelError: an ONNX file that cannot be read.
    """
    progress = progress or Silent()
    if not isinstance(source, (str, os.PathLike)):
        return _from_object(source, task, opset, example_inputs, dynamic_shapes, fixed_dims, first_sample, progress)
    text = os.fspath(source)
    path = Path(text).expanduser()
    if text.startswith("example:"):
        from edgeq.stages.export.examples import from_example

        return from_example(text.removeprefix("example:"), opset=opset, progress=progress)
    if path.suffix == ".onnx":
        from edgeq.stages.export.onnx_file import from_onnx_file

        return from_onnx_file(
            path,
            task=task,
            opset=opset,
            example_inputs=_mapping(example_inputs, text),
            fixed_dims=fixed_dims,
            first_sample=first_sample,
            progress=progress,
        )
    if path.suffix == ".pt2":
        from edgeq.stages.export.exported_program import from_pt2

        return from_pt2(
            path,
            task=task,
            opset=opset,
            example_inputs=example_inputs,
            allow_pickle=allow_pickle,
            progress=progress,
        )
    location, _, function = str(path).rpartition(":")
    if location.endswith(".py") and function.isidentifier():
        from edgeq.stages.export.torch_module import from_file

        return from_file(f"{location}:{function}", task=task, opset=opset, progress=progress)
    if _is_hugging_face(text, path):
        from edgeq.stages.export.hugging_face import from_hugging_face

        return from_hugging_face(
            str(path) if path.is_dir() else text,
            task=task,
            opset=opset,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
            progress=progress,
        )
    raise _unknown(text, path)


def example_names() -> tuple[str, ...]:
    """The names that ``example:NAME`` takes."""
    from edgeq.stages.export.examples import EXAMPLES

    return tuple(EXAMPLES)


def _from_object(
    source: Any,
    task: str | None,
    opset: int,
    example_inputs: object | None,
    dynamic_shapes: DynamicShapes,
    fixed_dims: Mapping[str, int] | None,
    first_sample: FirstSample | None,
    progress: Progress,
) -> Source:
    """By the name of its class's module: an ONNX user must not pay for importing torch."""
    import sys

    torch = sys.modules.get("torch")  # whoever holds a module has imported torch
    if torch is not None and isinstance(source, torch.nn.Module):
        from edgeq.stages.export.torch_module import from_module

        return from_module(
            source, example_inputs, dynamic_shapes=dynamic_shapes, task=task, opset=opset, progress=progress
        )
    if torch is not None and isinstance(source, torch.export.ExportedProgram):
        from edgeq.stages.export.exported_program import from_program

        return from_program(source, task=task, opset=opset, example_inputs=example_inputs, progress=progress)
    import onnx
    import onnx_ir as ir

    if isinstance(source, (ir.Model, onnx.ModelProto)):
        from edgeq.stages.export.onnx_file import from_model

        return from_model(
            source,
            task=task,
            opset=opset,
            example_inputs=_mapping(example_inputs, "model in memory"),
            fixed_dims=fixed_dims,
            first_sample=first_sample,
            progress=progress,
        )
    raise ExportError(
        f"a {type(source).__module__}.{type(source).__qualname__} is not a source",
        remedy="give a torch.nn.Module, an ExportedProgram, an onnx_ir.Model, an onnx.ModelProto, or one of:\n" + FORMS,
    )


def _mapping(inputs: object | None, where: str) -> Mapping[str, object] | None:
    if inputs is None or isinstance(inputs, Mapping):
        return inputs
    raise ExportError(
        f"example inputs of an ONNX model are arrays by input name; found {type(inputs).__name__}", where=where
    )


def _is_hugging_face(text: str, path: Path) -> bool:
    """A folder with a config.json, or a name that can be an id and is no path: ``org/name`` or ``name``."""
    if path.exists():
        return (path / "config.json").is_file()
    parts = text.split("/")
    return len(parts) == 2 and all(
        part and part[0].isalnum() and all(c.isalnum() or c in "-_." for c in part) for part in parts
    )


def _unknown(text: str, path: Path) -> ExportError:
    remedy = "give one of:\n" + FORMS
    if path.is_dir():
        found = "a folder without config.json"
        inside = sorted(child.name for child in path.glob("*.onnx"))
        if inside:
            remedy = f"it holds ONNX files, give one: {path / inside[0]}\n" + remedy
    elif path.is_file():
        found = f"a file that ends in {path.suffix!r}" if path.suffix else "a file without an ending"
    else:
        found = "no such file or folder"
    return ExportError(f"the source {text!r} cannot be read: {found}", where=text, remedy=remedy)
