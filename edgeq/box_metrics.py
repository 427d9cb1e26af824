"""How far two lists of boxes are the same, and how good a detector is by what pictures are said to hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["AGREEMENT", "BOX_TOLERANCE", "THRESHOLDS", "Boxes", "average_precision", "box_overlaps", "matched_boxes"]

AGREEMENT = "box agreement"
"""What the metric is called that says how many boxes of two models are the same."""

THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""The least overlaps over which COCO takes the mean."""

BOX_TOLERANCE = 10.0
"""Points by which other kernels may fall short of what was recorded: a box near ``least_score`` comes and goes."""

_RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Boxes:
    """What is in one picture: boxes float ``[n, 4]`` (left, top, right, bottom), classes and scores ``[n]``.

    What was found stands by falling score; of what is said to be there the scores are of no meaning.
    """

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray


def box_overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union, float64 ``[n, m]``, of boxes ``[n, 4]`` and ``[m, 4]``: left, top, right, bottom.

    0 where both are without area.
    """
    a, b = a.astype(np.float64)[:, None], b.astype(np.float64)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    both = np.maximum(sides, 0).prod(axis=-1)
    areas = [np.maximum(boxes[..., 2:] - boxes[..., :2], 0).prod(axis=-1) for boxes in (a, b)]
    either = areas[0] + areas[1] - both
    return np.asarray(np.divide(both, either, out=np.zeros_like(both), where=either > 0))


def matched_boxes(overlaps: np.ndarray, same: np.ndarray, least: float = 0.5) -> np.ndarray:
    """For each box found, the row of the reference's that it is, or -1: int64 ``[found]``.

    Each in turn, the most probable first, takes the one that it overlaps most of those that are left, are of the
    ``same`` class and are overlapped by ``least``, as COCO's evaluation does it.

    Args:
        overlaps: Intersection over union, ``[found, reference]``; found ones by falling score.
        same: Whether their classes are the same, bool ``[found, reference]``.
        least: The least overlap.
    """
    free = np.where(same, overlaps, -1.0)
    taken = np.full(len(free), -1)
    for row in range(len(free) if free.shape[1] else 0):
        best = int(free[row].argmax())
        if free[row, best] >= least:
            taken[row] = best
            free[:, best] = -1.0
    return taken


def average_precision(
    truths: Sequence[Boxes], found: Sequence[Boxes], thresholds: Sequence[float] = THRESHOLDS
) -> float:
    """COCO's average precision, 0 to 1: the mean over classes that there are, and over ``thresholds`` of overlap.

    For each, precision is read off at 101 recalls from the curve made monotone (Lin et al. 2014, "Microsoft COCO",
    https://arxiv.org/abs/1405.0312; ``pycocotools.cocoeval``). Both sequences are of the same pictures, in order.
    NaN where there is nothing to be found.
    """
    classes = np.unique(np.concatenate([truth.classes for truth in truths])) if truths else np.array([])
    figures = [_curve(truths, found, int(label), least) for label in classes for least in thresholds]
    return float(np.mean(figures)) if figures else float("nan")


def _curve(truths: Sequence[Boxes], found: Sequence[Boxes], label: int, least: float) -> float:
    scores, hits, count = [], [], 0
    for truth, made in zip(truths, found, strict=True):
        there, ours = truth.boxes[truth.classes == label], made.boxes[made.classes == label]
        taken = matched_boxes(box_overlaps(ours, there), np.ones((len(ours), len(there)), bool), least)
        scores.append(made.scores[made.classes == label])
        hits.append(taken >= 0)
        count += len(there)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    right = np.cumsum(np.concatenate(hits)[order])
    if not len(right):
        return 0.0
    precision = np.maximum.accumulate((right / np.arange(1, len(right) + 1))[::-1])[::-1]
    places = np.searchsorted(right / count, _RECALLS, side="left")
    return float(np.where(places < len(right), precision[np.minimum(places, len(right) - 1)], 0.0).mean())
