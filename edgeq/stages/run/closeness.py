"""How close the outputs of two models are, summed up over any number of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from edgeq.errors import ValidationError
from edgeq.interface import BoxesOutput
from edgeq.metrics import cosine
from edgeq.padding import answered, mask_of
from edgeq.report import Metric, bounded_db
from edgeq.stages.run.boxes import BoxCloseness, box_group

__all__ = ["Closeness", "Likeness", "closeness_metrics", "compare_outputs", "signals"]


@dataclass
class Closeness:
    """Sums over all samples of one output: memory does not grow with their number."""

    signal: float = 0.0
    noise: float = 0.0
    cosines: float = 0.0
    rows: int = 0

    def add(self, reference: np.ndarray, output: np.ndarray, mask: np.ndarray | None = None) -> None:
        """One batch of the float model's output and the quantized model's, of the same shape.

        What stands for padding by ``mask`` (see ``padding.mask_of``) is left out.
        """
        reference, output = answered(reference, mask).astype(np.float64), answered(output, mask)
        self.signal += float(np.square(reference).sum())
        self.noise += float(np.square(reference - output).sum())
        self.rows += len(reference) if reference.ndim else 1
        likeness = cosine(np.atleast_1d(reference), np.atleast_1d(output)) if np.isfinite(output).all() else 0.0
        self.cosines += likeness * (len(reference) if reference.ndim else 1)

    @property
    def sqnr_db(self) -> float:
        """Over all samples at once, within ``LIMIT_DB``; the lowest if an output was not finite."""
        if not np.isfinite(self.noise):
            return bounded_db(-np.inf)
        if self.noise == 0:
            return bounded_db(np.inf)
        return bounded_db(10 * np.log10(self.signal / self.noise)) if self.signal > 0 else bounded_db(-np.inf)

    noun: ClassVar[str] = "SQNR"
    unit: ClassVar[Literal["dB"]] = "dB"

    @property
    def value(self) -> float:
        """In ``unit``, as it is recorded and compared."""
        return round(self.sqnr_db, 3)

    def asked(self, recorded: float, tolerance_db: float) -> float:
        """The least that is needed where ``recorded`` was found before."""
        return recorded - tolerance_db

    @property
    def cosine(self) -> float:
        """Mean over the samples; a sample that is not finite counts as 0."""
        return self.cosines / max(self.rows, 1)


Likeness = Closeness | BoxCloseness
"""Of one output: both have a ``value`` in a ``unit``, the ``noun`` for it, and how far one may fall short."""


def signals(outputs: Mapping[str, np.ndarray], boxes: BoxesOutput | None = None) -> list[str]:
    """The outputs whose SQNR says something: floats, or all where there are none (numbers of classes are none).

    Lists of ``boxes`` have none: one more or less moves all that follow.
    """
    names = [name for name in outputs if name not in box_group(boxes)]
    return [name for name in names if outputs[name].dtype.kind == "f"] or names


def compare_outputs(
    inputs: Sequence[Mapping[str, np.ndarray]],
    references: Sequence[Mapping[str, np.ndarray]],
    answers: Sequence[Mapping[str, np.ndarray]],
    boxes: BoxesOutput | None = None,
) -> dict[str, Likeness]:
    """How close each output came over all batches, by name; arrays are of the same batches in the same order.

    What was computed for padding, as ``inputs`` tell, is left out. With ``boxes`` these outputs are compared as
    boxes, under the name of the one that holds them.

    Raises:
        ValidationError: an output is missing or has another shape than its reference.
    """
    found: dict[str, Likeness] = {name: Closeness() for name in signals(references[0], boxes)}
    if boxes is not None:
        found[boxes.name] = BoxCloseness(boxes)
    for batch, expected, answer in zip(inputs, references, answers, strict=True):
        for name, reference in expected.items():
            if name not in answer or answer[name].shape != reference.shape:
                shape = answer[name].shape if name in answer else "missing"
                raise ValidationError(f"output {name!r} is {shape}, the reference has shape {reference.shape}")
        for name, one in found.items():
            if isinstance(one, BoxCloseness):
                one.add(expected, answer)
            else:
                one.add(expected[name], answer[name], mask_of(batch))
    return found


def closeness_metrics(found: Mapping[str, Likeness], *, where: str = "", source: str) -> list[Metric]:
    """The cosine of the worst output and the SQNR of each; ``where`` stands behind their names: ``" on qnn"``.

    Of boxes instead how many agree.
    """
    signal = {name: one for name, one in found.items() if isinstance(one, Closeness)}
    metrics = [
        metric for one in found.values() if isinstance(one, BoxCloseness) for metric in one.metrics(where, source)
    ]
    if signal:
        worst = min(signal.values(), key=lambda one: one.cosine)
        metrics.append(Metric(name=f"cosine{where}", value=round(worst.cosine, 6), samples=worst.rows, source=source))
    metrics += [
        Metric(
            name=f"SQNR{where}" if len(found) == 1 else f"{name} SQNR{where}",
            value=round(one.sqnr_db, 3),
            unit="dB",
            samples=one.rows,
            source=source,
        )
        for name, one in signal.items()
    ]
    return metrics
