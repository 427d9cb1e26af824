"""What the statistics found, in words."""

from __future__ import annotations

from collections.abc import Sequence

from edgeq.comparison import Difference

__all__ = ["in_words", "interval", "other_measures"]


def in_words(found: Difference, a: str = "A", b: str = "B") -> str:
    """One sentence: the verdict, the ratio with its interval, and from how much; what would help where it is open."""
    least = f"{100 * found.min_difference:g} %"
    measured = f"its time is {interval(found)} {a}'s, {found.sessions} processes, {found.runs} runs each"
    if found.verdict == "same":
        return f"{b} takes as long as {a}, within {least}: {measured}"
    if found.verdict != "cannot tell":
        return f"{b} is {found.verdict} than {a}: {measured}"
    if found.low is None:
        return f"it cannot be told whether {b} is faster or slower than {a}: {measured}"
    more = (
        f"about {found.sessions_needed} processes would show a difference of {least}"
        if found.sessions_needed and found.sessions_needed > found.sessions
        else f"more processes would narrow it down around {least}"
    )
    return f"it cannot be told whether {b} is faster or slower than {a} by {least}: {measured}; {more}"


def interval(found: Difference) -> str:
    """``1.048 times (95 % interval 1.031 to 1.066)``."""
    if found.low is None or found.high is None:
        return f"{found.ratio:.3f} times (no interval from so few processes)"
    span = f"{found.low:.3f} to {found.high:.3f}"
    return f"{found.ratio:.3f} times ({100 * found.level:g} % interval {span})"


def other_measures(differences: Sequence[Difference], decided_by: str | None) -> list[str]:
    """The differences that do not count, each as a line."""
    names = {"wall": "by the clock", "cpu": "in CPU time"}
    return [f"{names[found.measure]}: {interval(found)}" for found in differences if found.measure != decided_by]
