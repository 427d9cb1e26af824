"""What every system that is not this machine does alike, once commands can be run there: phones and boards."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from edgeq.devices.transport import Completed

__all__ = ["RemoteTransport", "parse_df"]


class RemoteTransport(ABC):
    """The part of `Transport` that needs nothing but ``run`` and the tools that every Linux and Android has."""

    @abstractmethod
    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = 60.0,
    ) -> Completed: ...

    def sees(self, local: Path) -> PurePosixPath | None:  # noqa: ARG002 nothing of this machine is there
        return None

    def free_bytes(self, folder: PurePosixPath) -> int | None:
        return parse_df(self.run(["df", "-Pk", str(folder)]).out)

    def remove(self, path: PurePosixPath) -> None:
        self.run(["rm", "-rf", str(path)])

    def read(self, path: PurePosixPath) -> str | None:
        done = self.run(["cat", str(path)])
        return None if done.code else done.out


def parse_df(text: str) -> int | None:
    """Free bytes out of ``df -Pk``; None if that is not what it is."""
    found = re.search(r"\s(\d+)\s+(\d+)\s+(\d+)\s+\d+%", text)
    return int(found.group(3)) * 1024 if found else None
