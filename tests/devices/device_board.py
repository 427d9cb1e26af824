"""A transport that copies: what a phone or a board is to the native runner, without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from edgeq.devices.here import Here
from edgeq.devices.transport import Completed


@dataclass
class Board:
    """A folder that stands for another system: nothing of this machine is seen there; ``log`` holds what was done."""

    root: Path
    free: int | None = None
    log: list[str] = field(default_factory=list)
    here: Here = field(default_factory=Here)

    def folder(self) -> PurePosixPath:
        (self.root / "edgeq").mkdir(parents=True, exist_ok=True)
        return PurePosixPath(self.root / "edgeq")

    def sees(self, local: Path) -> PurePosixPath | None:
        return None

    def run(
        self, command: Sequence[str], *, environment: Mapping[str, str] | None = None, timeout_s: float = 60.0
    ) -> Completed:
        self.log.append(f"run {Path(command[0]).name}")
        return self.here.run(command, environment=environment, timeout_s=timeout_s)

    def push(self, local: Path, remote: PurePosixPath, *, executable: bool = False) -> None:
        self.log.append(f"push {remote.name}")
        self.here.push(local, remote, executable=executable)

    def pull(self, remote: PurePosixPath, local: Path) -> None:
        self.log.append(f"pull {remote.name}")
        self.here.pull(remote, local)

    def free_bytes(self, folder: PurePosixPath) -> int | None:
        return self.free

    def remove(self, path: PurePosixPath) -> None:
        self.here.remove(path)

    def read(self, path: PurePosixPath) -> str | None:
        return self.here.read(path)

    def pushed(self) -> list[str]:
        """What was pushed since the last call, but for the index and the job."""
        names = [line.removeprefix("push ") for line in self.log if line.startswith("push ")]
        self.log.clear()
        return [name for name in names if name not in ("index.json", "job.json", "feeds.npys")]
