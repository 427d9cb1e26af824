"""How far two sets of outputs are apart. Higher is better in every metric here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["box_overlaps", "cosine", "matched_boxes", "recall_at_1", "sqnr_db", "top_k_accuracy", "top_k_agreement"]


def sqnr_db(reference: np.ndarray, output: np.ndarray) -> float:
    """Signal to quantization noise in dB: ``10 log10(sum(r^2) / sum((r - o)^2))``.

    ``inf`` for identical arrays, ``-inf`` if the output is not finite or the reference is all zero
    and the output is not.
    """
    if not np.isfinite(output).all():
        return float("-inf")
    reference = reference.astype(np.float64, copy=False)
    noise = float(np.square(reference - output).sum())
    signal = float(np.square(reference).sum())
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal > 0 else float("-inf")


def cosine(reference: np.ndarray, output: np.ndarray) -> float:
    """Mean cosine of the angle between the rows of two ``[samples, ...]`` arrays."""
    a = reference.reshape(len(reference), -1).astype(np.float64)
    b = output.reshape(len(output), -1).astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = (np.linalg.norm(a, axis=1) == 0) & (np.linalg.norm(b, axis=1) == 0)
    return float(np.where(both_zero, 1.0, (a * b).sum(axis=1) / np.maximum(norms, 1e-30)).mean())


def top_k_agreement(reference: np.ndarray, output: np.ndarray, k: int = 1) -> float:
    """Share of samples whose best class by ``reference`` is among the ``k`` best by ``output``.

    Both are logits ``[samples, classes]``.
    """
    best = reference.argmax(axis=1)
    return float((_top_k(output, k) == best[:, None]).any(axis=1).mean())


def top_k_accuracy(output: np.ndarray, labels: Sequence[Sequence[int]], k: int = 1) -> float:
    """Share of samples with an accepted class among the ``k`` best.

    ``labels`` holds, for each sample, the class ids that count as right.
    """
    hits = [
        not set(map(int, row)).isdisjoint(accepted) for row, accepted in zip(_top_k(output, k), labels, strict=True)
    ]
    return float(np.mean(hits))


def recall_at_1(queries: np.ndarray, documents: np.ndarray) -> float:
    """Share of queries whose nearest document by cosine is their own: both ``[pairs, features]``."""
    q = queries / np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-30)
    d = documents / np.maximum(np.linalg.norm(documents, axis=1, keepdims=True), 1e-30)
    return float(((q @ d.T).argmax(axis=1) == np.arange(len(q))).mean())


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


def _top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """Class ids ``[samples, k]``, best first; ties go to the lower id, as argmax has it."""
    return np.argsort(-logits, axis=1, kind="stable")[:, :k]
