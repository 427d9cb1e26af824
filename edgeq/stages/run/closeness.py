"""How close the outputs of two models are, summed up over any number of samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeq.metrics import cosine
from edgeq.report import bounded_db

__all__ = ["Closeness"]


@dataclass
class Closeness:
    """Sums over all samples of one output: memory does not grow with their number."""

    signal: float = 0.0
    noise: float = 0.0
    cosines: float = 0.0
    rows: int = 0

    def add(self, reference: np.ndarray, output: np.ndarray) -> None:
        """One batch of the float model's output and the quantized model's, of the same shape."""
        reference = reference.astype(np.float64)
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

    @property
    def cosine(self) -> float:
        """Mean over the samples; a sample that is not finite counts as 0."""
        return self.cosines / max(self.rows, 1)
