from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from edgeq.qtypes import Histogram, TensorStats
from edgeq.stages.calibrate.stats import MAX_BINS, SAMPLE_CAP, Accumulator, sample_stride


def fold(arrays: list[np.ndarray], channel_axis: int | None = None) -> Accumulator:
    accumulator = Accumulator(channel_axis)
    for index, array in enumerate(arrays):
        accumulator.update(array, index)
    return accumulator


def numpy_counts(values: np.ndarray, histogram: Histogram) -> np.ndarray:
    edges = (histogram.start + np.arange(len(histogram.counts) + 1)) * histogram.width
    # numpy's last bin is closed on the right; ours are all half open, so nothing may lie on that edge.
    assert values.max() < edges[-1]
    return np.histogram(values.astype(np.float64), edges)[0]


def assert_same(left: TensorStats, right: TensorStats) -> None:
    assert (left.lo, left.hi, left.values, left.batches, left.masked) == (
        right.lo,
        right.hi,
        right.values,
        right.batches,
        right.masked,
    )
    assert (left.histogram.width, left.histogram.start) == (right.histogram.width, right.histogram.start)
    np.testing.assert_array_equal(left.histogram.counts, right.histogram.counts)


def batches(seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    scales = [0.01, 3.0, 0.5, 200.0, 1e-6, 7.0]
    return [rng.normal(0.3, scale, (1, 5, 40)).astype(np.float32) for scale in scales]


def test_histogram_equals_numpy_on_the_final_grid() -> None:
    arrays = batches()
    stats = fold(arrays).finish()
    np.testing.assert_array_equal(
        stats.histogram.counts, numpy_counts(np.concatenate([a.ravel() for a in arrays]), stats.histogram)
    )
    assert stats.histogram.counts.sum() == stats.values == 6 * 200


def test_extrema_and_their_means_are_exact() -> None:
    arrays = batches(1)
    stats = fold(arrays).finish()
    assert stats.lo == min(a.min() for a in arrays)
    assert stats.hi == max(a.max() for a in arrays)
    assert stats.average_lo == pytest.approx(np.mean([a.min() for a in arrays], dtype=np.float64), rel=1e-14)
    assert stats.average_hi == pytest.approx(np.mean([a.max() for a in arrays], dtype=np.float64), rel=1e-14)
    assert (stats.batches, stats.values) == (6, 1200)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::5], ids=str)
def test_order_of_samples_and_of_merging_does_not_matter(order: tuple[int, ...]) -> None:
    arrays = batches(2)[:4]
    expected = fold(arrays, channel_axis=1).finish()
    assert_same(fold([arrays[i] for i in order], channel_axis=1).finish(), expected)
    merged = Accumulator(1)
    for i in order:
        merged.merge(fold([arrays[i]], channel_axis=1))
    assert_same(merged.finish(), expected)
    np.testing.assert_array_equal(merged.finish().channel_lo, expected.channel_lo)
    np.testing.assert_array_equal(merged.finish().channel_hi, expected.channel_hi)
    np.testing.assert_allclose(merged.finish().channel_mean, expected.channel_mean, rtol=1e-13)


def test_merging_associates() -> None:
    one, two, three = (fold(batches(seed)) for seed in (3, 4, 5))
    left, right = fold(batches(3)), fold(batches(4))
    left.merge(two)
    left.merge(three)
    right.merge(three)
    one.merge(right)
    assert_same(left.finish(), one.finish())


def test_growth_doubles_the_width_and_keeps_every_count() -> None:
    accumulator = Accumulator()
    accumulator.update(np.linspace(0, 1, 1000, dtype=np.float32))
    narrow = accumulator.finish().histogram
    accumulator.update(np.array([-37.0], np.float32))
    wide = accumulator.finish().histogram
    doublings = math.log2(wide.width / narrow.width)
    assert doublings == int(doublings) > 0
    assert wide.counts.sum() == 1001
    assert MAX_BINS // 2 < len(wide.counts) <= MAX_BINS


@pytest.mark.parametrize("hi", [1e-20, 0.37, 1.0, 2.0, 4096.0, 1e6, 9.9e29])
@pytest.mark.parametrize("lo", [0.0, -1.0, -0.001, -5e5])
def test_grid_is_a_power_of_two_and_uses_at_least_half_of_its_bins(lo: float, hi: float) -> None:
    values = np.array([lo, hi], np.float32)
    histogram = fold([values]).finish().histogram
    assert math.frexp(histogram.width)[0] == 0.5
    assert MAX_BINS // 2 <= len(histogram.counts) <= MAX_BINS
    np.testing.assert_array_equal(histogram.counts, numpy_counts(values, histogram))


@pytest.mark.parametrize("value", [0.0, 5.0, -5.0, 1e-40, 1e25])
def test_constant_tensors(value: float) -> None:
    stats = fold([np.full(10, value, np.float32)] * 3).finish()
    assert stats.lo == stats.hi == stats.average_lo == stats.average_hi == np.float32(value)
    assert stats.histogram.counts.sum() == 30
    assert abs(stats.histogram.centers[stats.histogram.counts.argmax()] - value) <= stats.histogram.width


