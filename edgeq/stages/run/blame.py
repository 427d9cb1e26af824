"""Which layer loses the accuracy: the error of every tensor of the quantized model against the float model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgeq import graph
from edgeq.errors import ModelError
from edgeq.progress import Progress, Silent, track
from edgeq.report import TensorError, bounded_db
from edgeq.runtime import open_session, session_options

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnxruntime as ort

__all__ = ["layer_errors"]

_CHOOSING = frozenset({"NonMaxSuppression", "NonZero", "Unique"})

_CHUNK = 48
"""Tensors fetched per run: bounds memory, at the price of running a deep model more than once per sample."""


def layer_errors(
    float_model: ir.Model | str | os.PathLike[str],
    quantized: ir.Model | str | os.PathLike[str],
    tensors: Mapping[str, str],
    feeds: Iterable[Mapping[str, np.ndarray]],
    *,
    threads: int = 0,
    progress: Progress | None = None,
) -> tuple[TensorError, ...]:
    """Signal-to-noise ratio of each tensor, worst first, over a few samples.

    Args:
        float_model: The model that was quantized (as prepared, with the plan's changed weights or without).
        quantized: The QDQ model; both run without optimization, in the specification's arithmetic.
        tensors: Names of float tensors, and of the tensors in ``quantized`` that stand for them
            (the DequantizeLinear's output, or the same name where nothing was quantized). What follows from a
            choice among values, as NonMaxSuppression makes it, is left out: one more moves all the others.
        feeds: Samples by input name. Sums are kept per tensor, never tensors.
        threads: Intra-op threads, 0 for all cores.
        progress: Told of every sample.

    Raises:
        ModelError: a tensor does not exist, or has another shape in the quantized model.
    """
    import onnx_ir as ir

    if not isinstance(float_model, ir.Model):
        float_model = graph.load_model(float_model)
    if not isinstance(quantized, ir.Model):
        quantized = graph.load_model(quantized)
    chosen = _chosen_by_values(float_model)
    pairs = [(name, tensors[name]) for name in _order(float_model) if name in tensors and name not in chosen]
    signal = dict.fromkeys((reference for reference, _ in pairs), 0.0)
    noise = dict(signal)
    a, b = (_exposing(m, names) for m, names in zip((float_model, quantized), _columns(pairs), strict=True))
    options = session_options(threads=threads, optimization="none")
    with open_session(a, options) as reference_run, open_session(b, options) as quantized_run:
        for feed in track(feeds, progress or Silent(), "blaming layers"):
            for start in range(0, len(pairs), _CHUNK):
                chunk = pairs[start : start + _CHUNK]
                names, theirs = _columns(chunk)
                for name, x, y in zip(
                    names, _run(reference_run, names, feed), _run(quantized_run, theirs, feed), strict=True
                ):
                    _add(name, x, y, signal, noise)
    return _rank(float_model, signal, noise)


def _chosen_by_values(model: ir.Model) -> set[str]:
    """All tensors behind operators whose output's length or order follows from the values that they read."""
    found: set[str] = set()
    for node in model.graph:
        if node.op_type in _CHOOSING or any(value is not None and value.name in found for value in node.inputs):
            found.update(str(output.name) for output in node.outputs)
    return found


def _columns(pairs: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
    return [reference for reference, _ in pairs], [ours for _, ours in pairs]


def _order(model: ir.Model) -> list[str]:
    return [str(output.name) for node in model.graph for output in node.outputs if output.name]


def _exposing(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy (sharing its weights) in which ``names`` are outputs."""
    copy = model.clone()
    values = {output.name: output for node in copy.graph for output in node.outputs}
    missing = [name for name in names if name not in values]
    if missing:
        raise ModelError(
            f"the model has no tensor {', '.join(map(repr, missing[:3]))}",
            remedy="pass the names that inserting Q/DQ reported",
        )
    present = {output.name for output in copy.graph.outputs}
    copy.graph.outputs.extend(values[name] for name in dict.fromkeys(names) if name not in present)
    return copy


def _run(session: ort.InferenceSession, names: list[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    try:
        return list(session.run(names, dict(feed)))
    except Exception as error:  # ONNX Runtime's exceptions share no public base class
        raise ModelError(f"the model fails while its layers are compared: {str(error)[:300]}") from None


def _add(name: str, x: np.ndarray, y: np.ndarray, signal: dict[str, float], noise: dict[str, float]) -> None:
    if x.shape != y.shape:
        raise ModelError(f"tensor {name!r} has shape {x.shape} in the float model, {y.shape} in the quantized model")
    if not np.issubdtype(x.dtype, np.floating):
        return
    x = x.astype(np.float64)
    signal[name] += float(np.square(x).sum())
    noise[name] += float(np.square(x - y).sum())


def _rank(model: ir.Model, signal: Mapping[str, float], noise: Mapping[str, float]) -> tuple[TensorError, ...]:
    """Worst first. A tensor's own share is what its noise-to-signal ratio exceeds that of its worst input by."""
    ratios = {name: noise[name] / signal[name] for name in signal if signal[name] > 0}
    carried: dict[str, float] = {}
    errors = []
    for depth, node in enumerate(model.graph):
        inherited = max((carried.get(str(value.name), 0.0) for value in node.inputs if value is not None), default=0.0)
        for output in node.outputs:
            name = str(output.name)
            ratio = ratios.get(name)
            carried[name] = inherited if ratio is None else ratio
            if ratio is None:
                continue
            if not np.isfinite(ratio):
                ratio = carried[name] = 1e20
            errors.append(
                TensorError(
                    tensor=name,
                    node=str(node.name),
                    op_type=node.op_type,
                    depth=depth,
                    sqnr_db=round(bounded_db(-10 * np.log10(ratio) if ratio > 0 else np.inf), 3),
                    own_share=round(max(0.0, 1 - inherited / ratio), 4) if ratio > 0 else 0.0,
                )
            )
    return tuple(sorted(errors, key=lambda error: (error.sqnr_db, error.depth)))
