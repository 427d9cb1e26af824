"""The system's own ssh: how it is called, and what its words mean."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeq.errors import ConfigError, ProviderError

__all__ = ["SSH_FAILED", "Host", "SshClient", "parse_host"]

SSH_FAILED = 255
"""ssh's own exit code where it does not reach the host, or loses it."""

_OPTIONS = {
    "BatchMode": "yes",  # asks nothing: there may be nobody to answer
    "ConnectTimeout": "15",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "6",
    "LogLevel": "ERROR",
}
_KEPT_S = 60
"""How long a connection outlives the command that opened it."""


@dataclass(frozen=True)
class Host:
    """``name`` is a host's name, address or alias in ssh's configuration."""

    name: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        """What ``parse_host`` reads."""
        name = f"[{self.name}]" if ":" in self.name else self.name
        return f"{self.user}@" * bool(self.user) + name + f":{self.port}" * bool(self.port)

    @property
    def command(self) -> str:
        """How a user calls ssh for it."""
        port = f"-p {self.port} " if self.port else ""
        return f"ssh {port}{f'{self.user}@' if self.user else ''}{self.name}"


def parse_host(text: str) -> Host:
    """``"user@host:port"``, ``"alias"`` or ``"user@[::1]:22"`` -> its parts.

    Raises:
        ConfigError: it is none of these.
    """
    found = re.fullmatch(r"(?:([\w][\w.+-]*)@)?(?:\[([0-9A-Fa-f:.%\w]+)\]|([\w][\w.-]*))(?::(\d{1,5}))?", text)
    if found is None or not 0 < int(found.group(4) or 22) < 65536:
        raise ConfigError(f"{text!r} is no host", remedy="write ssh:HOST, ssh:USER@HOST or ssh:USER@HOST:PORT")
    user, address, name, port = found.groups()
    return Host(address or name, user, int(port) if port else None)


@dataclass(frozen=True)
class SshClient:
    """Calls of ssh to one host, which share one connection (where ssh can do that); close it when done."""

    host: Host
    program: str
    sockets: Path | None

    @classmethod
    def open(cls, host: Host) -> SshClient:
        """Nothing is reached for yet; raises ProviderError if there is no ssh."""
        program = shutil.which("ssh")
        if program is None:
            raise ProviderError(
                "there is no ssh on the PATH: boards cannot be reached", remedy="install OpenSSH's client"
            )
        # A socket's path may be 104 bytes long, so that it does not go into the cache.
        sockets = None if os.name == "nt" else Path(tempfile.mkdtemp(prefix="edgeq-ssh-"))
        return cls(host, program, sockets)

    def command(self) -> list[str]:
        """What stands before a command for the host's shell."""
        options = dict(_OPTIONS)
        if self.sockets is not None:
            options |= {"ControlMaster": "auto", "ControlPath": f"{self.sockets}/%C", "ControlPersist": str(_KEPT_S)}
        settings = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
        port = ["-p", str(self.host.port)] if self.host.port else []
        user = ["-l", self.host.user] if self.host.user else []
        return [self.program, "-T", *settings, *port, *user, "--", self.host.name]

    def explain(self, words: str, doing: str) -> ProviderError:
        """The error for what ssh said when it did not reach the host, or lost it while ``doing``."""
        for pattern, (what, remedy) in _MEANINGS.items():
            if re.search(pattern, words):
                name, command = self.host.name, self.host.command
                return ProviderError(
                    what.format(host=name),
                    where=_last_line(words) or None,
                    remedy=remedy.format(host=name, command=command, known=self._known_as(words)),
                )
        said = f"; ssh's words: {_last_line(words)}" if words.strip() else ""
        return ProviderError(
            f"the connection to {self.host.name} broke while {doing}{said}",
            remedy=f"see that `{self.host.command}` works, and try again",
        )

    def _known_as(self, words: str) -> str:
        """What OpenSSH calls it in known_hosts."""
        found = re.search(r"key for (\S+) has changed", words)
        return found.group(1) if found else self.host.name


_MEANINGS = {
    r"Could not resolve hostname": (
        "there is no host {host!r}",
        "check the name, or give its address; an alias belongs into ssh's configuration",
    ),
    r"REMOTE HOST IDENTIFICATION HAS CHANGED|host key for .* has changed": (
        "{host} shows another host key than before: it was set up anew, or this is another machine",
        "if you know why, forget the old key with `ssh-keygen -R '{known}'` and connect once with `{command}`",
    ),
    r"Host key verification failed|No .* host key is known": (
        "the host key of {host} is not known yet",
        "connect once with `{command}`, compare the fingerprint that it shows, and accept it",
    ),
    r"Permission denied \(": (
        "{host} accepts none of your keys",
        "put a key there with `ssh-copy-id`, or load it with `ssh-add`; edgeq never asks for a password; "
        "`{command}` must work without one",
    ),
    r"Too many authentication failures": (
        "{host} refused after too many keys",
        "name the right one in ssh's configuration (IdentityFile, IdentitiesOnly yes)",
    ),
    r"UNPROTECTED PRIVATE KEY|bad permissions": (
        "your key for {host} may be read by others, so that ssh does not use it",
        "`chmod 600` the key's file",
    ),
    r"Connection refused": (
        "{host} refuses connections: no ssh server listens there",
        "start one on the board (`systemctl enable --now ssh`), or give its port as ssh:HOST:PORT",
    ),
    r"(Connection|Operation) timed out|No route to host|Network is unreachable|Host is down": (
        "{host} does not answer",
        "see that the board is on, and in the same network; `{command}` must work",
    ),
    r"kex_exchange_identification|Connection (closed|reset) by .* port|banner exchange": (
        "{host} closed the connection before it was made",
        "the server refuses this machine (MaxStartups, hosts.deny), or what listens there is no ssh server",
    ),
    r"Bad configuration option|terminating, \d+ bad configuration": (
        "ssh does not accept its configuration",
        "correct the file that it names",
    ),
}
"""What ssh says -> what is wrong, and what to do."""


def _last_line(words: Sequence[str] | str) -> str:
    lines = [line.strip() for line in str(words).splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
