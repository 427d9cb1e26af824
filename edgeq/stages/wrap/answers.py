"""What a model gives to what an app wants, as a piece of graph: probabilities and classes, or one finished vector."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgeq.errors import ConfigError
from edgeq.graph import TensorInfo
from edgeq.interface import (
    ClassesOutput,
    EmbeddingOutput,
    LogitsOutput,
    Output,
    ProbabilitiesOutput,
    TokenEmbeddingsOutput,
)
from edgeq.source import Pooling
from edgeq.stages.wrap.back import Back
from edgeq.stages.wrap.snippet import parse_snippet

__all__ = ["TOP", "answer_back"]

TOP = 5
"""How many of the most probable classes are given."""

_LEAST_COUNT, _LEAST_LENGTH = 1e-9, 1e-12
"""What sentence-transformers divides by at least: the tokens of an empty text, the length of a vector."""


def answer_back(
    meanings: Sequence[Output], infos: Sequence[TensorInfo], *, mask: TensorInfo | None, pooling: Pooling, opset: int
) -> Back:
    """The piece of graph behind a model whose outputs ``infos`` mean ``meanings``.

    A classifier gets ``probabilities`` of all classes, and the ``TOP`` most probable as ``classes`` (int64) with
    their ``class_probabilities``. A sentence encoder gets ``sentence_embedding``: its tokens' vectors pooled over
    those that ``mask`` allows, then divided by their length (as sentence-transformers computes it); an encoder
    that pools by itself gets ``embedding``, divided by its length.

    Raises:
        ConfigError: there is nothing to be done with such outputs.
    """
    for wanted in (LogitsOutput, ProbabilitiesOutput, TokenEmbeddingsOutput, EmbeddingOutput):
        for meaning, info in zip(meanings, infos, strict=True):
            if not isinstance(meaning, wanted):
                continue
            if isinstance(meaning, (LogitsOutput, ProbabilitiesOutput)):
                return _classes(meaning, info, opset)
            if isinstance(meaning, TokenEmbeddingsOutput):
                return _pooled(meaning, info, mask, pooling, opset)
            if isinstance(meaning, EmbeddingOutput) and not meaning.normalized:
                return _normalized(meaning, info, opset)
    found = ", ".join(f"{meaning.name} ({meaning.kind})" for meaning in meanings)
    raise ConfigError(
        f"there is nothing to embed behind this model: its outputs are {found}",
        remedy="leave out --embed-postprocessing, or name the task, such as --task image-classification",
    )


def _classes(meaning: LogitsOutput | ProbabilitiesOutput, info: TensorInfo, opset: int) -> Back:
    count, classes = min(TOP, meaning.classes), meaning.classes
    dims = _dims(info)
    softmax = isinstance(meaning, LogitsOutput)
    made = f"float[{dims}, {classes}] probabilities, " if softmax else ""
    first, of = ("probabilities = Softmax<axis = -1>(given)", "probabilities") if softmax else ("", "given")
    text = f"""(float[{dims}, {classes}] given) =>
        ({made}int64[{dims}, {count}] classes, float[{dims}, {count}] class_probabilities) {{ {first}
        class_probabilities, classes = TopK<axis = -1, largest = 1, sorted = 1>({of}, "answers/count") }}"""
    graph = _built(text, {"answers/count": np.array([count])}, opset, {"given": info})
    outputs: list[Output] = [
        ClassesOutput(name="classes", count=count, classes=classes),
        ProbabilitiesOutput(name="class_probabilities", classes=count, of="classes"),
    ]
    if softmax:
        outputs.insert(0, ProbabilitiesOutput(name="probabilities", classes=classes))
    return Back(graph, tuple(outputs), frozenset({info.name} if softmax else ()))


def _pooled(
    meaning: TokenEmbeddingsOutput, info: TensorInfo, mask: TensorInfo | None, pooling: Pooling, opset: int
) -> Back:
    batch, length = _dims(info).split(", ")
    taken = f", int64[{batch}, {length}] mask" if mask is not None and pooling != "first" else ""
    text = f"""(float[{batch}, {length}, {meaning.size}] given{taken}) =>
        (float[{batch}, {meaning.size}] sentence_embedding) {{ {_POOL[pooling, bool(taken)]} {_NORMALIZE} }}"""
    text = text.replace("$made", "sentence_embedding")
    sources = {"given": info, **({"mask": mask} if taken and mask is not None else {})}
    graph = _built(text, {key: _CONSTANTS[key] for key in _CONSTANTS if f'"{key}"' in text}, opset, sources)
    outputs = (EmbeddingOutput(name="sentence_embedding", size=meaning.size, normalized=True),)
    return Back(graph, outputs, frozenset({info.name}))


def _normalized(meaning: EmbeddingOutput, info: TensorInfo, opset: int) -> Back:
    dims = _dims(info)
    name = "normalized_embedding"
    text = f"(float[{dims}, {meaning.size}] given) => (float[{dims}, {meaning.size}] {name}) {{ {_NORMALIZE} }}"
    text = text.replace('"answers/pooled"', "given").replace("$made", name)
    graph = _built(text, {key: _CONSTANTS[key] for key in _CONSTANTS if f'"{key}"' in text}, opset, {"given": info})
    return Back(graph, (EmbeddingOutput(name=name, size=meaning.size, normalized=True),), frozenset({info.name}))


_CONSTANTS: dict[str, np.ndarray] = {
    "answers/last": np.array([-1]),
    "answers/tokens": np.array([1]),
    "answers/behind": np.array([2]),
    "answers/zeroth": np.array(0),
    "answers/one": np.array(1, np.float32),
    "answers/far": np.array(-1e9, np.float32),
    "answers/least_count": np.array(_LEAST_COUNT, np.float32),
    "answers/least_length": np.array(_LEAST_LENGTH, np.float32),
}

_WEIGHTS = """"answers/allowed" = Cast<to = 1>(mask)
    "answers/weights" = Unsqueeze("answers/allowed", "answers/behind")"""

_POOL: dict[tuple[Pooling, bool], str] = {
    ("mean", True): f"""{_WEIGHTS}
        "answers/kept" = Mul(given, "answers/weights")
        "answers/sum" = ReduceSum<keepdims = 0>("answers/kept", "answers/tokens")
        "answers/found" = ReduceSum<keepdims = 0>("answers/weights", "answers/tokens")
        "answers/number" = Max("answers/found", "answers/least_count")
        "answers/pooled" = Div("answers/sum", "answers/number")""",
    ("mean", False): '"answers/pooled" = ReduceMean<keepdims = 0>(given, "answers/tokens")',
    ("first", False): '"answers/pooled" = Gather<axis = 1>(given, "answers/zeroth")',
    ("max", True): f"""{_WEIGHTS}
        "answers/padding" = Sub("answers/one", "answers/weights")
        "answers/below" = Mul("answers/padding", "answers/far")
        "answers/kept" = Add(given, "answers/below")
        "answers/pooled" = ReduceMax<keepdims = 0>("answers/kept", "answers/tokens")""",
    ("max", False): '"answers/pooled" = ReduceMax<keepdims = 0>(given, "answers/tokens")',
}

_NORMALIZE = """"answers/norm" = ReduceL2<keepdims = 1>("answers/pooled", "answers/last")
    "answers/length" = Max("answers/norm", "answers/least_length")
    $made = Div("answers/pooled", "answers/length")"""


def _dims(info: TensorInfo) -> str:
    """All dimensions but the last, dynamic ones under names of our own."""
    return ", ".join(str(dim) if isinstance(dim, int) else f"d{axis}" for axis, dim in enumerate(info.shape[:-1]))


def _built(text: str, constants: dict[str, np.ndarray], opset: int, sources: dict[str, TensorInfo]) -> ir.Model:
    """The snippet, with names and dimensions of the model's own tensors, which are a stranger's text."""
    model = parse_snippet(text, constants, opset)
    first = sources["given"]
    known = {f"d{axis}": dim for axis, dim in enumerate(first.shape)}
    for value in (*model.graph.inputs, *(output for node in model.graph for output in node.outputs)):
        if value.shape is not None:
            dims = [dim if isinstance(dim, int) else known.get(dim.value or "", dim.value) for dim in value.shape]
            value.shape = ir.Shape(dims)
    for value in model.graph.inputs:
        value.name = sources[str(value.name)].name
    return model
