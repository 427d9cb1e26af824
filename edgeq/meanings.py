"""What a model's outputs mean, as far as its task, its names and its graph tell."""

from __future__ import annotations

import onnx_ir as ir

from edgeq.graph import TensorInfo
from edgeq.interface import (
    EmbeddingOutput,
    LogitsOutput,
    Output,
    ProbabilitiesOutput,
    TensorOutput,
    TokenEmbeddingsOutput,
)

__all__ = ["output_meaning"]

_EMBEDDINGS = frozenset({"sentence_embedding", "pooler_output", "image_embeds", "text_embeds", "embeddings"})

_BEHIND = frozenset({"Cast", "DequantizeLinear", "Identity", "QuantizeLinear"})
"""Operators that leave the meaning of what they read as it is."""


def output_meaning(
    info: TensorInfo, value: ir.Value, task: str | None, mask: str | None, labels: tuple[str, int] | None
) -> Output:
    """What output ``value`` of a model for ``task`` means.

    Args:
        info: Its name, type and shape.
        value: It in the graph.
        task: Such as ``"image-classification"``.
        mask: The input that tells tokens from padding, if the model has one.
        labels: The bundle's file with the names of the classes, and how many there are.
    """
    size = info.shape[-1] if info.shape else None
    if info.dtype.kind != "f" or not isinstance(size, int):
        return TensorOutput(name=info.name)
    named = labels is not None and labels[1] == size
    if named or ((task or "").endswith("classification") and len(info.shape) >= 2):
        file = labels[0] if named and labels is not None else None
        if _made_by(value) == "Softmax":
            return ProbabilitiesOutput(name=info.name, classes=size, labels=file)
        return LogitsOutput(name=info.name, classes=size, labels=file)
    if len(info.shape) == 2 and (info.name in _EMBEDDINGS or task == "feature-extraction"):
        return EmbeddingOutput(name=info.name, size=size, normalized=_made_by(value) == "LpNormalization")
    if len(info.shape) == 3 and task == "feature-extraction" and mask is not None:
        return TokenEmbeddingsOutput(name=info.name, size=size, mask=mask)
    return TensorOutput(name=info.name)


def _made_by(value: ir.Value) -> str | None:
    """The operator that computes ``value``, types and Q/DQ aside."""
    producer = value.producer()
    while producer is not None and producer.op_type in _BEHIND and producer.inputs[0] is not None:
        producer = producer.inputs[0].producer()
    return None if producer is None else producer.op_type
