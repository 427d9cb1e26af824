"""The system's real ssh against OpenSSH's real server on loopback: push, run, pull, and each failure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from device_jobs import small_job
from device_tools import why_no_sshd
from local_board import Board, local_board

from edgeq.bundle import Bundle, read_bundle
from edgeq.devices.programs import host_abi
from edgeq.devices.registry import parse_device
from edgeq.devices.ssh_client import parse_host
from edgeq.devices.ssh_transport import SshTransport, connected
from edgeq.errors import EdgeqError, ProviderError

pytestmark = pytest.mark.slow

RUNNER = "edgeq-runner"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    if why := why_no_sshd():
        pytest.skip(why)
    with local_board(tmp_path_factory.mktemp("board")) as started:
        yield started


@pytest.fixture
def board(running: Board, monkeypatch: pytest.MonkeyPatch) -> Board:
    monkeypatch.setenv("PATH", f"{running.path}:{os.environ['PATH']}")
    return running


@pytest.fixture
def transport(board: Board) -> Iterator[SshTransport]:
    with connected(parse_host("board")) as reached:
        yield reached


@pytest.fixture(scope="module")
def bundle(bundle_folder: Path) -> Bundle:
    return read_bundle(bundle_folder)


def runners(board: Board) -> list[int]:
    """Processes that run edgeq's runner out of the board's home folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"{board.home}/.cache/edgeq/bin".encode() in file.read_bytes().split(b"\0")[0]:
                found.append(int(file.parent.name))
        except OSError:
            continue
    return found


def in_the_middle(board: Board, act: object) -> threading.Thread:
    def wait() -> None:
        for _ in range(1200):
            if runners(board):
                time.sleep(0.5)
                act()  # type: ignore[operator]
                return
            time.sleep(0.05)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def none_left(board: Board) -> bool:
    for _ in range(60):
        if not runners(board):
            return True
        time.sleep(0.05)
    return False


def test_files_and_commands_go_there_and_back(transport: SshTransport, board: Board, tmp_path: Path) -> None:
    content = os.urandom(3_000_000) + b"\r\n\x00\xff"
    (tmp_path / "out").write_bytes(content)
    assert str(transport.folder()) == str(board.home / ".cache/edgeq")
    there = transport.folder() / "folder/a 'file'"
    transport.push(tmp_path / "out", there, executable=True)
    transport.pull(there, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    assert transport.run(["stat", "-c", "%a", str(there)]).out == "755\n"
    done = transport.run(["sh", "-c", 'echo "$WORD"; exit 255'], environment={"WORD": "a  'b'"})
    assert (done.code, done.out) == (255, "a  'b'\n")
    assert transport.run(["sh", "-c", "kill -11 $$"]).code == -signal.SIGSEGV
    assert transport.read(transport.folder() / "none") is None
    transport.remove(there.parent)
    assert not (board.home / ".cache/edgeq/folder").exists()
    assert (transport.free_bytes(transport.folder()) or 0) > 0


def test_a_package_gives_the_same_as_here(board: Board, bundle: Bundle, runner: Path) -> None:
    job = small_job(bundle)
    (here,) = parse_device("local").run(job).runs
    outcome = parse_device("ssh:board").run(job)
    (run,) = outcome.runs
    for own, wanted in zip(run.outputs, here.outputs, strict=True):
        assert own.keys() == wanted.keys()
        for name, array in wanted.items():
            np.testing.assert_array_equal(own[name], array)
    assert outcome.info.spelling == "ssh:board"
    assert outcome.info.abi == host_abi()
    kept = board.home / ".cache/edgeq"
    before = {file: file.stat().st_mtime_ns for file in kept.rglob("*") if file.is_file()}
    assert not list(kept.glob("job-*"))
    parse_device("ssh:board").run(job)
    assert before == {file: file.stat().st_mtime_ns for file in kept.rglob("*") if file.is_file()}


def test_what_takes_too_long_is_ended(board: Board, bundle: Bundle, runner: Path) -> None:
    with pytest.raises(EdgeqError, match=r"did not end within"):
        parse_device("ssh:board").run(small_job(bundle, seconds=600, timeout_s=3))
    assert none_left(board)


def test_ctrl_c_ends_the_runner(board: Board, bundle: Bundle, runner: Path) -> None:
    command = [sys.executable, str(Path(__file__).with_name("device_jobs.py")), str(bundle.path), "ssh:board"]
    host = subprocess.Popen(command, stderr=subprocess.PIPE)
    thread = in_the_middle(board, lambda: host.send_signal(signal.SIGINT))
    _, words = host.communicate(timeout=60)
    thread.join()
    assert b"KeyboardInterrupt" in words
    assert none_left(board)
    assert not list((board.home / ".cache/edgeq").glob("job-*"))


def test_a_connection_that_breaks_in_the_middle(board: Board, bundle: Bundle, runner: Path) -> None:
    def cut() -> None:
        """End the server's processes of this connection: its listener's children."""
        children = Path(f"/proc/{board.process.pid}/task/{board.process.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), signal.SIGKILL)

    thread = in_the_middle(board, cut)
    with pytest.raises(ProviderError, match="the connection to board broke while it ran edgeq-runner"):
        parse_device("ssh:board").run(small_job(bundle, seconds=60))
    thread.join()
    assert none_left(board)


def problem(spelling: str) -> str:
    return str(parse_device(spelling).missing())


def test_a_board_that_can_be_used(board: Board) -> None:
    assert parse_device("ssh:board").missing() is None
    assert parse_device(f"ssh:{board.user}@127.0.0.1:{board.port}").missing() is None


def test_a_port_where_nothing_listens(board: Board) -> None:
    assert "board refuses connections: no ssh server listens there" in problem("ssh:board:1")


def test_an_unknown_host(board: Board) -> None:
    assert "there is no host 'none.invalid'" in problem("ssh:none.invalid")


def test_an_unknown_host_key(board: Board) -> None:
    known = (board.folder / "known_hosts").read_text()
    (board.folder / "known_hosts").write_text("")
    assert "the host key of board is not known yet" in problem("ssh:board")
    (board.folder / "known_hosts").write_text(known)


def test_a_host_key_that_changed(board: Board) -> None:
    known = (board.folder / "known_hosts").read_text()
    stranger = (board.folder / "stranger.pub").read_text()
    (board.folder / "known_hosts").write_text(f"[127.0.0.1]:{board.port} {stranger}")
    told = problem("ssh:board")
    (board.folder / "known_hosts").write_text(known)
    assert "board shows another host key than before" in told
    assert f"ssh-keygen -R '[127.0.0.1]:{board.port}'" in told


def test_a_key_that_is_not_accepted(board: Board) -> None:
    accepted = (board.folder / "authorized_keys").read_text()
    (board.folder / "authorized_keys").write_text((board.folder / "stranger.pub").read_text())
    told = problem("ssh:board")
    (board.folder / "authorized_keys").write_text(accepted)
    assert "board accepts none of your keys" in told
    assert "ssh-copy-id" in told


def test_no_connection_is_left_behind(board: Board) -> None:
    with connected(parse_host("board")) as reached:
        reached.run(["true"])
        sockets = reached.client.sockets
    assert sockets is not None
    assert not sockets.exists()
    time.sleep(0.2)
    children = Path(f"/proc/{board.process.pid}/task/{board.process.pid}/children").read_text().split()
    assert children == []
