"""Streaming statistics of one tensor: memory is fixed, parts merge, and the order does not matter.

The histogram's grid is anchored at zero and its bin width is a power of two: the smallest one at
which zero and all values seen fit into `MAX_BINS` bins. That width depends on the extrema alone,
and neighbouring bins of a grid are one bin of the next, so growing and merging lose nothing.
Zero is always covered because an affine quantizer must represent it: what bounds the error is the
distance from zero, and indices stay small enough to be exact in float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import numpy as np

from edgeq.qtypes import Histogram, TensorStats

__all__ = ["MASK_MAGNITUDE", "MAX_BINS", "SAMPLE_CAP", "Accumulator", "sample_stride"]

MAX_BINS = 4096
"""Most bins that a histogram spans, zero included; after growth at least half of them are in use."""

SAMPLE_CAP = 8192
"""Most values of one tensor that one call adds to the histogram (lo, hi and means use every value)."""

MASK_MAGNITUDE = 1e30
"""Values this far from zero do not carry information, they forbid: attention masks use -3.4e38 or -inf."""

_LEAST_EXPONENT = -120  # the reciprocal of the bin width stays finite in float32
_ZERO = MAX_BINS  # position of bin 0 in the working array, which spans [-MAX_BINS, MAX_BINS)

_SCALARS = ("lo", "hi", "near_lo", "near_hi", "sum_lo", "sum_hi")
_COUNTERS = ("values", "batches", "masked", "exponent")
_CHANNELS = ("channel_lo", "channel_hi", "channel_sum")


class Accumulator:
    """Folds the values of one tensor, call by call, into what `TensorStats` needs.

    ``average_lo`` and ``average_hi`` are the plain means of the extrema per call, as ONNX
    Runtime's ``MinMaxCalibrater(moving_average=True)`` computes them: unlike an exponential
    average they do not depend on the order of the samples.

    Not-a-number and +infinity raise ValueError and leave the accumulator as it was: the model
    has overflowed. -infinity is a mask; it enters ``lo`` as the lowest float32.
    """

    def __init__(self, channel_axis: int | None = None, cap: int = SAMPLE_CAP) -> None:
        self.channel_axis = channel_axis
        self.cap = cap
        self.lo = self.near_lo = math.inf
        self.hi = self.near_hi = -math.inf
        self.sum_lo = self.sum_hi = 0.0
        self.values = self.batches = self.masked = 0
        self.exponent = _LEAST_EXPONENT
        self.counts = np.zeros(2 * MAX_BINS, np.int64)
        self.channel_lo: np.ndarray | None = None
        self.channel_hi: np.ndarray | None = None
        self.channel_sum: np.ndarray | None = None

    def update(self, array: np.ndarray, index: int = 0) -> None:
        """Add one array of any float type; ``index`` (the sample's number) varies what the histogram samples.

        Raises:
            ValueError: the array holds NaN or +infinity, or has no channel axis or another number of
                channels than before; the text tells what was found.
        """
        if not array.size:
            return
        if array.dtype not in (np.float32, np.float64):
            array = array.astype(np.float32)
        array = np.ascontiguousarray(array)
        # The reductions pass NaN on, so no separate search for it is needed.
        lo, hi, channels = _fold(array, self.channel_axis)
        if math.isnan(lo) or hi == math.inf:
            raise ValueError("NaN" if math.isnan(lo) else "+infinity")
        if lo == -math.inf:
            array = np.maximum(array, np.finfo(np.float32).min)
            lo, hi, channels = _fold(array, self.channel_axis)
        if channels is not None and self.channel_lo is not None and channels[0].shape != self.channel_lo.shape:
            raise ValueError(f"{len(channels[0])} channels after {len(self.channel_lo)}")

        flat = array.reshape(-1)
        sample = flat[_offset(flat.size, self.cap, index) :: sample_stride(flat.size, self.cap)]
        near_lo, near_hi, masked = lo, hi, 0
        if lo <= -MASK_MAGNITUDE or hi >= MASK_MAGNITUDE:
            near = flat[np.abs(flat) < MASK_MAGNITUDE]
            sample = sample[np.abs(sample) < MASK_MAGNITUDE]
            masked = flat.size - near.size
            near_lo, near_hi = float(near.min(initial=math.inf)), float(near.max(initial=-math.inf))
        self._cover(near_lo, near_hi)
        positions = np.floor(sample * 2.0**-self.exponent).astype(np.intp)
        positions += _ZERO
        self.counts += np.bincount(positions, minlength=2 * MAX_BINS)

        self.lo, self.hi = min(self.lo, lo), max(self.hi, hi)
        self.sum_lo += lo
        self.sum_hi += hi
        self.values += flat.size
        self.batches += 1
        self.masked += masked
        if channels is not None:
            self._merge_channels(*channels)

    def merge(self, other: Accumulator) -> None:
        """Add what ``other`` has seen. Everything but the last bit of the means is independent of the order."""
        if other.channel_axis != self.channel_axis:
            raise ValueError(f"channel axis {other.channel_axis} is not {self.channel_axis}")
        self._cover(other.near_lo, other.near_hi)
        counts = other.counts
        for _ in range(self.exponent - other.exponent):
            counts = _halve(counts)
        self.counts += counts
        self.lo, self.hi = min(self.lo, other.lo), max(self.hi, other.hi)
        self.sum_lo += other.sum_lo
        self.sum_hi += other.sum_hi
        self.values += other.values
        self.batches += other.batches
        self.masked += other.masked
        if other.channel_lo is not None and other.channel_hi is not None and other.channel_sum is not None:
            self._merge_channels(other.channel_lo, other.channel_hi, other.channel_sum)

    def finish(self) -> TensorStats:
        """What was learned. Raises ValueError if no value was seen."""
        if not self.batches:
            raise ValueError("no values")
        width = 2.0**self.exponent
        if self.near_lo > self.near_hi:  # nothing but masks
            histogram = Histogram(np.zeros(1, np.int64), 1.0, 0)
        else:
            first, last = math.floor(self.near_lo / width), math.floor(self.near_hi / width)
            histogram = Histogram(self.counts[_ZERO + first : _ZERO + last + 1].copy(), width, first)
        return TensorStats(
            lo=self.lo,
            hi=self.hi,
            # Rounding of the sums must not carry an average past the extrema.
            average_lo=max(self.sum_lo / self.batches, self.lo),
            average_hi=min(self.sum_hi / self.batches, self.hi),
            values=self.values,
            batches=self.batches,
            histogram=histogram,
            channel_axis=None if self.channel_sum is None else self.channel_axis,
            channel_lo=self.channel_lo,
            channel_hi=self.channel_hi,
            channel_mean=None if self.channel_sum is None else self.channel_sum * (len(self.channel_sum) / self.values),
            masked=self.masked,
        )

    def state(self) -> dict[str, np.ndarray]:
        """All that `restore` needs to go on, bit for bit, as arrays."""
        used = np.flatnonzero(self.counts)
        first, last = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)
        arrays = {
            "scalars": np.array([getattr(self, name) for name in _SCALARS], np.float64),
            "counters": np.array([*(getattr(self, name) for name in _COUNTERS), first], np.int64),
            "counts": self.counts[first:last],
        }
        arrays.update({name: getattr(self, name) for name in _CHANNELS if getattr(self, name) is not None})
        return arrays

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take up the state of an accumulator that had the same ``channel_axis`` and ``cap``."""
        for name, scalar in zip(_SCALARS, state["scalars"].tolist(), strict=True):
            setattr(self, name, scalar)
        *counters, first = state["counters"].tolist()
        for name, counter in zip(_COUNTERS, counters, strict=True):
            setattr(self, name, counter)
        self.counts[:] = 0
        self.counts[first : first + len(state["counts"])] = state["counts"]
        for name in _CHANNELS:
            setattr(self, name, state[name].copy() if name in state else None)

    def _cover(self, lo: float, hi: float) -> None:
        """Grow the grid until it holds ``[lo, hi]``; an empty interval (lo > hi) changes nothing."""
        if self.near_lo <= lo and hi <= self.near_hi:
            return
        self.near_lo, self.near_hi = min(self.near_lo, lo), max(self.near_hi, hi)
        exponent = _exponent(self.near_lo, self.near_hi)
        if exponent > self.exponent and not self.counts.any():
            self.exponent = exponent
        while self.exponent < exponent:
            self.counts = _halve(self.counts)
            self.exponent += 1

    def _merge_channels(self, lo: np.ndarray, hi: np.ndarray, total: np.ndarray) -> None:
        if self.channel_lo is None:
            self.channel_lo, self.channel_hi, self.channel_sum = lo.copy(), hi.copy(), total.copy()
            return
        self.channel_lo = np.minimum(self.channel_lo, lo)
        self.channel_hi = np.maximum(cast(np.ndarray, self.channel_hi), hi)
        self.channel_sum = cast(np.ndarray, self.channel_sum) + total


def sample_stride(size: int, cap: int = SAMPLE_CAP) -> int:
    """The distance between values that enter the histogram: at least ``size / cap`` and coprime to ``size``.

    Coprime to the number of elements means coprime to every dimension: walking with it visits all
    channels, rows and columns evenly instead of the same column of every row.
    """
    stride = -(-size // cap)
    while stride > 1 and math.gcd(stride, size) > 1:
        stride += 1
    return stride


def _offset(size: int, cap: int, index: int) -> int:
    """Another phase for every sample."""
    return index % sample_stride(size, cap)


def _exponent(lo: float, hi: float) -> int:
    """The smallest e at which bins of width 2**e cover zero, lo and hi with `MAX_BINS` bins."""
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    exponent = max(_LEAST_EXPONENT, math.frexp(hi - lo)[1] - 13)
    while math.floor(math.ldexp(hi, -exponent)) - math.floor(math.ldexp(lo, -exponent)) >= MAX_BINS:
        exponent += 1
    return exponent


def _halve(counts: np.ndarray) -> np.ndarray:
    """The same counts on the grid of double width: bin i goes to bin floor(i / 2)."""
    wider = np.zeros_like(counts)
    wider[_ZERO // 2 : _ZERO // 2 + MAX_BINS] = counts.reshape(-1, 2).sum(axis=1)
    return wider


def _fold(array: np.ndarray, axis: int | None) -> tuple[float, float, tuple[np.ndarray, ...] | None]:
    """The extrema and, with an ``axis``, the least value, largest value and sum of each channel, float64."""
    if axis is None:
        flat = array.reshape(-1)
        return float(np.minimum.reduce(flat)), float(np.maximum.reduce(flat)), None
    if not -array.ndim <= axis < array.ndim:
        raise ValueError(f"no axis {axis} in shape {list(array.shape)}")
    axis %= array.ndim
    # [outer, channels, inner]: numpy vectorizes reductions over a contiguous inner axis, and sums
    # along it pairwise; only where there is none must a float32 sum be kept in float64.
    view = array.reshape(math.prod(array.shape[:axis]), array.shape[axis], math.prod(array.shape[axis + 1 :]))
    inner = view.shape[2] > 1
    lows, highs, sums = (f.reduce(view, axis=2) if inner else view[:, :, 0] for f in (np.minimum, np.maximum, np.add))
    lo, hi, total = lows.min(axis=0), highs.max(axis=0), sums.sum(axis=0, dtype=np.float64)
    return float(lo.min()), float(hi.max()), (lo.astype(np.float64), hi.astype(np.float64), total)
