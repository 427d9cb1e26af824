"""Files and commands on an Android phone, through adb."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from edgeq.devices.adb_client import Adb
from edgeq.devices.remote import RemoteTransport
from edgeq.devices.shell import run_watched, watched
from edgeq.devices.transport import Completed
from edgeq.errors import ProviderError

__all__ = ["ANDROID_FOLDER", "AdbTransport"]

ANDROID_FOLDER = PurePosixPath("/data/local/tmp/edgeq")
"""The one place where Android lets the shell put programs and run them."""

_SLOWEST_BYTES_PER_S = 0.5e6
"""Of a USB 2 cable in bad shape; what takes longer is not coming."""


@dataclass(frozen=True)
class AdbTransport(RemoteTransport):
    """The phone ``serial``. Exit codes come through adb's shell protocol, version 2 (Android 7 and later)."""

    adb: Adb
    serial: str

    def folder(self) -> PurePosixPath:
        return self._folder

    @cached_property
    def _folder(self) -> PurePosixPath:
        made = self.run(["mkdir", "-p", str(ANDROID_FOLDER)])
        if made.code:
            raise ProviderError(
                f"the phone {self.serial} lets nothing be written to {ANDROID_FOLDER}: {made.err.strip()[-200:]}",
                remedy=f"see `adb -s {self.serial} shell ls -ld {ANDROID_FOLDER}`; remove it if another user made it",
            )
        return ANDROID_FOLDER

    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = 60.0,
    ) -> Completed:
        client = self.adb.command(self.serial, "shell", "-T")
        doing = f"it ran {PurePosixPath(command[0]).name}"
        try:
            attempt = run_watched(client, watched(command, environment), timeout_s=timeout_s)
        except OSError:
            self.adb.call(None, "version")  # says why it does not start
            raise
        if attempt.completed is not None:
            return attempt.completed
        if attempt.code is None:
            raise ProviderError(
                f"{PurePosixPath(command[0]).name} did not end within {timeout_s:g} s on the phone {self.serial}, "
                "and was ended",
                remedy="give it more time with --timeout, or fewer runs",
            )
        raise self.adb.lost(self.serial, doing, attempt.words)

    def push(self, local: Path, remote: PurePosixPath, *, executable: bool = False) -> None:
        size = local.stat().st_size
        self._expect(self.run(["mkdir", "-p", str(remote.parent)]), remote)
        part = remote.with_name(f".{remote.name}.part")
        code = None
        try:
            code, out, err = self.adb.call(
                self.serial, "push", str(local), str(part), timeout_s=30 + size / _SLOWEST_BYTES_PER_S
            )
        finally:  # Ctrl-C, too
            if code != 0:
                with contextlib.suppress(ProviderError):
                    self.remove(part)
        if code != 0:
            raise self._not_pushed(code, (err + out).strip(), remote, size)
        mode = "755" if executable else "644"
        script = 'chmod "$1" "$2" && mv -f "$2" "$3"'
        self._expect(self.run(["sh", "-c", script, "sh", mode, str(part), str(remote)]), remote)

    def pull(self, remote: PurePosixPath, local: Path) -> None:
        code, out, err = self.adb.call(self.serial, "pull", str(remote), str(local), timeout_s=600)
        if code != 0:
            words = (err + out).strip()
            if "No such file" in words or "does not exist" in words or "Permission denied" in words:
                raise ProviderError(
                    f"{remote} cannot be read from the phone {self.serial}: {words.splitlines()[-1][-200:]}"
                )
            raise self.adb.lost(self.serial, f"{remote.name} was being read", words)

    def _no_room(self, size: int, remote: PurePosixPath) -> ProviderError:
        return ProviderError(
            f"the phone {self.serial} has no room for {remote.name}: {size / 1e6:.1f} MB are needed",
            where=str(remote.parent),
            remedy=f"make room on the phone; `adb -s {self.serial} shell rm -r {ANDROID_FOLDER}` removes what edgeq "
            "keeps there",
        )

    def _not_pushed(self, code: int | None, words: str, remote: PurePosixPath, size: int) -> ProviderError:
        if "No space left" in words:
            return self._no_room(size, remote)
        if "ermission denied" in words or "Read-only" in words:
            return ProviderError(
                f"the phone {self.serial} lets nothing be written to {remote.parent}: {words.splitlines()[-1][-200:]}",
                remedy=f"see `adb -s {self.serial} shell ls -ld {remote.parent}`",
            )
        if code is None:
            words = f"no end of the copy of {size / 1e6:.1f} MB"
        return self.adb.lost(self.serial, f"{remote.name} was being copied to it", words)

    def _expect(self, done: Completed, remote: PurePosixPath) -> None:
        if done.code:
            raise ProviderError(
                f"{remote} cannot be written on the phone {self.serial}: {done.err.strip()[-200:]}",
                remedy=f"see `adb -s {self.serial} shell ls -ld {remote.parent}`",
            )
