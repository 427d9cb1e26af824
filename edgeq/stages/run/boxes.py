"""How far the boxes of two detectors agree: lists of any length, in an order that a hair's breadth changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from edgeq.box_metrics import (
    AGREEMENT,
    BOX_TOLERANCE,
    THRESHOLDS,
    Boxes,
    average_precision,
    box_overlaps,
    matched_boxes,
)
from edgeq.interface import BoxesOutput
from edgeq.report import Metric

__all__ = ["PRECISION", "BoxCloseness", "box_group", "precision_metrics", "read_boxes"]

PRECISION = "mAP@50-95"


def box_group(boxes: BoxesOutput | None) -> frozenset[str]:
    """The names of the outputs that are boxes together."""
    return frozenset() if boxes is None else frozenset((boxes.name, boxes.scores, boxes.classes, boxes.count))


def read_boxes(outputs: Mapping[str, np.ndarray], boxes: BoxesOutput) -> list[Boxes]:
    """One entry for each picture of a batch, without empty rows."""
    rows = zip(outputs[boxes.name], outputs[boxes.scores], outputs[boxes.classes], strict=True)
    counts = np.clip(outputs[boxes.count].ravel(), 0, boxes.most).astype(int)
    return [
        Boxes(found[:count], classes[:count], scores[:count])
        for (found, scores, classes), count in zip(rows, counts, strict=True)
    ]


@dataclass
class BoxCloseness:
    """Sums over all pictures: how many boxes the reference has, how many the other model, how many are the same.

    The same are two of one class that overlap by half (see ``edgeq.box_metrics.matched_boxes``). ``rows`` counts
    pictures.
    """

    boxes: BoxesOutput
    wanted: int = 0
    found: int = 0
    matched: int = 0
    overlap: float = 0.0
    rows: int = 0

    noun: ClassVar[str] = AGREEMENT
    unit: ClassVar[Literal["%"]] = "%"

    def add(self, reference: Mapping[str, np.ndarray], output: Mapping[str, np.ndarray]) -> None:
        """One batch of the outputs of both models, by name."""
        pairs = zip(read_boxes(reference, self.boxes), read_boxes(output, self.boxes), strict=True)
        for wanted, found in pairs:
            overlaps = box_overlaps(found.boxes, wanted.boxes)
            taken = matched_boxes(overlaps, found.classes[:, None] == wanted.classes[None])
            rows = np.flatnonzero(taken >= 0)
            self.overlap += float(overlaps[rows, taken[rows]].sum())
            self.matched += len(rows)
            self.wanted += len(wanted.boxes)
            self.found += len(found.boxes)
            self.rows += 1

    @property
    def value(self) -> float:
        """F1 in percent: ``2 matched / (wanted + found)``; 100 where neither has any."""
        everything = self.wanted + self.found
        return round(200 * self.matched / everything, 3) if everything else 100.0

    def asked(self, recorded: float, tolerance_db: float) -> float:
        """The least that is needed where ``recorded`` was found before."""
        del tolerance_db  # boxes have a tolerance of their own, in points
        return recorded - BOX_TOLERANCE

    def metrics(self, where: str, source: str) -> list[Metric]:
        """The share that agrees, and by how much those overlap; their samples are the reference's boxes."""
        overlap = 100 * self.overlap / self.matched if self.matched else 0.0
        text = f"{source}, {self.wanted} boxes of the float model in {self.rows} pictures"
        found = ((AGREEMENT, self.value), ("overlap of boxes that agree", round(overlap, 3)))
        return [
            Metric(name=f"{name}{where}", value=value, unit=self.unit, samples=self.wanted, source=text)
            for name, value in found
        ]


def precision_metrics(
    truths: Sequence[Boxes], reference: Sequence[Boxes] | None, output: Sequence[Boxes], source: str
) -> list[Metric]:
    """COCO's mean average precision of both models, in percent, of the boxes that they give; without pictures none."""
    text = f"{source}, {sum(len(truth.classes) for truth in truths)} labelled boxes"
    metrics = []
    for name, thresholds in ((PRECISION, THRESHOLDS), ("mAP@50", (0.5,))):
        ours, theirs = (
            None if found is None else 100 * average_precision(truths, found, thresholds)
            for found in (output, reference)
        )
        assert ours is not None
        metrics.append(Metric(name=name, value=ours, float_value=theirs, unit="%", samples=len(truths), source=text))
    return metrics
