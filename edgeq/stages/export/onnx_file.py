"""ONNX files and ONNX models in memory: taken as they are, in a current opset. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from edgeq import graph, runtime
from edgeq.errors import EdgeqError, ExportError, ModelError
from edgeq.graph import TensorInfo
from edgeq.progress import Progress
from edgeq.recipe import ImagePreprocess, Preprocess, TextPreprocess
from edgeq.source import Parity, Source
from edgeq.stages.export.parity import Arrays, check_parity, usable, vary
from edgeq.stages.export.preprocessing import encode_example, read_labels, read_preprocess
from edgeq.stages.export.requirements import file_digest
from edgeq.stages.export.sample_inputs import Guess, check_inputs, describe_inputs, find_inputs, make_inputs
from edgeq.stages.export.tidy import tidy
from edgeq.stages.export.ultralytics import read_metadata

__all__ = ["FirstSample", "from_model", "from_onnx_file", "upgrade"]

FirstSample = Callable[[Sequence[TensorInfo], Preprocess | None], Mapping[str, np.ndarray]]
"""Gives one batch of the user's data, from the model's inputs and what is known of their preparation."""

LIFTED_BYTES = 1024
"""Weights larger than this are set aside while onnx's converter works: it copies all, and reads no external data."""


def from_onnx_file(
    path: Path,
    *,
    task: str | None,
    opset: int,
    example_inputs: Mapping[str, object] | None,
    fixed_dims: Mapping[str, int] | None = None,
    first_sample: FirstSample | None = None,
    progress: Progress,
) -> Source:
    """Load a file, of any size: weights in external data stay on disk until a stage asks for them.

    Preprocessing and labels are taken from Hugging Face files beside the model, or one folder up
    from a folder named ``onnx``; else from what Ultralytics writes into a model. See :func:`from_model` for the rest.

    Raises:
        ModelError: the file is missing, unreadable, or its external data is missing or outside its folder.
        ExportError: ``example_inputs`` do not fit.
    """
    progress.start("load", None)
    model = graph.load_model(path)
    files = sorted(
        {path, *(path.parent / str(t.location) for t in _tensors(model) if isinstance(t, ir.ExternalTensor))}
    )
    digest = file_digest(files)
    progress.finish()
    folder = path.parent.parent if path.resolve().parent.name == "onnx" else path.parent
    preprocess, note = read_preprocess(folder)
    source = from_model(
        model,
        name=path.stem if path.stem != "model" else path.resolve().parent.name,
        origin=path.name,
        task=task,
        opset=opset,
        example_inputs=example_inputs,
        fixed_dims=fixed_dims,
        first_sample=first_sample,
        preprocess=preprocess,
        progress=progress,
    )
    provenance = {**source.provenance, "sha256": digest}
    if preprocess is not None:
        provenance["preprocess"] = note
    return replace(source, provenance=provenance, labels=read_labels(folder) or source.labels)


def from_model(
    model: ir.Model | onnx.ModelProto,
    *,
    name: str | None = None,
    origin: str = "model in memory",
    task: str | None = None,
    opset: int,
    example_inputs: Mapping[str, object] | None,
    fixed_dims: Mapping[str, int] | None = None,
    first_sample: FirstSample | None = None,
    preprocess: Preprocess | None = None,
    progress: Progress,
) -> Source:
    """Take a model, in ``opset`` or newer where onnx can convert it, and find example inputs if none are given.

    They are ``first_sample``'s, where there is one, else made up: of the sizes in ``fixed_dims``, and
    for other dynamic dimensions of the first sizes at which the model runs.

    A converted model is checked against the one that was given; where the conversion fails or
    changes the outputs, the given opset is kept and the provenance says why.

    Raises:
        ModelError: the model holds no graph, a tensor that nothing makes, or an input without type or shape.
        ExportError: ``example_inputs`` do not fit the model, or it runs on none that were made up.
        ConfigError: ``fixed_dims`` names an unknown dimension.
    """
    if isinstance(model, onnx.ModelProto):
        try:
            model = ir.from_proto(model)
        except Exception as error:  # onnx_ir and numpy raise their own types here
            raise ModelError(f"the model is not a readable ONNX model: {error}", where=origin) from None
    elif not isinstance(model, ir.Model):
        raise ExportError(f"expected an onnx_ir.Model or onnx.ModelProto, found {type(model).__name__}", where=origin)
    if not model.graph.outputs:
        raise ModelError("the model holds no graph: it has no outputs", where=origin)
    _check_wiring(model, origin)
    # The caller's model is left alone; tensors are shared, not copied.
    model = tidy(model.clone())
    graph.open_dims(model)
    infos = graph.input_infos(model, fixed_dims)
    described = read_metadata(model, infos)
    note = {} if preprocess is not None or described.preprocess is None else {"preprocess": "the model's metadata"}
    preprocess = preprocess or described.preprocess
    if example_inputs is not None:
        example, example_note = check_inputs(graph.input_infos(model), example_inputs, where=origin), "given"
    elif first_sample is not None:
        example, example_note = dict(first_sample(infos, preprocess)), "the first calibration sample"
    else:
        example = find_inputs(model, infos, first=_described(model, infos, preprocess), where=origin)
        example_note = f"made up: {describe_inputs(example)}"
    progress.start("opset", None)
    model, opset_note, parity = _in_opset(model, opset, example)
    progress.finish()
    return Source(
        name=name or model.graph.name or "model",
        model=model,
        example_inputs=example,
        provenance={
            "route": "onnx",
            "origin": origin,
            "producer": _producer(model),
            "opset": opset_note,
            "example_inputs": example_note,
            **note,
        },
        task=task or described.task,
        preprocess=preprocess,
        parity=parity,
        labels=described.labels,
        boxes=described.boxes,
    )


