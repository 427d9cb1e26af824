"""A board without a board: OpenSSH's server on this machine's loopback, with a configuration and keys of its own."""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from device_tools import sshd_folder, why_no_sshd

__all__ = ["Board", "local_board"]

CONFIG = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
PrintMotd no
SetEnv HOME={folder}/home PATH=/usr/bin:/bin
Subsystem sftp internal-sftp
"""
CLIENT = """
Host board
  HostName 127.0.0.1
  Port {port}
  User {user}
Host *
  IdentityFile {folder}/key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile /dev/null
"""


@dataclass
class Board:
    """A running server. ``path`` goes before the PATH: its ssh is the system's own, with a configuration of its own."""

    port: int
    user: str
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def path(self) -> Path:
        return self.folder / "bin"

    @property
    def home(self) -> Path:
        """The home folder that a login gets."""
        return self.folder / "home"


@contextlib.contextmanager
def local_board(folder: Path) -> Iterator[Board]:
    """A server on a free port, ended at the end; raises RuntimeError with its words if it does not start."""
    parts = sshd_folder()
    assert parts is not None
    folder.chmod(0o755)
    user = pwd.getpwuid(os.getuid()).pw_name
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in ("host_key", "key", "stranger"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "a test of edgeq", "-f", str(folder / name)]
        subprocess.run(make, check=True)
    (folder / "authorized_keys").write_text((folder / "key.pub").read_text())
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host_key.pub').read_text()}")
    (folder / "sshd_config").write_text(CONFIG.format(port=port, folder=folder))
    (folder / "ssh_config").write_text(CLIENT.format(port=port, user=user, folder=folder))
    (folder / "home").mkdir()
    (folder / "bin").mkdir()
    ssh = folder / "bin/ssh"
    real = subprocess.run(["which", "ssh"], capture_output=True, text=True, check=True).stdout.strip()
    ssh.write_text(f'#!/bin/sh\nexec {shlex.quote(real)} -F {shlex.quote(str(folder / "ssh_config"))} "$@"\n')
    ssh.chmod(0o755)
    process = _start(parts, folder)
    board = Board(port, user, folder, process)
    try:
        _wait(board)
        yield board
    finally:
        process.terminate()
        process.wait()


def _start(parts: Path, folder: Path) -> subprocess.Popen[bytes]:
    """In the foreground. Root's server wants a user and a folder of its own: a mount namespace holds them."""
    libraries = [str(path) for pattern in ("usr/lib/*-linux-gnu", "lib/*-linux-gnu") for path in parts.glob(pattern)]
    command = [str(parts / "usr/sbin/sshd"), "-D", "-e", "-f", str(folder / "sshd_config")]
    if os.geteuid() == 0:
        users = Path("/etc/passwd").read_text() + "sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n"
        (folder / "passwd").write_text(users)
        prepare = f"mount --bind {shlex.quote(str(folder / 'passwd'))} /etc/passwd && mount -t tmpfs none /run && "
        command = ["unshare", "--mount", "sh", "-c", f"{prepare} mkdir /run/sshd && exec {shlex.join(command)}"]
    with (folder / "sshd.log").open("wb") as log:
        return subprocess.Popen(
            command,
            env={"LD_LIBRARY_PATH": ":".join(libraries), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def _wait(board: Board) -> None:
    for _ in range(100):
        if board.process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", board.port), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"the board's server does not start: {(board.folder / 'sshd.log').read_text()}")


def _main() -> int:
    """Run a command that has a board: ``python tests/devices/local_board.py edgeq run BUNDLE --device ssh:board``."""
    if why := why_no_sshd():
        sys.exit(why)
    with tempfile.TemporaryDirectory(prefix="edgeq-board-") as folder, local_board(Path(folder)) as board:
        path = f"{board.path}:{os.environ['PATH']}"
        return subprocess.run(sys.argv[1:] or ["sh"], env={**os.environ, "PATH": path}, check=False).returncode


if __name__ == "__main__":
    sys.exit(_main())
