"""Commands through a client end with it, in every shell that a phone or a board may have."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeq.devices.shell import Attempt, run_watched, watched

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="shells and process groups of Linux")

SHELLS = {"sh": ["sh"], "bash": ["bash"], "mksh": ["mksh"], "busybox": ["busybox", "sh"]}
"""Android's shell is mksh, that of small boards BusyBox's."""


@pytest.fixture(params=SHELLS)
def client(request: pytest.FixtureRequest) -> list[str]:
    """What stands for ``adb shell``: a shell that leads a group of its own."""
    shell = SHELLS[request.param]
    if shutil.which(shell[0]) is None:
        pytest.skip(f"needs {shell[0]}")
    return ["setsid", "--wait", *shell, "-c"]


def attempt(client: list[str], script: str, *, timeout_s: float = 20, **environment: str) -> Attempt:
    return run_watched(client, watched(["sh", "-c", script], environment), timeout_s=timeout_s)


def pids(folder: Path) -> list[int]:
    return [int(file.read_text()) for file in folder.glob("*.pid")]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def all_end(folder: Path, count: int) -> bool:
    """Whether ``count`` processes were started, and none is left within a few seconds."""
    for _ in range(100):
        if len(pids(folder)) == count and not any(map(alive, pids(folder))):
            return True
        time.sleep(0.05)
    return False


FAMILY = "echo $$ > {0}/parent.pid; sh -c 'echo $$ > {0}/child.pid; exec sleep 100' & sleep 100"


def test_exit_code_output_and_environment_come_back(client: list[str]) -> None:
    done = attempt(client, 'echo "$SAID"; echo beside >&2; exit 7', SAID='it\'s  a "word" $HOME').completed
    assert done is not None
    assert (done.code, done.out, done.err) == (7, 'it\'s  a "word" $HOME\n', "beside")


def test_a_command_that_a_signal_ended_has_a_negative_code(client: list[str]) -> None:
    done = attempt(client, "kill -9 $$").completed
    assert done is not None
    assert done.code == -signal.SIGKILL


def test_exit_codes_that_no_signal_has_are_kept() -> None:
    done = attempt(["setsid", "--wait", "sh", "-c"], "exit 255").completed
    assert done is not None
    assert done.code == 255


def test_output_without_a_last_newline_is_kept_as_it_is(client: list[str]) -> None:
    done = attempt(client, "printf word").completed
    assert done is not None
    assert done.out == "word"


def test_what_takes_too_long_is_ended_with_its_children(client: list[str], tmp_path: Path) -> None:
    found = attempt(client, FAMILY.format(tmp_path), timeout_s=0.7)
    assert found.completed is None
    assert found.code is None
    assert all_end(tmp_path, 2)


def test_what_runs_ends_when_the_host_dies(tmp_path: Path) -> None:
    """Even by SIGKILL, when nothing here can clean up."""
    client = ["setsid", "--wait", "sh", "-c"]
    script = watched(["sh", "-c", FAMILY.format(tmp_path)])
    code = f"from edgeq.devices.shell import run_watched; run_watched({client!r}, {script!r}, timeout_s=60)"
    host = subprocess.Popen([sys.executable, "-c", code])
    for _ in range(200):
        if len(list(tmp_path.glob("*.pid"))) == 2 and all(file.read_text() for file in tmp_path.glob("*.pid")):
            break
        time.sleep(0.05)
    assert [alive(pid) for pid in pids(tmp_path)] == [True, True]
    host.kill()
    host.wait()
    assert all_end(tmp_path, 2)


def test_a_client_that_breaks_off_has_not_run_the_command(tmp_path: Path) -> None:
    broken = tmp_path / "client"
    broken.write_text("#!/bin/sh\necho half; echo 'error: closed' >&2; exit 1\n")
    broken.chmod(0o755)
    assert attempt([str(broken)], "true") == Attempt(None, 1, "error: closed")


def test_a_shell_that_leads_no_group_ends_its_command_all_the_same(tmp_path: Path) -> None:
    """As under Dropbear, the server of small boards."""
    found = attempt(["env", "sh", "-c"], f"echo $$ > {tmp_path}/own.pid; exec sleep 100", timeout_s=0.5)
    assert found.completed is None
    assert all_end(tmp_path, 1)


def test_the_last_part_of_a_long_output_is_kept(tmp_path: Path) -> None:
    done = attempt(["setsid", "--wait", "sh", "-c"], "head -c 20000000 /dev/zero | tr '\\0' x; echo end").completed
    assert done is not None
    assert done.out.endswith("xend\n")
    assert len(done.out) <= 16 * 2**20
    assert os.getpgid(0)  # this process's own group was never a target
