"""How far two sets of outputs are apart. Higher is better in every metric here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["cosine", "recall_at_1", "sqnr_db", "top_k_accuracy", "top_k_agreement"]


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


def _top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """Class ids ``[samples, k]``, best first; ties go to the lower id, as argmax has it."""
    return np.argsort(-logits, axis=1, kind="stable")[:, :k]