def _check_wiring(model: ir.Model, origin: str) -> None:
    """Raise ModelError where a node reads, or the model gives, a tensor that nothing makes."""
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    uses = [(f"node {node.name!r} ({node.op_type}) reads", v) for node in nodes for v in node.inputs if v is not None]
    uses += [("the model gives", value) for value in model.graph.outputs]
    for user, value in uses:
        if value.producer() is None and not value.is_graph_input() and not value.is_initializer():
            raise ModelError(
                f"{user} the tensor {value.name!r}, which nothing makes",
                where=origin,
                remedy="export the model again; onnx.checker.check_model shows such faults",
            )


def _in_opset(model: ir.Model, opset: int, example: Arrays) -> tuple[ir.Model, str, Parity | None]:
    """The model in ``opset`` and the proof that it computes the same; or as it was, and why."""
    given = model.opset_imports.get("", 0)
    if given >= opset or given == 0:
        return model, f"{given}, as given", None
    if graph.model_size(model) > graph.EXTERNAL_DATA_THRESHOLD:
        return model, f"{given}, as given: too large to check a conversion to {opset} by running both", None
    try:
        upgraded = upgrade(model, opset)
        options = runtime.session_options(optimization="none")
        with runtime.open_session(model, options) as session:
            names = [output.name for output in session.get_outputs()]

            def reference(inputs: Arrays) -> dict[str, np.ndarray]:
                try:
                    return dict(zip(names, session.run(names, dict(inputs)), strict=True))
                except Exception as error:  # ONNX Runtime's exceptions share no public base class
                    raise ExportError(f"the model does not run on example inputs: {error}") from None

            other = usable(reference, vary(example, {}), example)
            parity = check_parity(upgraded, reference, [example, other], source=f"the given model, opset {given}")
    except EdgeqError as error:
        return model, f"{given}, as given: not raised to {opset}, because {' '.join(error.what.split())[:300]}", None
    return upgraded, f"{opset}, raised from {given} by onnx {onnx.__version__}", parity


def upgrade(model: ir.Model, opset: int) -> ir.Model:
    """The same model in a newer opset, by onnx's version converter; the given model is left alone.

    Large weights are set aside while the converter works, and stay where they are (in memory or on disk).

    Raises:
        ExportError: the converter has no rule for one of the operators.
    """
    work = model.clone()
    if work.functions:
        InlinePass()(work)
    weights = {
        str(name): value.const_value
        for name, value in work.graph.initializers.items()
        if value.const_value is not None
        and (isinstance(value.const_value, ir.ExternalTensor) or value.const_value.nbytes > LIFTED_BYTES)
    }
    inputs = [str(value.name) for value in work.graph.inputs]
    for name in weights:
        value = work.graph.initializers.pop(name)
        value.dtype, value.shape = weights[name].dtype, ir.Shape(weights[name].shape.numpy())
        if not value.is_graph_input():
            work.graph.inputs.append(value)
    metadata = dict(work.metadata_props)
    try:
        converted = ir.from_proto(onnx.version_converter.convert_version(ir.to_proto(work), opset))
    except Exception as error:  # the converter raises RuntimeError, protobuf and onnx_ir their own types
        raise ExportError(
            f"onnx {onnx.__version__} cannot convert the model to opset {opset}: {' '.join(str(error).split())[:200]}"
        ) from None
    values = {str(value.name): value for value in converted.graph.inputs}
    for name, tensor in weights.items():
        values[name].const_value = tensor
        converted.graph.register_initializer(values[name])
    kept = [values[name] for name in inputs]
    converted.graph.inputs.clear()
    converted.graph.inputs.extend(kept)
    converted.metadata_props.update(metadata)
    converted.producer_name, converted.producer_version = model.producer_name, model.producer_version
    return tidy(converted)


def _described(
    model: ir.Model, infos: Sequence[TensorInfo], preprocess: Preprocess | None
) -> dict[str, np.ndarray] | None:
    """A real sentence, or noise of the picture size, where the preprocessing is known and fits the model."""
    if preprocess is None:
        return None
    example = make_inputs(model, infos, Guess())
    if isinstance(preprocess, TextPreprocess) and {"input_ids"} <= set(example):
        encoded = encode_example(preprocess, 0)
        if set(example) <= set(encoded):
            example = {name: encoded[name].astype(array.dtype) for name, array in example.items()}
    if isinstance(preprocess, ImagePreprocess):
        for info in infos:
            if len(info.shape) == 4 and info.dtype.kind == "f":
                shape = (1, example[info.name].shape[1], *preprocess.crop)
                example[info.name] = np.random.default_rng(0).standard_normal(shape).astype(info.dtype)
    try:
        return check_inputs(infos, example, where="inputs made from the files beside the model")
    except ExportError:
        return None  # the files beside the model describe another model


def _producer(model: ir.Model) -> str:
    return f"{model.producer_name or 'unknown'} {model.producer_version or ''}".strip()


def _tensors(model: ir.Model) -> list[ir.TensorProtocol]:
    return [
        value.const_value
        for part in model.graphs()
        for value in part.initializers.values()
        if value.const_value is not None
    ]
