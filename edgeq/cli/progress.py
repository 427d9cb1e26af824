"""Progress on a terminal: a bar with a time estimate on stderr; one line per step where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from edgeq.progress import Progress, Silent

if TYPE_CHECKING:
    from rich.progress import TaskID

__all__ = ["Lines", "make_progress"]

_QUIET = 20.0
"""Seconds in which a step that goes on says nothing more, where there is no terminal."""


def make_progress(*, quiet: bool) -> Progress:
    """A bar if stderr is a terminal, lines if it is not, nothing if ``quiet``."""
    if quiet:
        return Silent()
    return _Bar() if sys.stderr.isatty() else Lines()


class Lines:
    """A line for each step, and one now and then in a long one, with the time that is left.

    ``clock`` gives seconds. The estimate takes what is to come to be like what was.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.last = ""
        self._clock = clock
        self._total: int | None = None
        self._done = 0
        self._started = self._told = clock()

    def start(self, step: str, total: int | None) -> None:
        if step != self.last:
            click.echo(f"{step} ({total})" if total and total > 1 else step, err=True)
        self.last, self._total, self._done = step, total, 0
        self._started = self._told = self._clock()

    def advance(self, units: int = 1) -> None:
        self._done += units
        now = self._clock()
        if self._total is None or now - self._told < _QUIET or self._done >= self._total:
            return
        self._told = now
        left = (now - self._started) / self._done * (self._total - self._done)
        click.echo(f"{self.last}: {self._done} of {self._total}, about {_duration(left)} left", err=True)

    def finish(self) -> None:
        pass


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


class _Bar:
    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=Console(stderr=True, emoji=False),
            transient=True,
        )
        self._task: TaskID | None = None

    def start(self, step: str, total: int | None) -> None:
        self.finish()
        self._progress.start()
        self._task = self._progress.add_task(step, total=total)

    def advance(self, units: int = 1) -> None:
        if self._task is not None:
            self._progress.advance(self._task, units)

    def finish(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
            self._progress.stop()
