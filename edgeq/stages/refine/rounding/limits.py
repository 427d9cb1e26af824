"""Which integers a weight may take: the ends of its type, and neighbours that must not saturate together."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgeq.pairs import multiplied_rows
from edgeq.qtypes import IntType, TensorSpec
from edgeq.stages.refine.rounding.moments import weight_matrix

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

    @classmethod
    def in_pairs(cls, node: ir.Node, weight: np.ndarray, spec: TensorSpec, most: int | None) -> Limits:
        """Those of a kernel that adds two products in 16 bits: ``most`` is the target's ``pair_limit``, or None.

        Only products of 8-bit integers saturate, and a depthwise Conv widens each (``edgeq.pairs``).
        """
        limits = cls.of(spec)
        order = None
        if most is not None and spec.dtype == IntType(8, True):
            order = multiplied_rows(node, np.arange(weight.size).reshape(weight.shape))
        if most is None or order is None:
            return limits
        matrix = weight_matrix(node, np.arange(weight.size).reshape(weight.shape))
        # All output channels are multiplied in the same order, so that the first one tells of all.
        place = np.argsort(matrix[0, 0])[np.searchsorted(np.sort(matrix[0, 0]), order[0])]
        partner = np.full(len(place), -1)
        even = place[: len(place) // 2 * 2].reshape(-1, 2)
        partner[even[:, 0]], partner[even[:, 1]] = even[:, 1], even[:, 0]
        return replace(limits, partner=partner, most=most)

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
