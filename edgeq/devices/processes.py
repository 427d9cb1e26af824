"""Programs of this machine that devices are reached through: none outlives its time, or edgeq."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from edgeq.devices.transport import Completed
from edgeq.errors import ProviderError
from edgeq.sandbox.process import end_workers

__all__ = ["end_processes", "run_process", "tracked"]

_KEPT_WORDS = 16 * 2**10
_running: set[subprocess.Popen[bytes]] = set()
_lock = threading.Lock()


def run_process(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None, timeout_s: float = 60.0
) -> Completed:
    """Run a program to its end, in a session of its own; exit code 127 if it does not start.

    Raises:
        ProviderError: it took longer than ``timeout_s``, and was ended with its children, as it is on Ctrl-C.
    """
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    except OSError as error:
        return Completed(127, "", f"{command[0]}: {error.strerror}")
    with tracked(process):
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise ProviderError(
                f"{Path(command[0]).name} did not end within {timeout_s:g} s and was ended",
                remedy="allow more with --timeout, or measure fewer runs",
            ) from None
        finally:
            if process.poll() is None:
                _end(process)
                process.communicate()
    return Completed(process.returncode, _text(out), _text(err))


@contextlib.contextmanager
def tracked(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Have ``end_processes`` end it as long as the block runs; it leads a session of its own."""
    with _lock:
        _running.add(process)
    try:
        yield
    finally:
        with _lock:
            _running.discard(process)


def end_processes() -> None:
    """Kill what other threads wait for, workers of sandboxes too: Ctrl-C comes to the main thread alone."""
    end_workers()
    with _lock:
        for process in _running:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _text(words: bytes) -> str:
    return words[-_KEPT_WORDS:].decode(errors="replace")
