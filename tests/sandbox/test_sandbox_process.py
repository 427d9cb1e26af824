"""The protocol between host and worker: what a task can do to a process, and what is left of it afterwards."""

from __future__ import annotations

import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from small_models import parse, samples, weights

from edgeq.errors import ProviderError
from edgeq.graph import save_model
from edgeq.runtime import run_model
from edgeq.sandbox import Task, find_sandbox
from edgeq.sandbox.process import DeadWorkerError, Worker, end_workers, python_command, run_tasks
from edgeq.target import Provider

CPU = Provider(name="CPUExecutionProvider", package="onnxruntime", version="")
PROC = Path("/proc")

FICKLE = """
import json, os, subprocess, sys, time
print(json.dumps({"ready": 1}), flush=True)
for line in sys.stdin:
    name = os.path.basename(json.loads(line)["model"])
    if name == "crash":
        print("the driver is gone", file=sys.stderr, flush=True)
        os.abort()
    if name == "leave":
        sys.exit(3)
    if name == "hang":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)  # edgeq-grandchild"])
        time.sleep(600)
    if name == "babble":
        sys.stderr.write("x" * 3_000_000 + "the end")
        os._exit(5)
    if name == "nonsense":
        print("not json", flush=True)
        continue
    print(json.dumps({"status": "refused", "reason": f"{os.getpid()}"}), flush=True)
"""
"""A worker that does to its host whatever the model is called."""


@pytest.fixture
def fickle(tmp_path: Path) -> Worker:
    script = tmp_path / "fickle.py"
    script.write_text(FICKLE, encoding="utf-8")
    return Worker([sys.executable, str(script)])


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))


def tasks(*names: str) -> list[Task]:
    return [Task(Path(name), CPU) for name in names]


def alive(text: str) -> list[str]:
    """The processes whose command line holds ``text``."""
    found = []
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if text.encode() in command and state != "Z":
                found.append(entry.name)
    return found


