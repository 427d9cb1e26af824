"""What every sandbox takes and gives: files and arrays in, outputs or a reason out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from edgeq.progress import Progress

if TYPE_CHECKING:
    from edgeq.target import Provider

__all__ = ["Outcome", "Sandbox", "Task"]


@dataclass(frozen=True)
class Task:
    """One model to load and run.

    ``model`` is an ONNX file (external data beside it), ``provider`` the execution provider with its
    options and session entries, ``feeds`` the batches to run, by input name (none: load only).
    ``optimized`` asks ONNX Runtime to write the graph that it is going to run to this file. ``dimensions`` are
    sizes for dimensions of the model that have only a name (``{"batch": 1}``), for providers that want them fixed;
    browsers pass over them.
    """

    model: Path
    provider: Provider
    feeds: tuple[Mapping[str, np.ndarray], ...] = ()
    optimized: Path | None = None
    dimensions: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    ``status``: ``ran`` (``outputs`` holds one dictionary per feed), ``built`` (compiled, nothing to
    run), ``refused`` (an error that the provider raised), ``crashed`` (the process died or took too
    long). ``assigned`` maps node names to the provider that took them, None where it does not tell.
    ``reason`` is the provider's own words. ``version`` names package and version of what ran it.
    """

    status: Literal["ran", "built", "refused", "crashed"]
    outputs: tuple[dict[str, np.ndarray], ...] = ()
    assigned: Mapping[str, str] | None = None
    reason: str | None = None
    version: str = ""


class Sandbox(Protocol):
    """A provider, emulator or compiler in an environment and a process of its own.

    ``gives`` says what it proves: ``numbers`` (it computes) or ``build`` (it only compiles).
    ``licence`` is that of what ``install`` fetches, ``size_mb`` how much that is (0: nothing); none of it
    is ever redistributed. ``quick``: a model that runs here in a second takes a few there, so that every
    export can afford it; emulated processors and browsers are not. ``option`` is the argument that the short
    spelling ``NAME:VALUE`` sets, such as the processor to emulate (None: it takes none).
    """

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    @property
    def licence(self) -> str: ...

    @property
    def gives(self) -> Literal["numbers", "build"]: ...

    @property
    def size_mb(self) -> int: ...

    @property
    def quick(self) -> bool: ...

    @property
    def option(self) -> str | None: ...

    def unusable(self) -> str | None:
        """Why it never runs on this machine (another processor, say), in words; None if it does once installed."""

    def missing(self) -> str | None:
        """Why it cannot be used on this machine now, in words; None if it can."""

    def install(self, progress: Progress) -> None:
        """Fetch what is missing into the cache; raises ProviderError with the reason if that fails."""

    def run(
        self, tasks: Sequence[Task], *, arguments: Mapping[str, str] | None = None, timeout_s: float = 300.0
    ) -> list[Outcome]:
        """One outcome per task, in order; a task that kills the process costs only itself.

        ``arguments`` come from the profile (``verification.arguments``). ``timeout_s`` is per task.
        Raises ProviderError if the sandbox is not installed.
        """
