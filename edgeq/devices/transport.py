"""How the native runner's devices are reached: run a command there, bring files there and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

__all__ = ["Completed", "Transport"]


@dataclass(frozen=True)
class Completed:
    """A command that ended there: its exit code (negative: ended by that signal) and its last words."""

    code: int
    out: str
    err: str


class Transport(Protocol):
    """One reachable Linux or Android system; all paths are absolute paths there.

    Every method raises ProviderError, with what to do, where the system cannot be reached any more.
    """

    def folder(self) -> PurePosixPath:
        """A folder of edgeq's own there, made if it is missing, in which programs may be run."""

    def sees(self, local: Path) -> PurePosixPath | None:
        """Where a file or folder of this machine is found there without being copied; None where it is not."""

    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = 60.0,
    ) -> Completed:
        """Run a command to its end. ``environment`` is added to that of the system.

        Raises:
            ProviderError: it took longer; what was started there was ended, as it is when Ctrl-C comes.
        """

    def push(self, local: Path, remote: PurePosixPath, *, executable: bool = False) -> None:
        """Copy a file there, whole or not at all; its folder is made."""

    def pull(self, remote: PurePosixPath, local: Path) -> None:
        """Copy a file from there."""

    def free_bytes(self, folder: PurePosixPath) -> int | None:
        """Room on that folder's file system; None if the system does not tell."""

    def remove(self, path: PurePosixPath) -> None:
        """Remove a file or a folder with all that is in it; fine if it is not there."""

    def read(self, path: PurePosixPath) -> str | None:
        """A small text file, such as one in /sys; None if it cannot be read."""
