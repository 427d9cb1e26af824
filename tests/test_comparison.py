"""Faster, slower, or cannot tell: intervals that miss as often as they say, on times as a busy machine gives them."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from edgeq.comparison import Difference, Session, compare_sessions, compare_with_stored

LAYOUT = 0.008
"""Standard deviation, from process to process, of what a memory layout does to the ratio of two models."""

SECOND = -0.012
"""What being loaded second does to a model's time."""


def noise(rng: np.random.Generator, turns: int) -> np.ndarray:
    """Log times of one lane, seconds of load come and go (AR 1), and one run in seven is interrupted."""
    steps = rng.normal(0, 0.02, turns)
    for i in range(1, turns):
        steps[i] += 0.8 * steps[i - 1]
    return steps + np.where(rng.random(turns) < 0.15, np.minimum(rng.pareto(1.5, turns), 3), 0)


def busy(rng: np.random.Generator, *, slowdown: float = 0.0, sessions: int = 8, turns: int = 24) -> list[Session]:
    """Two models as a machine that is shared shows them; B takes ``slowdown`` longer."""
    found = []
    for number in range(sessions):
        first = number % 2 == 0
        shared = noise(rng, turns)
        bias = rng.normal(0, LAYOUT) + (SECOND if first else -SECOND)
        a, b = (np.exp(2 + shared + rng.normal(0, 0.01, turns) + shift) for shift in (0, math.log1p(slowdown) + bias))
        found.append(Session(a, b, first))
    return found


def test_two_copies_of_one_model_are_told_apart_as_rarely_as_the_level_says() -> None:
    rng = np.random.default_rng(0)
    found = [compare_sessions(busy(rng), level=0.9) for _ in range(600)]
    misses = sum(not d.low <= 1 <= d.high for d in found)
    assert stats.binomtest(misses, len(found), 0.1).pvalue > 0.01, f"{misses} of {len(found)} intervals miss"
    assert sum(d.verdict in ("faster", "slower") for d in found) <= misses


def test_an_interval_of_one_process_would_miss_most_of_the_time() -> None:
    """The trap: why sessions, and not runs, are what counts."""
    rng = np.random.default_rng(1)
    misses = 0
    for _ in range(100):
        (session,) = busy(rng, sessions=1, turns=200)
        ratios = np.log(session.b) - np.log(session.a)
        misses += stats.wilcoxon(ratios).pvalue < 0.05
    assert misses > 60


def test_five_percent_are_told_from_noise() -> None:
    rng = np.random.default_rng(2)
    slower = Counter(compare_sessions(busy(rng, slowdown=0.05)).verdict for _ in range(200))
    assert slower["slower"] >= 195
    faster = Counter(compare_sessions(busy(rng, slowdown=-0.05)).verdict for _ in range(200))
    assert faster["faster"] >= 195


def test_turns_that_were_interrupted_do_not_count() -> None:
    a, b = [10.0, 10.0, 10.0, 30.0, 500.0], [10.5, 10.5, 31.5, 31.5, 10.5]
    assert compare_sessions([Session(a, b)]).ratio == 1.05, "neither means nor medians of each would give it"


def test_the_order_of_loading_cancels() -> None:
    sessions = [Session([10.0] * 5, [10.0 * (0.97 if first else 1 / 0.97)] * 5, first) for first in (True, False) * 3]
    found = compare_sessions(sessions)
    assert (found.ratio, found.verdict) == (1.0, "same")
    one_sided = compare_sessions([s for s in sessions if s.a_first])
    assert one_sided.verdict == "faster", "without the other order, it would be taken for a difference"


def test_the_interval_is_students_over_sessions() -> None:
    ratios = [1.01, 1.03, 1.02, 1.05]
    found = compare_sessions([Session([1.0], [ratio]) for ratio in ratios])
    low, high = stats.ttest_1samp(np.log(ratios), 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((math.exp(low), math.exp(high)), abs=1e-5)
    assert (found.sessions, found.runs) == (4, 4)


def test_against_what_was_stored_it_is_students_of_two_samples() -> None:
    before, now = [10.0, 10.4, 9.9, 10.1], [11.0, 11.3, 10.9]
    found = compare_with_stored(before, now, runs=30)
    low, high = stats.ttest_ind(np.log(now), np.log(before)).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((math.exp(low), math.exp(high)), abs=1e-5)
    assert (found.verdict, found.sessions, found.runs) == ("slower", 3, 30)


def test_too_few_sessions_give_no_interval() -> None:
    for found in (
        compare_sessions([Session([1.0], [2.0])]),
        compare_sessions([Session([1.0], [2.0], True), Session([1.0], [2.0], False)]),
        compare_with_stored([1.0], [2.0], runs=1),
    ):
        assert (found.low, found.high, found.verdict, found.sessions_needed) == (None, None, "cannot tell", None)
        assert found.beyond(0.05) is None


@pytest.mark.parametrize(
    ("low", "high", "beyond"),
    [(1.06, 1.08, True), (1.05, 1.08, None), (1.02, 1.08, None), (1.0, 1.05, False), (0.9, 0.95, False)],
    ids=["beyond", "touches", "straddles", "at most", "faster"],
)
def test_a_regression_is_one_if_the_interval_says_so(low: float, high: float, beyond: bool | None) -> None:
    found = compare_sessions([Session([1.0], [r], f) for r, f in ((1.0, True), (1.1, False)) * 2])
    assert change(found, low=low, high=high).beyond(0.05) is beyond


def change(found: Difference, **values: float) -> Difference:
    import msgspec

    return msgspec.structs.replace(found, **values)


def test_a_small_difference_is_the_same_even_if_it_is_sure() -> None:
    found = compare_sessions([Session([1.0], [1.01 + 0.0001 * i], i % 2 == 0) for i in range(8)])
    assert found.low > 1
    assert found.verdict == "same"
    assert compare_sessions([Session([1.0], [1.01], True)] * 4, min_difference=0.005).verdict == "slower"


def test_the_sessions_needed_do_find_the_difference_four_times_in_five() -> None:
    rng = np.random.default_rng(3)
    needed = round(np.median([compare_sessions(busy(rng), min_difference=0.01).sessions_needed for _ in range(100)]))
    assert needed > 8
    found = [
        compare_sessions(busy(rng, slowdown=0.01, sessions=needed + needed % 2), min_difference=0.01)
        for _ in range(150)
    ]
    assert 0.68 < np.mean([d.low > 1 for d in found]) < 0.92


def test_turns_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="found 2 and 1"):
        compare_sessions([Session([1.0, 2.0], [1.0])])
    with pytest.raises(ValueError, match="no session"):
        compare_sessions([])