def test_large_tensors_are_sampled_evenly_while_extrema_stay_exact() -> None:
    shape = (1, 16, 64, 64)
    array = np.broadcast_to(np.arange(16, dtype=np.float32)[:, None, None] + 0.5, shape).copy()
    array[0, 3, 17, 29] = 1000.0
    stats = fold([array] * 8).finish()
    assert stats.hi == 1000.0
    assert 0.8 * SAMPLE_CAP * 8 < stats.histogram.counts.sum() <= SAMPLE_CAP * 8
    per_channel = np.add.reduceat(stats.histogram.counts, (np.arange(16) / stats.histogram.width).astype(int))[:15]
    assert per_channel.min() > 0.99 * per_channel.max()
    stride = sample_stride(array.size)
    columns = np.unique(np.arange(0, array.size, stride) % 64)
    assert len(columns) == 64


def test_samples_differ_in_phase() -> None:
    array = np.arange(100_000, dtype=np.float32)
    once, twice = Accumulator(), Accumulator()
    once.update(array, 0)
    twice.update(array, 1)
    assert not np.array_equal(once.counts, twice.counts)


@pytest.mark.parametrize("axis", [1, -1, 0])
def test_channels(axis: int) -> None:
    rng = np.random.default_rng(9)
    arrays = [rng.normal(0, 2, (2, 5, 6)).astype(np.float32) for _ in range(4)]
    stats = fold(arrays, channel_axis=axis).finish()
    moved = np.moveaxis(np.stack(arrays), axis + 1 if axis >= 0 else axis, 0)
    moved = moved.reshape(moved.shape[0], -1).astype(np.float64)
    np.testing.assert_array_equal(stats.channel_lo, moved.min(axis=1))
    np.testing.assert_array_equal(stats.channel_hi, moved.max(axis=1))
    np.testing.assert_allclose(stats.channel_mean, moved.mean(axis=1), rtol=1e-5, atol=1e-7)
    assert stats.channel_mean is not None
    assert stats.channel_mean.dtype == np.float64
    assert stats.channel_axis == axis


def test_masks_keep_exact_extrema_and_a_useful_histogram() -> None:
    values = np.linspace(-4, 4, 101, dtype=np.float32)
    masked = np.concatenate([values, np.full(7, np.finfo(np.float32).min)])
    stats = fold([values, masked]).finish()
    assert stats.lo == np.finfo(np.float32).min
    assert stats.hi == 4
    assert stats.masked == 7
    assert stats.histogram.counts.sum() == 202
    assert stats.histogram.width * len(stats.histogram.counts) < 9


def test_minus_infinity_is_a_mask() -> None:
    stats = fold([np.array([[0.0, -np.inf, 2.0]], np.float32)], channel_axis=1).finish()
    assert stats.lo == np.finfo(np.float32).min
    assert (stats.hi, stats.masked) == (2.0, 1)
    assert stats.histogram.counts.sum() == 2


def test_nothing_but_masks() -> None:
    stats = fold([np.full(3, -1e38, np.float32)]).finish()
    assert stats.masked == stats.values == 3
    assert stats.histogram.counts.sum() == 0


@pytest.mark.parametrize(("bad", "text"), [(np.nan, "NaN"), (np.inf, r"\+infinity")])
@pytest.mark.parametrize("axis", [None, 0])
def test_overflow_is_refused_and_changes_nothing(bad: float, text: str, axis: int | None) -> None:
    accumulator = fold([np.ones(4, np.float32)], channel_axis=axis)
    before = accumulator.state()
    with pytest.raises(ValueError, match=text):
        accumulator.update(np.array([1, bad, -np.inf, 2], np.float32))
    assert all(np.array_equal(before[name], array) for name, array in accumulator.state().items())


def test_channel_count_and_axis_are_checked() -> None:
    accumulator = fold([np.ones((1, 3), np.float32)], channel_axis=1)
    with pytest.raises(ValueError, match="4 channels after 3"):
        accumulator.update(np.ones((1, 4), np.float32))
    with pytest.raises(ValueError, match=r"no axis 1 in shape \[3\]"):
        accumulator.update(np.ones(3, np.float32))
    with pytest.raises(ValueError, match="channel axis"):
        accumulator.merge(Accumulator())


def test_empty_arrays_count_for_nothing() -> None:
    accumulator = fold([np.zeros((1, 0), np.float32)])
    with pytest.raises(ValueError, match="no values"):
        accumulator.finish()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_types(dtype: type) -> None:
    values = np.array([-1.5, 0.25, 3], dtype)
    stats = fold([values]).finish()
    assert (stats.lo, stats.hi, stats.values) == (-1.5, 3.0, 3)


def test_state_restores_bit_for_bit() -> None:
    arrays = batches(6)
    whole, first, second = fold(arrays, 1), fold(arrays[:3], 1), Accumulator(1)
    second.restore(first.state())
    for index, array in enumerate(arrays[3:], 3):
        second.update(array, index)
    left, right = whole.state(), second.state()
    assert left.keys() == right.keys()
    assert all(left[name].tobytes() == right[name].tobytes() for name in left)
