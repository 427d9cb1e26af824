"""Files and commands on a board, through the system's own ssh: its keys, agents and configuration."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from edgeq.devices.remote import RemoteTransport
from edgeq.devices.shell import Attempt, run_client, run_watched, watched
from edgeq.devices.ssh_client import SSH_FAILED, Host, SshClient
from edgeq.devices.transport import Completed
from edgeq.errors import ProviderError

__all__ = ["SshTransport", "connected"]

_FOLDER = 'd="${XDG_CACHE_HOME:-$HOME/.cache}/edgeq" && mkdir -p "$d" && chmod 700 "$d" && cd "$d" && pwd -P'
_PUSH = (
    'mkdir -p {folder} && cat > {part} && test "$(wc -c < {part})" -eq {size} && '
    "chmod {mode} {part} && mv -f {part} {file}"
)
_SLOWEST_BYTES_PER_S = 0.1e6


@dataclass(frozen=True)
class SshTransport(RemoteTransport):
    """One host. Files go through ssh itself: small servers such as Dropbear have neither scp nor sftp."""

    client: SshClient

    def folder(self) -> PurePosixPath:
        return self._folder

    @cached_property
    def _folder(self) -> PurePosixPath:
        made = self.run(["sh", "-c", _FOLDER])
        path = PurePosixPath(made.out.strip().splitlines()[-1] if made.out.strip() else "")
        if made.code or not path.is_absolute():
            raise ProviderError(
                f"{self.client.host.name} lets nothing be written to ~/.cache/edgeq: {made.err.strip()[-200:]}",
                remedy="log in as a user who has a home folder with room, or set XDG_CACHE_HOME there",
            )
        return path

    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = 60.0,
    ) -> Completed:
        name = PurePosixPath(command[0]).name
        attempt = self._try(watched(command, environment), timeout_s)
        if attempt.completed is not None:
            return attempt.completed
        if attempt.code is None:
            raise ProviderError(
                f"{name} did not end within {timeout_s:g} s on {self.client.host.name}, and was ended",
                remedy="give it more time with --timeout, or fewer runs",
            )
        raise self.client.explain(attempt.words, f"it ran {name}")

    def _try(self, script: str, timeout_s: float) -> Attempt:
        # The shell of a login may be any; `exec` keeps the process that leads the group.
        try:
            return run_watched(self.client.command(), f"exec sh -c {shlex.quote(script)}", timeout_s=timeout_s)
        except OSError as error:
            raise self._no_start(error) from None

    def push(self, local: Path, remote: PurePosixPath, *, executable: bool = False) -> None:
        size = local.stat().st_size
        part = remote.with_name(f".{remote.name}.part")
        script = _PUSH.format(
            folder=shlex.quote(str(remote.parent)),
            part=shlex.quote(str(part)),
            file=shlex.quote(str(remote)),
            size=size,
            mode="755" if executable else "644",
        )
        code = None
        try:
            code, words = self._copy(script, size, local, None)
        finally:  # Ctrl-C, too
            if code not in (0, SSH_FAILED):
                with contextlib.suppress(ProviderError):
                    self.remove(part)
        if code != 0:
            raise self._not_copied(code, words, remote, size, "copied to it")

    def pull(self, remote: PurePosixPath, local: Path) -> None:
        code, words = self._copy(f"cat {shlex.quote(str(remote))}", 0, None, local)
        if code != 0:
            local.unlink(missing_ok=True)
            raise self._not_copied(code, words, remote, 0, "read")

    def _copy(self, script: str, size: int, source: Path | None, target: Path | None) -> tuple[int | None, str]:
        """Exit code (None: it took too long) and errors of a command that reads or writes a file of this machine."""
        command = [*self.client.command(), f"exec sh -c {shlex.quote(script)}"]
        timeout_s = 60 + size / _SLOWEST_BYTES_PER_S
        try:
            with contextlib.ExitStack() as files:
                given = files.enter_context(source.open("rb")) if source else None
                taken = files.enter_context(target.open("wb")) if target else None
                code, _, err = run_client(command, timeout_s=timeout_s, given=given, taken=taken)
        except OSError as error:
            raise self._no_start(error) from None
        return code, err

    def _not_copied(self, code: int | None, words: str, remote: PurePosixPath, size: int, done: str) -> ProviderError:
        host = self.client.host.name
        if code == SSH_FAILED:
            return self.client.explain(words, f"{remote.name} was being {done}")
        last = words.strip().splitlines()[-1][-200:] if words.strip() else "no message"
        if "No space left" in words:
            return ProviderError(
                f"{host} has no room for {remote.name}: {size / 1e6:.1f} MB are needed",
                where=str(remote.parent),
                remedy=f"make room there; {self._folder} holds nothing but what edgeq keeps",
            )
        if code is None:
            last = f"no end of the copy of {size / 1e6:.1f} MB" if size else "no end of the copy"
        return ProviderError(
            f"{remote.name} cannot be {done} on {host}: {last}", where=str(remote), remedy="see the file's rights there"
        )

    def _no_start(self, error: OSError) -> ProviderError:
        return ProviderError(
            f"ssh does not start: {error.strerror}", where=self.client.program, remedy="install OpenSSH's client"
        )


@contextlib.contextmanager
def connected(host: Host) -> Iterator[SshTransport]:
    """The host; its connection is opened when it is first needed, and closed at the end."""
    client = SshClient.open(host)
    try:
        yield SshTransport(client)
    finally:
        if client.sockets is not None:
            before, name = client.command()[:-2], client.command()[-1]
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run([*before, "-O", "exit", "--", name], capture_output=True, timeout=10, check=False)
            shutil.rmtree(client.sockets, ignore_errors=True)
