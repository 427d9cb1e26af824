"""Hugging Face models, from the Hub or a local folder: encoders and image models.

optimum knows which class, inputs and outputs belong to a task; torch's exporter makes the graph.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from edgeq.errors import ExportError
from edgeq.progress import Progress
from edgeq.recipe import ImagePreprocess, Preprocess, TextPreprocess
from edgeq.source import Source
from edgeq.stages.export.hugging_face_files import infer_task, read_licences, resolve, weight_files
from edgeq.stages.export.onnx_file import upgrade
from edgeq.stages.export.parity import Arrays, check_parity, dynamic_axes, usable, vary
from edgeq.stages.export.preprocessing import (
    encode_example,
    read_box_layout,
    read_json,
    read_labels,
    read_pooling,
    read_preprocess,
)
from edgeq.stages.export.requirements import exporter_version, file_digest, need, version
from edgeq.stages.export.tidy import keep_outputs, tidy
from edgeq.stages.export.torch_interface import first_line, quiet, run_module
from edgeq.stages.export.torch_module import export_module

if TYPE_CHECKING:
    import torch

__all__ = ["from_hugging_face"]

_AXIS_NAMES = {"batch_size": "batch", "sequence_length": "sequence"}
"""optimum's axes that become dynamic. Channels, height and width stay as the preprocessing fixes them."""


@dataclass(frozen=True)
class _Export:
    """A graph, how it was made, and which axes stayed open."""

    model: ir.Model
    exporter: str
    dynamic: str


