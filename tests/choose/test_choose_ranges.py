"""Range methods on distributions whose answer is known, and the promise of ``mse``: never worse than ``minmax``."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgeq.affine import fake_quantize, range_to_qparams
from edgeq.qtypes import Histogram, IntType, TensorSpec, TensorStats
from edgeq.stages.calibrate.stats import Accumulator
from edgeq.stages.choose.ranges import CLIP_WEIGHT, PERCENTILE, RANGE_METHODS, average, entropy, minmax, mse, percentile

UINT8 = TensorSpec(IntType(8, False), False)
SPECS = [
    TensorSpec(IntType(bits, signed), symmetric)
    for bits, signed, symmetric in itertools.product((4, 8, 16), (True, False), (True, False))
]
POWERS = [TensorSpec(IntType(8, signed), True, power_of_two=True) for signed in (True, False)]
N = 40_000


def draw(name: str) -> np.ndarray:
    rng = np.random.default_rng(7)
    normal = rng.standard_normal(N)
    return {
        "normal": normal,
        "relu": np.maximum(normal, 0),
        "relu6": np.clip(3 * normal + 1, 0, 6),
        "spiky relu6": np.concatenate([np.zeros(N), np.full(N // 10, 6.0), rng.uniform(0, 6, N // 100)]),
        "two spikes": rng.choice([0.0, 6.0], N),
        "rare spike": np.concatenate([np.zeros(N), np.full(20, 6.0), np.minimum(rng.exponential(0.3, N), 6)]),
        "laplace": rng.laplace(size=N),
        "outlier": np.append(normal, 100.0),
        "heavy tails": rng.standard_t(2.5, N),
        "negative": -np.abs(normal) - 0.5,
        "positive": np.abs(normal) + 2,
        "bimodal": np.concatenate([rng.normal(-3, 0.1, N), rng.normal(5, 0.1, N)]),
        "tiny": normal * 1e-6,
        "constant": np.full(100, 5.0),
        "zero": np.zeros(100),
    }[name].astype(np.float32)


NAMES = [
    "normal", "relu", "relu6", "spiky relu6", "two spikes", "rare spike", "laplace", "outlier", "heavy tails",
    "negative", "positive", "bimodal", "tiny", "constant", "zero",
]  # fmt: skip


def observe(x: np.ndarray, parts: int = 1) -> TensorStats:
    accumulator = Accumulator(cap=1 << 30)
    for index, part in enumerate(np.array_split(x, parts)):
        accumulator.update(part, index)
    return accumulator.finish()


def true_error(x: np.ndarray, lo: float, hi: float, spec: TensorSpec) -> float:
    """The documented objective of ``mse``, on the values themselves."""
    qparams = range_to_qparams(lo, hi, spec)
    error = np.square(x.astype(np.float64) - fake_quantize(x, qparams))
    first, last = qparams.real_range
    return float((np.where((x < first) | (x > last), CLIP_WEIGHT, 1.0) * error).sum())


@pytest.mark.parametrize(
    "spec",
    [*SPECS, *POWERS],
    ids=lambda s: f"{s.dtype.name}-{'symmetric' if s.symmetric else 'affine'}{'-power' if s.power_of_two else ''}",
)
@pytest.mark.parametrize("name", NAMES)
def test_mse_is_never_worse_than_minmax(name: str, spec: TensorSpec) -> None:
    x = draw(name)
    stats = observe(x)
    full = true_error(x, *minmax(stats, spec), spec)
    # Bins stand for their values; 16-bit steps are finer than a bin, and there the full range wins anyway.
    assert true_error(x, *mse(stats, spec), spec) <= full * 1.01 + 1e-20


@pytest.mark.parametrize("name", NAMES)
def test_of_the_powers_of_two_mse_takes_the_best(name: str) -> None:
    x, spec = draw(name), POWERS[0]
    stats = observe(x)
    found = true_error(x, *mse(stats, spec), spec)
    for exponent in range(-30, 8):
        high = 127 * 2.0**exponent
        assert found <= true_error(x, -high, high, spec) * 1.01 + 1e-20


@pytest.mark.parametrize("name", ["normal", "laplace", "outlier", "heavy tails"])
def test_mse_gains_where_tails_are_long(name: str) -> None:
    x, spec = draw(name), TensorSpec(IntType(4, False), False)
    stats = observe(x)
    assert true_error(x, *mse(stats, spec), spec) < 0.9 * true_error(x, *minmax(stats, spec), spec)


@pytest.mark.parametrize("method", RANGE_METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_every_method_stays_within_what_was_seen(method: str, name: str) -> None:
    x = draw(name)
    stats = observe(x, 3)
    for spec in SPECS:
        lo, hi = RANGE_METHODS[method](stats, spec)
        assert stats.lo <= lo <= hi <= stats.hi
        range_to_qparams(lo, hi, spec)  # a legal scale


def test_minmax_and_average() -> None:
    stats = observe(np.array([-1, 1, -3, 5], np.float32), 2)
    assert minmax(stats, UINT8) == (-3, 5)
    assert average(stats, UINT8) == (-2, 3)


def test_percentile_cuts_the_share_it_says() -> None:
    x = np.linspace(-1, 1, 200_001, dtype=np.float32)
    lo, hi = percentile(observe(x), UINT8)
    assert (lo, hi) == pytest.approx((-PERCENTILE / 100, PERCENTILE / 100), abs=1e-3)
    assert percentile(observe(draw("outlier")), UINT8)[1] < 5  # one of 40,000 values is left out
    kept = draw("normal")
    lo, hi = percentile(observe(kept), UINT8)
    assert np.mean((kept < lo) | (kept > hi)) <= 1 - PERCENTILE / 100


@pytest.mark.parametrize("name", ["relu6", "spiky relu6", "two spikes", "rare spike"])
@pytest.mark.parametrize("method", RANGE_METHODS)
def test_no_method_cuts_off_the_spike_of_relu6(method: str, name: str) -> None:
    if (method, name) == ("percentile", "rare spike"):
        pytest.skip("one value in 4,000 is what percentile is there to cut")
    assert RANGE_METHODS[method](observe(draw(name)), UINT8) == pytest.approx((0, 6), abs=0.01)


def test_entropy_clips_an_outlier_and_keeps_a_normal_distribution() -> None:
    lo, hi = entropy(observe(draw("outlier")), UINT8)
    assert hi < 80
    lo, hi = entropy(observe(draw("normal")), UINT8)
    assert lo < -3
    assert hi > 3


def test_entropy_of_negative_values() -> None:
    lo, hi = entropy(observe(draw("negative")), TensorSpec(IntType(4, False), False))
    assert lo < -2
    assert hi <= 0


def test_a_symmetric_range_serves_the_longer_side() -> None:
    x = np.concatenate([draw("normal"), [-8.0] * 2000]).astype(np.float32)
    lo, _ = mse(observe(x), TensorSpec(IntType(8, True), True))
    assert lo < -7.9


def test_zeros_from_relu_count_as_exact() -> None:
    """The bin at zero holds ReLU's zeros, which cost nothing: they must not pull the range in."""
    few = observe(draw("relu"))
    counts = few.histogram.counts.copy()
    counts[0] += 10_000_000
    many = TensorStats(
        few.lo, few.hi, few.average_lo, few.average_hi, few.values, few.batches,
        Histogram(counts, few.histogram.width, few.histogram.start),
    )  # fmt: skip
    spec = TensorSpec(IntType(4, False), False)
    assert mse(many, spec) == mse(few, spec)


def test_the_same_statistics_give_the_same_range() -> None:
    stats = observe(draw("laplace"), 5)
    for spec in SPECS:
        assert mse(stats, spec) == mse(observe(draw("laplace"), 5), spec)
