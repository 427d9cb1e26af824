"""Progress without a terminal in the core: stages report, the command line draws."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Protocol, TypeVar

__all__ = ["Progress", "Silent", "track"]

T = TypeVar("T")


class Progress(Protocol):
    """What a stage calls: ``start`` a step of ``total`` units (None: unknown), ``advance`` it, ``finish`` it."""

    def start(self, step: str, total: int | None) -> None: ...

    def advance(self, units: int = 1) -> None: ...

    def finish(self) -> None: ...


class Silent:
    """Reports nothing; the default of the Python API."""

    def start(self, step: str, total: int | None) -> None:
        pass

    def advance(self, units: int = 1) -> None:
        pass

    def finish(self) -> None:
        pass


def track(items: Iterable[T], progress: Progress, step: str, total: int | None = None) -> Iterator[T]:
    """Yield ``items`` and advance ``progress`` after each."""
    progress.start(step, total if total is not None or not isinstance(items, Sized) else len(items))
    try:
        for item in items:
            yield item
            progress.advance()
    finally:
        progress.finish()
