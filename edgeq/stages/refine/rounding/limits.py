"""Which integers a weight may take: the ends of its type, and neighbours that must not saturate together."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from edgeq.qtypes import TensorSpec

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Levels count from the zero point, ``weight = scale * level``, and go from ``low`` to ``high``.

    ``partner`` ``[K]`` (``[G, K]`` once permuted) names for each column the one that a kernel adds it to in 16
    bits, or -1: two levels of one sign must not go beyond ``most`` together (the target's ``pair_limit``).
    """

    low: int
    high: int
    partner: np.ndarray | None = None
    most: int = 0

    @classmethod
    def of(cls, spec: TensorSpec) -> Limits:
        return cls(spec.qmin - spec.middle, spec.qmax - spec.middle)

    def permuted(self, order: np.ndarray) -> Limits:
        """The same for columns in ``order``, ``[G, K]``."""
        if self.partner is None:
            return self
        place = np.empty_like(order)
        np.put_along_axis(place, order, np.broadcast_to(np.arange(order.shape[1]), order.shape), axis=1)
        partner = self.partner[order]
        moved = np.where(partner < 0, -1, np.take_along_axis(place, np.maximum(partner, 0), axis=1))
        return replace(self, partner=moved)

    def within(self, part: slice) -> Limits:
        """The same for some columns: a partner outside is none. Pairs do not reach over the blocks of a weight."""
        if self.partner is None:
            return self
        here = self.partner[part] - part.start
        return replace(self, partner=np.where((here < 0) | (here >= len(here)), -1, here))

    def round(self, wanted: np.ndarray, levels: np.ndarray, column: int) -> np.ndarray:
        """The levels nearest to ``wanted`` ``[G, M]`` that ``column`` may take beside ``levels`` ``[G, M, K]``.

        A partner that is not rounded yet holds zero, and keeps to the limit when its turn comes.
        """
        low: np.ndarray | int = self.low
        high: np.ndarray | int = self.high
        if self.partner is not None:
            at = self.partner[:, column]
            beside = np.where(at[:, None] < 0, 0, levels[np.arange(len(levels)), :, at])
            low = np.maximum(low, np.where(beside < 0, -self.most - beside, low))
            high = np.minimum(high, np.where(beside > 0, self.most - beside, high))
        return np.clip(np.rint(wanted), low, high)

    def broken(self, levels: np.ndarray) -> bool:
        """Whether any of ``levels`` ``[G, M, K]`` is beyond the limits (not permuted)."""
        if (levels < self.low).any() or (levels > self.high).any():
            return True
        if self.partner is None:
            return False
        here = np.flatnonzero(self.partner >= 0)
        one, other = levels[:, :, here].astype(np.int64), levels[:, :, self.partner[here]].astype(np.int64)
        return bool(((np.sign(one) == np.sign(other)) & (np.abs(one + other) > self.most)).any())
