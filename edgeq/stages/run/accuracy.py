"""How much accuracy the quantized model loses against the float model, streamed over any number of samples.

The primary metric, which a contract is about, is the one closest to what users feel: labels give
top-1 accuracy, text pairs recall@1, a metric of the user's own is taken as it is; without any of
these a classifier is judged by top-1 agreement with the float model, everything else by cosine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgeq.box_metrics import AGREEMENT, Boxes
from edgeq.errors import CalibrationError, ConfigError, ModelError
from edgeq.interface import BoxesOutput
from edgeq.metrics import recall_at_1, top_k_accuracy, top_k_agreement
from edgeq.padding import mask_of
from edgeq.progress import Progress, Silent, track
from edgeq.report import Metric
from edgeq.runtime import Optimization
from edgeq.stages.run.boxes import PRECISION, BoxCloseness, precision_metrics, read_boxes
from edgeq.stages.run.closeness import Closeness, compare_outputs, signals
from edgeq.stages.run.predict import Predict, Reference, predictor

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgeq.target import Provider

__all__ = ["Evaluation", "evaluate", "evaluate_custom", "evaluate_pairs", "metric_drop", "pool", "score"]

Arrays = Mapping[str, np.ndarray]

_PRIMARY = ("top-1 accuracy", "top-1 agreement", PRECISION, AGREEMENT)

Kept = tuple[dict[str, np.ndarray], ...]


@dataclass(frozen=True)
class Evaluation:
    """Metrics, the primary one's name and its ``drop`` (see ``metric_drop``).

    ``drop`` is NaN where the float model did not run. ``sample_inputs`` are the first batches that were fed,
    ``reference_outputs`` the float model's answers, ``sqnr_db`` the quantized model's closeness to them, per
    output, and ``box_agreement``, in percent, of the output that holds boxes.
    """

    metrics: tuple[Metric, ...]
    primary: str
    drop: float
    sample_inputs: tuple[dict[str, np.ndarray], ...] = ()
    reference_outputs: tuple[dict[str, np.ndarray], ...] = ()
    sqnr_db: Mapping[str, float] = field(default_factory=dict)
    box_agreement: Mapping[str, float] = field(default_factory=dict)


def metric_drop(metric: Metric) -> float:
    """What was lost, in percentage points; negative for a gain.

    Float minus quantized where the float model has a figure of its own; otherwise the distance to
    a perfect agreement of 100 % or a cosine of 1 (times 100).
    """
    if metric.float_value is not None:
        return metric.float_value - metric.value
    return 100 - metric.value if metric.unit == "%" else 100 * (1 - metric.value)


def evaluate(
    float_model: ir.Model | str | os.PathLike[str] | Reference,
    quantized: ir.Model | str | os.PathLike[str],
    feed: Iterable[Mapping[str, np.ndarray]],
    *,
    task: str | None,
    source: str,
    provider: Provider | None = None,
    optimization: Optimization = "all",
    threads: int = 0,
    labels: Sequence[Sequence[int]] | None = None,
    boxes: BoxesOutput | None = None,
    truths: Sequence[Boxes] | None = None,
    keep: int = 4,
    progress: Progress | None = None,
) -> Evaluation:
    """Compare both models on the same batches; only logits and pooled embeddings are kept, as they are small.

    Args:
        float_model: The reference; runs on the CPU. A ``Reference`` remembers its answers for the next comparison.
        quantized: Runs on ``provider`` (default: the CPU) with ``optimization``.
        feed: Batches by input name; axis 0 counts samples.
        task: ``"image-classification"``, ``"feature-extraction"``, ... or None.
        source: On what this is measured, in words, for the report.
        provider: Execution provider of the quantized model.
        optimization: ``"none"`` for the specification's numerics.
        threads: Intra-op threads, 0 for all cores.
        labels: For each sample, the class ids that count as right.
        boxes: The output that holds boxes, if there is one.
        truths: For each sample, the boxes that should be found.
        keep: How many batches to return as samples.
        progress: Told of every batch.

    Raises:
        CalibrationError: no data, or another number of labels than samples.
        ModelError: a model does not load or run.
    """
    total = len(feed) if isinstance(feed, Sized) else None
    with (
        predictor(float_model, threads=threads) as reference_run,
        predictor(quantized, provider=provider, optimization=optimization, threads=threads) as quantized_run,
    ):
        answers = ((batch, reference_run(batch), quantized_run(batch)) for batch in feed)
        return score(
            track(answers, progress or Silent(), "measuring accuracy", total),
            task=task,
            source=source,
            labels=labels,
            boxes=boxes,
            truths=truths,
            keep=keep,
        )


def score(
    answers: Iterable[tuple[Arrays, Arrays | None, Arrays]],
    *,
    task: str | None,
    source: str,
    labels: Sequence[Sequence[int]] | None = None,
    boxes: BoxesOutput | None = None,
    truths: Sequence[Boxes] | None = None,
    keep: int = 4,
) -> Evaluation:
    """The metrics of batches that have been run: what was fed, the float model's answer, the quantized model's.

    Without the float model's answers only what labels say is measured. The arguments are those of ``evaluate``.

    Raises:
        CalibrationError: no data, another number of labels than samples, or neither references nor labels.
    """
    errors: dict[str, Closeness] = {}
    samples = _Samples(keep, boxes)
    agreeing = None if boxes is None else BoxCloseness(boxes)
    found: tuple[list[Boxes], list[Boxes]] = ([], [])
    classes: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    pooled, count = Closeness(), 0
    for batch, reference, output in answers:
        logits = _logits(output, task, labels is not None)
        if logits:
            classes[1].append(output[logits])
        first = next(iter(output.values()))
        count += len(first) if first.ndim else 1
        if boxes is not None and truths is not None:
            found[1].extend(read_boxes(output, boxes))
            found[0].extend(read_boxes(reference, boxes) if reference is not None else ())
        if reference is None:
            continue
        for name in signals(_finite(reference, source), boxes):
            errors.setdefault(name, Closeness()).add(reference[name], output[name], mask_of(batch))
        if agreeing is not None:
            agreeing.add(reference, output)
        samples.add(batch, reference, output)
        if logits:
            classes[0].append(reference[logits])
        if task == "feature-extraction" and "attention_mask" in batch:
            pooled.add(_embedding(batch, reference), _embedding(batch, output))
    if not count:
        raise CalibrationError("there is no data to measure accuracy on", remedy="give --evaluation a folder with data")
    if truths is not None and len(truths) != count:
        raise CalibrationError(f"there are labels of {len(truths)} pictures, but {count} samples")
    metrics = [
        *(precision_metrics(truths, found[0] or None, found[1], source) if truths is not None else ()),
        *(agreeing.metrics("", source) if agreeing is not None and agreeing.rows else ()),
        *_class_metrics(classes, labels, count, source),
        *_closeness("pooled ", pooled, source),
        *(_all_closeness(errors, source) if errors else ()),
    ]
    if not metrics:
        raise CalibrationError(
            "there is nothing to compare the outputs with", remedy="give --labels, or the float model with --reference"
        )
    primary = next((m for m in metrics if m.name in _PRIMARY), None)
    primary = primary or next(m for m in metrics if m.name.endswith("cosine"))
    drop = metric_drop(primary) if samples.held or samples.empty else float("nan")
    return Evaluation(tuple(metrics), primary.name, drop, *samples.results())


def evaluate_pairs(
    float_model: ir.Model | str | os.PathLike[str] | Reference,
    quantized: ir.Model | str | os.PathLike[str],
    queries: Iterable[Mapping[str, np.ndarray]],
    documents: Iterable[Mapping[str, np.ndarray]],
    *,
    source: str,
    provider: Provider | None = None,
    optimization: Optimization = "all",
    threads: int = 0,
    keep: int = 4,
    progress: Progress | None = None,
) -> Evaluation:
    """Retrieval: query ``i`` should find document ``i`` among all documents, by cosine of pooled embeddings.

    ``queries`` and ``documents`` are tokenized batches with ``attention_mask``; arguments and errors
    are otherwise those of ``evaluate``.
    """
    pooled, samples = Closeness(), _Samples(keep)
    sides: list[tuple[np.ndarray, np.ndarray]] = []
    with (
        predictor(float_model, threads=threads) as reference_run,
        predictor(quantized, provider=provider, optimization=optimization, threads=threads) as quantized_run,
    ):
        for step, feed in (("embedding queries", queries), ("embedding documents", documents)):
            kept: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
            for batch in track(feed, progress or Silent(), step):
                reference, output = _finite(reference_run(batch), source), quantized_run(batch)
                samples.add(batch, reference, output)
                kept[0].append(_embedding(batch, reference))
                kept[1].append(_embedding(batch, output))
                pooled.add(kept[0][-1], kept[1][-1])
            if not kept[0]:
                raise CalibrationError("there are no text pairs to measure retrieval on", remedy="check the file")
            sides.append((np.concatenate(kept[0]), np.concatenate(kept[1])))
    (float_queries, our_queries), (float_documents, our_documents) = sides
    if len(float_queries) != len(float_documents):
        raise CalibrationError(f"there are {len(float_queries)} queries but {len(float_documents)} documents")
    recall = Metric(
        name="recall@1",
        value=100 * recall_at_1(our_queries, our_documents),
        float_value=100 * recall_at_1(float_queries, float_documents),
        unit="%",
        samples=len(float_queries),
        source=source,
    )
    return Evaluation(
        (recall, *_closeness("pooled ", pooled, source)), recall.name, metric_drop(recall), *samples.results()
    )


def evaluate_custom(
    float_model: ir.Model | str | os.PathLike[str] | Reference,
    quantized: ir.Model | str | os.PathLike[str],
    metric: str,
    *,
    provider: Provider | None = None,
    optimization: Optimization = "all",
    threads: int = 0,
) -> Metric:
    """The user's own metric, ``"path/to/metric.py:function"``, of both models.

    ``function(predict)`` gets a function from arrays by input name to arrays by output name and
    returns a number, higher being better. A contract compares it in its own unit, so it should
    return a percentage (87.5, not 0.875). The file is code of the user's and is executed.

    Raises:
        ConfigError: no such file or function, it raises, or it returns no finite number.
    """
    function, name = _load_metric(metric)
    values = []
    for model, where in ((float_model, None), (quantized, provider)):
        with predictor(model, provider=where, optimization=optimization, threads=threads) as predict:
            try:
                values.append(float(function(predict)))
            except ModelError:
                raise
            except Exception as error:  # the user's code may raise anything
                raise ConfigError(
                    f"the metric raised {type(error).__name__}: {error}", where=metric, remedy="correct the function"
                ) from None
    if not np.isfinite(values).all():
        raise ConfigError(f"the metric returned {values[0]} and {values[1]}, not two numbers", where=metric)
    source = f"the user's {Path(metric).name}"  # without its folder: same input, same bytes
    return Metric(name=name, value=values[1], float_value=values[0], samples=0, source=source)


def _finite(outputs: Arrays, source: str) -> Arrays:
    """The float model's answers, which all is measured against; raises CalibrationError if they are no numbers."""
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            what = "NaN" if np.isnan(array).any() else "infinity"
            raise CalibrationError(
                f"output {name!r} of the float model holds {what}: accuracy cannot be measured against it",
                where=source,
                remedy="find the sample that gives it, and remove it or repair the model",
            )
    return outputs


