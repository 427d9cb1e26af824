"""Progress without a terminal: a line for each step, and the time that is left in a long one."""

from __future__ import annotations

import pytest

from edgeq.cli.progress import Lines


def test_a_long_step_tells_how_long_it_will_take(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    lines = Lines(clock=lambda: now[0])
    lines.start("refining", 10)
    for _ in range(10):
        now[0] += 15
        lines.advance()
    lines.finish()
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "refining (10)"
    assert said[1] == "refining: 2 of 10, about 2 min left"  # after 30 s, 15 s each
    assert said[-1] == "refining: 8 of 10, about 30 s left"
    assert len(said) == 5


def test_a_short_step_and_one_of_unknown_length_say_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    lines = Lines(clock=lambda: now[0])
    for step, total, seconds in (("quick", 5, 1.0), ("unknown", None, 60.0)):
        lines.start(step, total)
        for _ in range(5):
            now[0] += seconds
            lines.advance()
    assert capsys.readouterr().err.splitlines() == ["quick (5)", "unknown"]
