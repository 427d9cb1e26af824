"""Progress on a terminal: a bar with a time estimate on stderr; one line per step where there is no terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from edgeq.progress import Progress, Silent

if TYPE_CHECKING:
    from rich.progress import TaskID

__all__ = ["make_progress"]


def make_progress(*, quiet: bool) -> Progress:
    """A bar if stderr is a terminal, lines if it is not, nothing if ``quiet``."""
    if quiet:
        return Silent()
    return _Bar() if sys.stderr.isatty() else _Lines()


class _Lines:
    def __init__(self) -> None:
        self.last = ""

    def start(self, step: str, total: int | None) -> None:
        if step != self.last:
            click.echo(f"{step} ({total})" if total and total > 1 else step, err=True)
        self.last = step

    def advance(self, units: int = 1) -> None:
        pass

    def finish(self) -> None:
        pass


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
            console=Console(stderr=True),
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
