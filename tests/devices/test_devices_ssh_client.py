"""ssh: how a host is spelled, and what ssh's words mean."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgeq.devices.registry import parse_device
from edgeq.devices.ssh_client import Host, SshClient, parse_host
from edgeq.devices.ssh_transport import connected
from edgeq.errors import ConfigError, ProviderError


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("board", Host("board")),
        ("pi@raspberrypi.local", Host("raspberrypi.local", "pi")),
        ("10.0.0.7:2222", Host("10.0.0.7", None, 2222)),
        ("pi@10.0.0.7:2222", Host("10.0.0.7", "pi", 2222)),
        ("root@[fe80::1%eth0]:22", Host("fe80::1%eth0", "root", 22)),
        ("[::1]", Host("::1")),
    ],
)
def test_hosts(text: str, host: Host) -> None:
    assert parse_host(text) == host
    assert str(host) == text
    assert parse_device(f"ssh:{text}").spelling == f"ssh:{text}"


@pytest.mark.parametrize(
    "text",
    ["", "-oProxyCommand=touch x", "user@-x", "-l@host", "a b", "host:0", "host:70000", "host:x", "a@b@c", "h;ls"],
)
def test_what_is_no_host_is_never_given_to_ssh(text: str) -> None:
    with pytest.raises(ConfigError, match="is no host"):
        parse_host(text)


def client(host: str = "pi@board:2222") -> SshClient:
    return SshClient(parse_host(host), "ssh", None)


@pytest.mark.parametrize(
    ("words", "what", "remedy"),
    [
        (
            "ssh: Could not resolve hostname board: Name or service not known",
            "there is no host 'board'",
            "check the name",
        ),
        (
            "ssh: connect to host board port 2222: Connection refused",
            "board refuses connections",
            "systemctl enable --now ssh",
        ),
        ("ssh: connect to host board port 22: Connection timed out", "board does not answer", "the board is on"),
        ("ssh: connect to host board port 22: No route to host", "board does not answer", "ssh -p 2222 pi@board"),
        (
            "No ED25519 host key is known for board and you have requested strict checking.\n"
            "Host key verification failed.",
            "the host key of board is not known yet",
            "connect once with `ssh -p 2222 pi@board`",
        ),
        (
            "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\n"
            "Host key for [board]:2222 has changed and you have requested strict checking.\n"
            "Host key verification failed.",
            "board shows another host key than before",
            "ssh-keygen -R '[board]:2222'",
        ),
        ("pi@board: Permission denied (publickey,password).", "board accepts none of your keys", "ssh-copy-id"),
        (
            "Received disconnect from 10.0.0.7: Too many authentication failures",
            "board refused after too many keys",
            "IdentitiesOnly",
        ),
        (
            "kex_exchange_identification: read: Connection reset by peer",
            "board closed the connection before it was made",
            "no ssh server",
        ),
        (
            "client_loop: send disconnect: Broken pipe",
            "the connection to board broke while it ran runner",
            "try again",
        ),
    ],
    ids=lambda value: value[:24],
)
def test_words_of_ssh(words: str, what: str, remedy: str) -> None:
    error = client().explain(words, "it ran runner")
    assert what in error.what
    assert error.remedy is not None
    assert remedy in error.remedy


def test_a_user_and_a_port_are_passed_on_and_nothing_is_asked() -> None:
    command = client().command()
    assert command[-2:] == ["--", "board"]
    assert command[command.index("-p") + 1] == "2222"
    assert command[command.index("-l") + 1] == "pi"
    assert "BatchMode=yes" in command


def test_no_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ProviderError, match="there is no ssh on the PATH"), connected(Host("board")):
        pass
