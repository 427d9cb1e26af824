"""Which of two models is faster, and whether that can be told at all: the statistics, and nothing else.

What varies is not only one run to the next. Each process lays out its memory in its own way, and the model that is
loaded second differs from the one loaded first: two copies of one model differ by a percent in a process, run after
run, and by another percent in the next (Mytkowicz et al., "Producing Wrong Data Without Doing Anything Obviously
Wrong!", ASPLOS 2009; Curtsinger and Berger, "Stabilizer", ASPLOS 2013). More runs in one process only make a wrong
answer look sure. So both models are run in several processes, called sessions here, half of which load them in the
other order; each session gives one number, and these are what an interval is made of (Kalibera and Jones, "Rigorous
Benchmarking in Reasonable Time", ISMM 2013: the highest level at which results vary decides).

A session's number is the median of the logarithms of its paired ratios, turn by turn: neighbours in time meet the
same disturbances, and a median does not mind runs that were interrupted. The runs of a session may depend on one
another as they like, for only whole sessions are taken to be independent. docs/latency.md holds how often the
intervals miss, measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from scipy.special import stdtrit

__all__ = ["Difference", "Measure", "Session", "Verdict", "compare_sessions", "compare_with_stored"]

Verdict = Literal["faster", "slower", "same", "cannot tell"]
Measure = Literal["wall", "cpu"]
"""Time by the clock, or that of the processor, all threads together."""

_POWER = 0.8
_MOST_SESSIONS = 1000


@dataclass(frozen=True)
class Session:
    """One process's times in ms, ``float[turns]`` each: turn ``i`` of both models belongs together."""

    a: Sequence[float] | np.ndarray
    b: Sequence[float] | np.ndarray
    a_first: bool = True


class Difference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """B's time over A's, and what can be said of it.

    ``low`` to ``high`` holds the true ratio with confidence ``level``; None where there are too few sessions.
    ``verdict`` is about B: ``faster`` or ``slower`` if the interval leaves out 1 and the ratio is off by
    ``min_difference`` (0.02: 2 %) or more, ``same`` if the whole interval is within it, else ``cannot tell``.
    ``runs`` is how often each model was run. ``sessions_needed`` would show a difference of ``min_difference``
    four times in five, if they vary as these did.
    """

    measure: Measure
    ratio: float
    low: float | None
    high: float | None
    level: float
    min_difference: float
    verdict: Verdict
    sessions: int
    runs: int
    sessions_needed: int | None

    def beyond(self, regression: float) -> bool | None:
        """Whether B takes more than ``regression`` (0.05: 5 %) longer than A; None if the interval does not say."""
        if self.low is None or self.high is None or self.low <= 1 + regression < self.high:
            return None
        return self.low > 1 + regression


def compare_sessions(
    sessions: Sequence[Session], *, measure: Measure = "wall", level: float = 0.95, min_difference: float = 0.02
) -> Difference:
    """B against A, from sessions that ran both in turn.

    The estimate is the mean over the two orders of loading, its interval Student's t with the variance within them:
    the order's own effect cancels. With fewer than two sessions per order there is no interval.
    """
    if not sessions:
        raise ValueError("there is no session to compare")
    logs = [_log_ratio(session) for session in sessions]
    orders = [
        np.array([log for log, session in zip(logs, sessions, strict=True) if session.a_first is first])
        for first in {session.a_first for session in sessions}
    ]
    estimate = _Estimate(
        center=float(np.mean([order.mean() for order in orders])),
        spread=_pooled(orders),
        weight=math.sqrt(sum(1 / len(order) for order in orders)) / len(orders),
        freedom=len(logs) - len(orders),
        variances=1.0,
    )
    return _judge(
        estimate, measure, level, min_difference, sessions=len(logs), runs=sum(len(session.a) for session in sessions)
    )


def compare_with_stored(
    before: Sequence[float],
    now: Sequence[float],
    *,
    runs: int,
    measure: Measure = "wall",
    level: float = 0.95,
    min_difference: float = 0.02,
) -> Difference:
    """``now`` (B) against ``before`` (A), the median times in ms of their sessions, which have nothing to do with
    each other: Student's t of two samples of one variance.

    What changed on the machine in the meantime is in it, too, and no statistics can tell.
    """
    samples = [np.log(np.maximum(np.asarray(sample, np.float64), 1e-9)) for sample in (before, now)]
    if not all(len(sample) for sample in samples):
        raise ValueError("there is no session to compare")
    estimate = _Estimate(
        center=float(samples[1].mean() - samples[0].mean()),
        spread=_pooled(samples),
        weight=math.sqrt(sum(1 / len(sample) for sample in samples)),
        freedom=sum(map(len, samples)) - 2,
        variances=2.0,
    )
    return _judge(estimate, measure, level, min_difference, sessions=len(now), runs=runs)


def _log_ratio(session: Session) -> float:
    a, b = (np.maximum(np.asarray(times, np.float64), 1e-9) for times in (session.a, session.b))
    if a.shape != b.shape or not a.size:
        raise ValueError(f"turns belong together in pairs, found {a.size} and {b.size}")
    return float(np.median(np.log(b) - np.log(a)))


@dataclass(frozen=True)
class _Estimate:
    """The logarithm of a ratio: its standard error is ``spread``, that of one session, times ``weight``.

    ``freedom`` is the degrees of freedom of ``spread``. With n sessions, n of each kind, the variance of the
    estimate would be ``variances / n`` times that of one session.
    """

    center: float
    spread: float
    weight: float
    freedom: int
    variances: float

    def needed(self, level: float, least: float) -> int | None:
        """The fewest sessions that find ``least`` with a probability of 80 %; None if there is no end to it."""
        for count in range(4, _MOST_SESSIONS + 1, 2):
            reach = float(stdtrit(count - 2, (1 + level) / 2) + stdtrit(count - 2, _POWER))
            if reach * self.spread * math.sqrt(self.variances / count) <= least:
                return count
        return None


def _pooled(samples: Sequence[np.ndarray]) -> float:
    """The standard deviation within samples; infinite where none holds two values."""
    freedom = sum(len(sample) - 1 for sample in samples)
    squares = sum(float(np.square(sample - sample.mean()).sum()) for sample in samples)
    return math.sqrt(squares / freedom) if freedom > 0 else math.inf


def _judge(
    found: _Estimate, measure: Measure, level: float, min_difference: float, *, sessions: int, runs: int
) -> Difference:
    least = math.log1p(min_difference)
    known = found.freedom > 0
    half = float(stdtrit(found.freedom, (1 + level) / 2)) * found.spread * found.weight if known else math.inf
    return Difference(
        measure=measure,
        ratio=round(math.exp(found.center), 5),
        low=round(math.exp(found.center - half), 5) if known else None,
        high=round(math.exp(found.center + half), 5) if known else None,
        level=level,
        min_difference=min_difference,
        verdict=_verdict(found.center, half, least),
        sessions=sessions,
        runs=runs,
        sessions_needed=found.needed(level, least) if known else None,
    )


def _verdict(center: float, half: float, least: float) -> Verdict:
    if abs(center) > half and abs(center) >= least:
        return "slower" if center > 0 else "faster"
    return "same" if abs(center) + half <= least else "cannot tell"