def pool(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean over the tokens that ``mask`` [N, L] allows of ``hidden`` [N, L, H], normalized: [N, H] float64."""
    weights = mask[..., None].astype(np.float64)
    mean = (hidden * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-9)
    return mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)


class _Samples:
    """The first few batches, with what both models said; of a detector's those in which something is found."""

    def __init__(self, keep: int, boxes: BoxesOutput | None = None) -> None:
        self.keep = keep
        self.boxes = boxes
        self.held: list[tuple[dict[str, np.ndarray], Arrays, Arrays]] = []
        self.empty: list[tuple[dict[str, np.ndarray], Arrays, Arrays]] = []

    def add(self, batch: Arrays, reference: Arrays, output: Arrays) -> None:
        found = self.boxes is None or bool(np.any(reference[self.boxes.count]))
        place = self.held if found else self.empty
        if len(place) < self.keep:
            place.append((dict(batch), dict(reference), dict(output)))

    def results(self) -> tuple[Kept, Kept, dict[str, float], dict[str, float]]:
        kept = [*self.held, *self.empty][: self.keep]
        inputs, references, outputs = ([dict(one[side]) for one in kept] for side in range(3))
        likeness = compare_outputs(inputs, references, outputs, self.boxes) if kept else {}
        errors = {name: one.value for name, one in likeness.items() if isinstance(one, Closeness)}
        boxes = {name: one.value for name, one in likeness.items() if not isinstance(one, Closeness)}
        return tuple(inputs), tuple(references), errors, boxes


def _logits(outputs: Mapping[str, np.ndarray], task: str | None, labelled: bool) -> str | None:
    """The output that holds logits [N, classes], if the model is a classifier."""
    if not labelled and not (task or "").endswith("classification"):
        return None
    return next((name for name, array in outputs.items() if array.ndim == 2 and array.shape[1] > 1), None)


def _embedding(batch: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Normalized embeddings [N, H] as users compute them: the model's own, or pooled from its tokens."""
    own = outputs.get("sentence_embedding")
    hidden = next((array for array in outputs.values() if array.ndim == 3), None)
    if own is not None or hidden is None:
        own = own if own is not None else next(iter(outputs.values()))
        own = own.reshape(len(own), -1).astype(np.float64)
        return own / np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-12)
    mask = batch.get("attention_mask")
    return pool(hidden, np.ones(hidden.shape[:2]) if mask is None else mask)


def _class_metrics(
    logits: tuple[list[np.ndarray], list[np.ndarray]],
    labels: Sequence[Sequence[int]] | None,
    count: int,
    source: str,
) -> list[Metric]:
    if labels is not None and (not logits[1] or len(labels) != count):
        what = "no output of logits [samples, classes]" if not logits[1] else f"{count} samples"
        raise CalibrationError(
            f"there are {len(labels)} labels, but {what}", remedy="give one label per sample of a classifier"
        )
    if not logits[1]:
        return []
    output = np.concatenate(logits[1])
    reference = np.concatenate(logits[0]) if logits[0] else None
    metrics = []
    for k in (1, 5):
        if output.shape[1] <= k:
            continue
        if labels is not None:
            theirs = None if reference is None else 100 * top_k_accuracy(reference, labels, k)
            metrics.append(
                _metric(f"top-{k} accuracy", 100 * top_k_accuracy(output, labels, k), theirs, "%", count, source)
            )
        if reference is not None:
            agreement = 100 * top_k_agreement(reference, output, k)
            metrics.append(_metric(f"top-{k} agreement", agreement, None, "%", count, source))
    return sorted(metrics, key=lambda metric: "accuracy" not in metric.name)


def _all_closeness(errors: Mapping[str, Closeness], source: str) -> list[Metric]:
    if len(errors) == 1:
        return _closeness("", next(iter(errors.values())), source)
    worst = min(errors.values(), key=lambda error: error.sqnr_db)
    each = [metric for name, error in errors.items() for metric in _closeness(f"{name} ", error, source)]
    return [*_closeness("worst output's ", worst, source), *each]


def _closeness(prefix: str, error: Closeness, source: str) -> list[Metric]:
    if not error.rows:
        return []
    return [
        _metric(f"{prefix}cosine", round(error.cosine, 6), None, "", error.rows, source),
        _metric(f"{prefix}SQNR", round(error.sqnr_db, 3), None, "dB", error.rows, source),
    ]


def _metric(
    name: str, value: float, float_value: float | None, unit: Literal["%", "dB", ""], samples: int, source: str
) -> Metric:
    return Metric(name=name, value=value, float_value=float_value, unit=unit, samples=samples, source=source)


def _load_metric(metric: str) -> tuple[Callable[[Predict], float], str]:
    import importlib.util

    file, _, name = metric.rpartition(":")
    path = Path(file)
    if not file or not path.is_file():
        raise ConfigError(f"no metric at {metric!r}", remedy="write it as path/to/metric.py:function")
    spec = importlib.util.spec_from_file_location(f"edgeq_metric_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(
            f"{file!r} is not a Python file", where=metric, remedy="write it as path/to/metric.py:function"
        )
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's code may raise anything
        raise ConfigError(f"the metric's file raised {type(error).__name__}: {error}", where=file) from None
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{file!r} has no function {name!r}", where=metric, remedy="check the name after the colon")
    return function, name