def from_hugging_face(
    source: str,
    *,
    task: str | None,
    opset: int,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    progress: Progress,
) -> Source:
    """Export a model from a folder, or from the Hub by its id (``"org/name"``; cached, so it works offline later).

    Args:
        source: Folder or id.
        task: optimum's name of the task; default: inferred from the architecture in ``config.json``.
        opset: Opset version of the ONNX model.
        trust_remote_code: Run Python code that the model brings along.
        allow_pickle: Load weights from pickle files (``pytorch_model.bin``), which can run code,
            where there are no safetensors.
        progress: Told of the steps.

    Raises:
        ExportError: packages missing, model not found, unsafe weights, unknown task, a decoder
            language model, weights that the task needs and the files lack, or no parity.
    """
    for module in ("torch", "transformers", "optimum.exporters.onnx.model_configs"):
        with quiet():
            need(module, extra="hf", purpose="a Hugging Face model")
    progress.start("load", None)
    folder, origin = resolve(source, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    weights = weight_files(folder, allow_pickle, source)
    task = infer_task(folder, task, trust_remote_code, source)
    model, missing = _load(folder, task, source, trust_remote_code=trust_remote_code, safe=weights[0].suffix != ".bin")
    progress.finish()

    config = _onnx_config(model, task, source)
    preprocess, preprocess_note = read_preprocess(folder)
    example = _example_inputs(model, config, preprocess)
    outputs = _wanted_outputs(model, config, example, source)
    _refuse_random_weights(model, missing, example, outputs, source)

    progress.start("export", 2)
    axes = {
        name: {axis: _AXIS_NAMES[dim] for axis, dim in dims.items() if dim in _AXIS_NAMES}
        for name, dims in config.inputs.items()
        if name in example
    }
    reference = run_module(model, where=source)
    exported = _export(model, config, example, axes, outputs, opset, source)
    progress.advance()
    other = usable(reference, vary(example, dynamic_axes(exported.model)), vary(example, {}))
    torch_version = version("torch")
    parity = check_parity(exported.model, reference, [example, other], source=f"torch {torch_version}, eager")
    progress.advance()
    progress.finish()
    return Source(
        name=origin.rpartition("/")[2].partition("@")[0],
        model=exported.model,
        example_inputs=example,
        provenance={
            "route": "hugging-face",
            "origin": origin,
            "class": type(model).__name__,
            "exporter": exported.exporter,
            "transformers": version("transformers"),
            "optimum-onnx": version("optimum-onnx"),
            "dynamic": exported.dynamic,
            "preprocess": preprocess_note,
            "weights_sha256": file_digest(weights),
        },
        task=task,
        preprocess=preprocess,
        licences=read_licences(folder),
        parity=parity,
        labels=read_labels(folder) if "classification" in task or task == "object-detection" else (),
        pooling=read_pooling(folder),
        boxes=read_box_layout(folder) if task == "object-detection" else None,
    )


def _load(
    folder: Path, task: str, where: str, *, trust_remote_code: bool, safe: bool
) -> tuple[torch.nn.Module, list[str]]:
    """The model in float32 and evaluation mode, and the names of weights that its files lack."""
    import torch
    from optimum.exporters.tasks import TasksManager

    model_type = read_json(folder / "config.json").get("model_type")
    try:
        with quiet():
            loader = TasksManager.get_model_class_for_task(task, model_type=model_type, library="transformers")
            model, info = loader.from_pretrained(
                folder,
                attn_implementation="eager",
                use_safetensors=safe,
                trust_remote_code=trust_remote_code,
                local_files_only=True,
                torch_dtype=torch.float32,
                output_loading_info=True,
            )
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, safetensors' and torch's own
        raise ExportError(
            f"transformers cannot load the model for {task}: {type(error).__name__}: {first_line(error)}",
            where=where,
            remedy="check that the folder is complete and that the task fits the model",
        ) from error
    mismatched = [str(row[0]) for row in info.get("mismatched_keys", [])]
    return model.eval(), sorted({*info["missing_keys"], *mismatched})


def _onnx_config(model: torch.nn.Module, task: str, where: str) -> Any:
    """The OnnxConfig: names and dynamic axes of inputs and outputs, dummy inputs, its own exporter's patches."""
    from optimum.exporters.tasks import TasksManager

    try:
        with quiet():
            build = TasksManager.get_exporter_config_constructor(
                "onnx", model=model, task=task, library_name="transformers"
            )
            config = build(model.config)
    except (KeyError, ValueError, NotImplementedError) as error:
        raise ExportError(
            f"optimum {version('optimum-onnx')} cannot export this model: {first_line(error)}",
            where=where,
            remedy="export it from Python instead: give the module and its example inputs",
        ) from None
    if getattr(config, "use_past", False):
        raise ExportError(f"decoder language models cannot be exported yet: {type(model).__name__}", where=where)
    return config


def _example_inputs(model: torch.nn.Module, config: Any, preprocess: Preprocess | None) -> dict[str, np.ndarray]:
    """One sample per input of the model: a real sentence, or noise in the shape of a normalized image."""
    import inspect

    with quiet():
        dummies = config.generate_dummy_inputs(framework="np", batch_size=1)
    known: dict[str, np.ndarray] = {}
    if isinstance(preprocess, TextPreprocess):
        known = encode_example(preprocess, int(getattr(model.config, "pad_token_id", None) or 0))
    rng = np.random.default_rng(0)
    example: dict[str, np.ndarray] = {}
    parameters = list(inspect.signature(model.forward).parameters)
    for name in sorted(dummies, key=lambda name: parameters.index(name) if name in parameters else len(parameters)):
        array = np.asarray(dummies[name])
        if name in known:
            array = known[name]
        elif np.issubdtype(array.dtype, np.floating):
            shape = array.shape
            if isinstance(preprocess, ImagePreprocess) and array.ndim == 4:
                shape = (1, shape[1], *preprocess.crop)
            array = rng.standard_normal(shape).astype(np.float32)
        elif "mask" in name:
            array = np.ones(array.shape, dtype=np.int64)
        elif name == "position_ids":
            array = np.arange(array.shape[-1], dtype=np.int64)[None]
        elif name == "input_ids":
            array = rng.integers(0, _vocabulary(model), array.shape, dtype=np.int64)
        else:
            array = np.zeros(array.shape, dtype=np.int64)
        example[name] = array
    return example


def _vocabulary(model: torch.nn.Module) -> int:
    return int(getattr(model.config, "vocab_size", 1) or 1)


def _wanted_outputs(model: torch.nn.Module, config: Any, example: Arrays, where: str) -> tuple[str, ...]:
    """The task's outputs that the model has; all of them if optimum's names do not fit."""
    found = tuple(run_module(model, where=where)(example))
    return tuple(name for name in found if name in config.outputs) or found


def _refuse_random_weights(
    model: torch.nn.Module, missing: list[str], example: Arrays, outputs: tuple[str, ...], where: str
) -> None:
    """Missing weights were filled at random; refuse where they reach an output (by its gradient)."""
    import torch

    parameters = {name: value for name, value in model.named_parameters() if name in missing and value.requires_grad}
    if not parameters:
        return
    with quiet():
        results = model(**{name: torch.from_numpy(np.array(array)) for name, array in example.items()})
        total = sum(results[name].float().sum() for name in outputs)
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    random = [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
    if random:
        raise ExportError(
            f"the files lack {len(random)} weights that this task needs ({', '.join(random[:3])}"
            f"{', ...' if len(random) > 3 else ''}); they would be random",
            where=where,
            remedy="choose the task that the model was trained for, or fine-tune it first",
        )


def _export(
    model: torch.nn.Module,
    config: Any,
    example: Arrays,
    axes: Mapping[str, Mapping[int, str]],
    outputs: tuple[str, ...],
    opset: int,
    where: str,
) -> _Export:
    """With all dynamic axes, else with a dynamic batch, else with fixed shapes, else through optimum."""
    import torch

    batch = {name: {axis: dim for axis, dim in dims.items() if dim == "batch"} for name, dims in axes.items()}
    names = tuple(run_module(model, where=where)(example))
    refusal = ""
    for attempt in [axes, *([batch] if batch != axes else []), {}]:
        # A traced axis of size 1 would be fixed, so the tracing batch has other sizes than the example.
        sample = vary(example, attempt) if attempt else dict(example)
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in sample.items()}
        shapes = {name: dict(attempt.get(name, {})) for name in tensors} if attempt else None
        try:
            exported = export_module(
                model, tensors, dynamic_shapes=shapes, names=names, keep=outputs, opset=opset, where=where
            )
        except ExportError as error:
            refusal = refusal or error.what
            continue
        opened = sorted({dim for dims in dynamic_axes(exported).values() for dim in dims.values()})
        note = f" (with all axes: {refusal})" if refusal else ""
        return _Export(exported, exporter_version(), (", ".join(opened) or "none") + note)
    return _export_by_optimum(model, config, example, outputs, opset, where, refusal)


def _export_by_optimum(
    model: torch.nn.Module,
    config: Any,
    example: Arrays,
    outputs: tuple[str, ...],
    opset: int,
    where: str,
    refusal: str,
) -> _Export:
    from optimum.exporters.onnx.convert import export_pytorch

    with tempfile.TemporaryDirectory(prefix="edgeq-") as folder:
        path = Path(folder) / "model.onnx"
        shapes = {"batch_size": 2}
        images = [array.shape for array in example.values() if array.ndim == 4]
        if images:
            shapes |= {"height": images[0][2], "width": images[0][3]}
        try:
            with quiet():
                export_pytorch(model, config, opset=min(opset, 18), output=path, input_shapes=shapes)
        except Exception as error:  # optimum, torch and the model raise their own
            raise ExportError(
                f"neither torch's exporter nor optimum's can export this model: {refusal}; "
                f"{type(error).__name__}: {first_line(error)}",
                where=where,
            ) from error
        exported = ir.load(path)
        ir.external_data.load_to_model(exported)  # the temporary folder goes away
    keep_outputs(exported, outputs)
    exported = upgrade(tidy(exported), opset)
    exporter = f"optimum-onnx {version('optimum-onnx')} (torch's exporter failed: {refusal})"
    names = sorted({dim for dims in dynamic_axes(exported).values() for dim in dims.values()})
    return _Export(exported, exporter, ", ".join(names) or "none")
