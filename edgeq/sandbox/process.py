"""The host's end of a worker process: tasks in, outcomes out, and a process that may die at any time.

A worker (see ``workers/``) reads one JSON object per line and answers each with one. A task that kills
it, or takes too long, costs only itself: the next task gets a new process.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np

from edgeq.errors import ProviderError
from edgeq.machine import usable_cores
from edgeq.sandbox.protocol import Outcome, Task

__all__ = [
    "WORKERS",
    "DeadWorkerError",
    "Worker",
    "end_workers",
    "load_arrays",
    "python_command",
    "run_tasks",
    "save_arrays",
]

WORKERS = Path(__file__).resolve().parent / "workers"
"""The folder of the worker scripts."""

_running: set[Worker] = set()
_lock = threading.Lock()

_LONGEST_ANSWER = 64 * 2**20
_KEPT_WORDS = 16 * 2**10


class DeadWorkerError(Exception):
    """A worker process ended, or was ended for taking too long; the text is its last words."""


@dataclass(eq=False)
class Worker:
    """One worker process at a time, started when it is needed.

    ``command`` starts it, ``environment`` is added to this process's own, ``start_s`` is how long it
    may take until it is ready for the first task (an emulated interpreter needs minutes).
    """

    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    start_s: float = 120.0
    _process: subprocess.Popen[bytes] | None = None
    _answers: queue.Queue[bytes] = field(default_factory=queue.Queue)
    _words: collections.deque[bytes] = field(default_factory=collections.deque)
    _readers: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send one task and wait for its answer.

        Raises:
            DeadWorkerError: the process ended or was too slow; the next call starts a new one.
            ProviderError: no process can be started.
        """
        if self._process is None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        self._words.clear()
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise DeadWorkerError(self._end()) from None
        return self._wait(timeout_s)

    def stop(self) -> None:
        """End the process and all that it started; nothing is left behind."""
        process, self._process = self._process, None
        with _lock:
            _running.discard(self)
        if process is None:
            return
        _kill(process)
        process.wait()
        for thread in self._readers:
            thread.join(timeout=5)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                _close(stream)

    def _start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        environment |= {"ORT_DISABLE_TELEMETRY": "1", "PYTHONNOUSERSITE": "1", **self.environment}
        try:
            self._process = subprocess.Popen(
                list(self.command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                start_new_session=True,  # it and its children can be ended together; Ctrl-C is for us alone
            )
        except OSError as error:
            raise _no_start(self.command, error.strerror or str(error)) from None
        with _lock:
            _running.add(self)
        self._answers, self._words = queue.Queue(), collections.deque()
        self._readers = [
            threading.Thread(target=_read_answers, args=(self._process.stdout, self._answers), daemon=True),
            threading.Thread(target=_read_words, args=(self._process.stderr, self._words), daemon=True),
        ]
        for thread in self._readers:
            thread.start()
        try:
            self._wait(self.start_s)
        except DeadWorkerError as error:
            raise _no_start(self.command, str(error)) from None

    def end(self) -> None:
        """End the process from another thread; whoever waits for its answer gets DeadWorkerError."""
        process = self._process
        if process is not None:
            _kill(process)

    def _wait(self, timeout_s: float) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            words = self._end()
            raise DeadWorkerError(f"no answer within {timeout_s:g} s{_behind(words)}") from None
        except BaseException:
            self.stop()
            raise
        try:
            return dict(json.loads(line))
        except ValueError:
            raise DeadWorkerError(self._end()) from None

    def _end(self) -> str:
        """Stop, and say how the process ended and what it last said."""
        process = self._process
        assert process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        code = process.poll()
        self.stop()
        text = b"".join(self._words).decode(errors="replace")
        words = " | ".join(line.strip() for line in text.splitlines() if line.strip())[-1000:]
        if code is None:
            return words
        if code < 0:
            name = signal.Signals(-code).name if -code in signal.Signals._value2member_map_ else f"signal {-code}"
            return f"the process was ended by {name}{_behind(words)}"
        return f"the process ended with exit code {code}{_behind(words)}"


def end_workers() -> None:
    """End the processes of all workers, whichever thread waits for them."""
    with _lock:
        for worker in _running:
            worker.end()


def _behind(words: str) -> str:
    return f"; its last words: {words}" if words else ""


def _no_start(command: Sequence[str], why: str) -> ProviderError:
    return ProviderError(
        f"a sandbox's process does not start: {why}",
        where=" ".join(str(part) for part in command),
        remedy="install the sandbox again with `edgeq doctor --install-provider NAME`",
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The process and all of its session."""
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    except (ProcessLookupError, PermissionError):
        pass


def _close(stream: IO[bytes]) -> None:
    with contextlib.suppress(OSError):  # a pipe whose reader has died
        stream.close()


def _read_answers(stream: IO[bytes], answers: queue.Queue[bytes]) -> None:
    """Lines into the queue; an empty one at the end, or for a line that is too long to be an answer."""
    try:
        while line := stream.readline(_LONGEST_ANSWER):
            answers.put(line)
            if not line.endswith(b"\n"):
                break
    except (OSError, ValueError):
        pass
    answers.put(b"")


def _read_words(stream: IO[bytes], words: collections.deque[bytes]) -> None:
    """The last ``_KEPT_WORDS`` bytes of what the process prints, however much that is."""
    try:
        while chunk := os.read(stream.fileno(), 4096):
            words.append(chunk)
            while len(words) > _KEPT_WORDS // 4096:
                words.popleft()
    except (OSError, ValueError):
        pass


def run_tasks(
    worker: Worker,
    tasks: Sequence[Task],
    *,
    arguments: Mapping[str, str] | None = None,
    timeout_s: float = 300.0,
    threads: int = 0,
) -> list[Outcome]:
    """One outcome per task, in order, all through ``worker``, which is stopped at the end.

    Arrays travel in a temporary folder, which is removed. ``threads`` 0 means all cores.

    Raises:
        ProviderError: the worker does not start.
    """
    with worker, tempfile.TemporaryDirectory(prefix="edgeq-sandbox-") as folder:
        return [
            _one(worker, task, Path(folder), dict(arguments or {}), timeout_s, threads or usable_cores())
            for task in tasks
        ]


def _one(
    worker: Worker, task: Task, folder: Path, arguments: dict[str, str], timeout_s: float, threads: int
) -> Outcome:
    feeds: list[dict[str, Any]] = []
    for index, feed in enumerate(task.feeds):
        file = folder / f"in{index}.npz"
        problem = save_arrays(file, feed)
        if problem:
            return Outcome("refused", reason=problem)
        feeds.append({"file": str(file), "names": list(feed), "output": str(folder / f"out{index}.npz")})
    request = {
        "model": str(task.model.resolve()),
        "provider": msgspec.to_builtins(task.provider),
        "feeds": feeds,
        "optimized": str(task.optimized.resolve()) if task.optimized else None,
        "dimensions": dict(task.dimensions),
        "arguments": arguments,
        "threads": threads,
    }
    try:
        answer = worker.ask(request, timeout_s)
    except DeadWorkerError as error:
        return Outcome("crashed", reason=str(error))
    outputs: tuple[dict[str, np.ndarray], ...] = ()
    if answer["status"] == "ran":
        outputs = tuple(load_arrays(Path(feed["output"]), answer["names"]) for feed in feeds)
    for file in folder.iterdir():
        file.unlink()
    return Outcome(
        status=answer["status"],
        outputs=outputs,
        assigned=answer.get("assigned"),
        reason=answer.get("reason"),
        version=answer.get("version", ""),
    )


def save_arrays(file: Path, arrays: Mapping[str, np.ndarray]) -> str | None:
    """Write without pickle: names may be any text, so that arrays are numbered. Returns what is wrong, if anything."""
    plain = [np.asarray(array) for array in arrays.values()]
    plain = [array.astype(str) if array.dtype == object else array for array in plain]
    for name, array in zip(arrays, plain, strict=True):
        if array.dtype.kind not in "fiubcU":
            return f"input {name!r} has type {array.dtype}, which cannot be passed to another process"
    with file.open("wb") as stream:
        np.savez(stream, **{f"a{index}": array for index, array in enumerate(plain)})  # type: ignore[arg-type]
    return None


def load_arrays(file: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """What a worker saved, by the names it told."""
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[f"a{index}"] for index, name in enumerate(names)}


def python_command(python: str | os.PathLike[str] = sys.executable, script: str = "ort_worker.py") -> list[str]:
    """The command that starts a worker script, isolated from this process's Python settings and the user's packages."""
    return [os.fspath(python), "-I", "-X", "utf8", str(WORKERS / script)]