def conv(folder: Path) -> tuple[Path, list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    model = parse("g (float[1,3,8,8] x) => (float[1,4,6,6] y) { y = Conv(x, w) }", w=weights(4, 3, 3, 3))
    save_model(model, folder / "conv.onnx")
    feeds = samples(model, 3)
    return folder / "conv.onnx", feeds, [run_model(model, feed) for feed in feeds]


def test_a_task_that_kills_the_process_costs_only_itself(fickle: Worker) -> None:
    first, crashed, left, last = run_tasks(fickle, tasks("a", "crash", "leave", "b"), timeout_s=30)
    assert (first.status, crashed.status, left.status, last.status) == ("refused", "crashed", "crashed", "refused")
    assert "SIGABRT" in str(crashed.reason)
    assert "the driver is gone" in str(crashed.reason)
    assert "exit code 3" in str(left.reason)
    assert first.reason != last.reason, "the last task must have got a new process"


def test_one_process_serves_many_tasks(fickle: Worker) -> None:
    first, second = run_tasks(fickle, tasks("a", "b"), timeout_s=30)
    assert first.reason == second.reason


@pytest.mark.skipif(not PROC.exists(), reason="reads the processes from /proc")
def test_a_task_that_takes_too_long_is_ended_with_all_that_it_started(fickle: Worker) -> None:
    hung, after = run_tasks(fickle, tasks("hang", "a"), timeout_s=2)
    assert hung.status == "crashed"
    assert "no answer within 2 s" in str(hung.reason)
    assert after.status == "refused"
    assert not alive("edgeq-grandchild")
    assert not alive(str(fickle.command[1]))


def test_the_last_words_are_kept_and_no_more(fickle: Worker) -> None:
    (outcome,) = run_tasks(fickle, tasks("babble"), timeout_s=30)
    assert outcome.status == "crashed"
    assert str(outcome.reason).endswith("the end")
    assert len(str(outcome.reason)) < 1200


def test_an_answer_that_is_none_is_a_crash(fickle: Worker) -> None:
    nonsense, after = run_tasks(fickle, tasks("nonsense", "a"), timeout_s=30)
    assert (nonsense.status, after.status) == ("crashed", "refused")


def test_a_worker_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import a_module_that_nobody_has", encoding="utf-8")
    for command in ([sys.executable, str(broken)], [str(tmp_path / "nothing")]):
        with pytest.raises(ProviderError, match="does not start"):
            run_tasks(Worker(command), tasks("a"))


def test_the_cpu_computes_what_it_computes_here_and_leaves_no_files(tmp_path: Path) -> None:
    model, feeds, expected = conv(tmp_path)
    (outcome,) = find_sandbox("cpu").run([Task(model, CPU, tuple(feeds), optimized=tmp_path / "optimized.onnx")])
    assert outcome.status == "ran", outcome.reason
    assert outcome.version.startswith("onnxruntime ")
    assert outcome.assigned == {"y": "CPUExecutionProvider"}
    assert (tmp_path / "optimized.onnx").exists()
    for output, reference in zip(outcome.outputs, expected, strict=True):
        np.testing.assert_allclose(output["y"], reference["y"], atol=1e-5)
    assert not list(Path(tempfile.gettempdir()).iterdir())


def test_what_cannot_be_done_is_refused_with_the_providers_words(tmp_path: Path) -> None:
    model, feeds, _ = conv(tmp_path)
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"no model")
    absent = Provider(name="CUDAExecutionProvider", package="onnxruntime-gpu", version="")
    plugin = Provider(name="NoSuchProvider", package="no-such-plugin", version="", registration="plugin")
    found = find_sandbox("cpu").run(
        [
            Task(tmp_path / "none.onnx", CPU),
            Task(bad, CPU),
            Task(model, CPU, ({"z": feeds[0]["x"]},)),
            Task(model, CPU, ({"x": feeds[0]["x"][:, :2]},)),
            Task(model, CPU, ({"x": np.array([object()])},)),
            Task(model, absent, tuple(feeds)),
            Task(model, plugin, tuple(feeds)),
            Task(model, CPU, tuple(feeds)),
        ]
    )
    assert [outcome.status for outcome in found] == ["refused"] * 4 + ["refused"] * 3 + ["ran"]
    words = ("exist", "protobuf", "x", "Got invalid dimensions", "type", "this build has no CUDA", "no_such_plugin")
    for outcome, word in zip(found, words, strict=False):
        assert word.lower() in str(outcome.reason).lower()


def test_names_strings_and_types_pass_unchanged(tmp_path: Path) -> None:
    text = 'g (string[2] file, bool[2] "a/b", float16[2] h) => (string[2] s, bool[2] n, float16[2] r)'
    body = '{ s = Identity(file) n = Not("a/b") r = Identity(h) }'
    names = (f"{text} {body}").replace('"a/b"', "a_b")
    save_model(parse(names), tmp_path / "m.onnx")
    feed = {"file": np.array(["ä", "b"], object), "a_b": np.array([True, False]), "h": np.array([1, 2], np.float16)}
    (outcome,) = find_sandbox("cpu").run([Task(tmp_path / "m.onnx", CPU, (feed,))])
    assert outcome.status == "ran", outcome.reason
    assert outcome.outputs[0]["s"].tolist() == ["ä", "b"]
    assert outcome.outputs[0]["n"].tolist() == [False, True]
    assert outcome.outputs[0]["r"].dtype == np.float16


def test_a_worker_ends_when_its_host_is_gone() -> None:
    import subprocess

    worker = subprocess.Popen(python_command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert worker.stdin is not None
    assert worker.stdout is not None
    assert b"ready" in worker.stdout.readline()
    worker.stdin.close()
    assert worker.wait(timeout=60) == 0
    worker.stdout.close()


def test_a_worker_can_be_ended_from_another_thread() -> None:
    code = "import sys; print('{}', flush=True); sys.stdin.readline(); sys.stdin.read()"
    with Worker([sys.executable, "-c", code]) as worker:
        timer = threading.Timer(0.5, end_workers)
        timer.start()
        with pytest.raises(DeadWorkerError, match="SIGKILL"):
            worker.ask({}, timeout_s=60)
        timer.join()
