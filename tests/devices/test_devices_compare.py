"""`edgeq compare`: both models in several processes, in both orders; verdicts, accuracy, exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import classifier, edgeq, images, save
from python_device import PythonDevice

from edgeq.compare_report import CompareReport
from edgeq.devices import registry
from edgeq.errors import ProviderError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Path:
    model, data = classifier(folder / "tiny.onnx"), images(folder / "data.npy")
    output = folder / "bundle"
    found = edgeq(
        "export", model, "-t", "android", "-c", data, "-o", output, "--no-cache", "--no-measure", "--effort", "0"
    )
    assert found.code == 0, found.err
    return output


@pytest.fixture(scope="module")
def slower(folder: Path, bundle: Path) -> Path:
    return Path(shutil.copytree(bundle, folder / "slower"))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> PythonDevice:
    made = PythonDevice(slow=lambda name: 1.05 if name == "slower" else 1.0)
    monkeypatch.setitem(registry.DEVICE_KINDS, "local", lambda _: made)
    return made


def compare(*arguments: str | Path) -> CompareReport:
    found = edgeq("compare", *arguments, *(() if "--sessions" in arguments else ("--sessions", "4")), "--json")
    assert found.code == 0, found.err
    return CompareReport.from_json(found.out.encode())


def test_both_orders_of_loading_are_run_as_often(device: PythonDevice, bundle: Path, slower: Path) -> None:
    report = compare(bundle, slower, "--sessions", "6", "--seconds", "0.1", "--cores", "big")
    first = [job.entries[0].name for job in device.jobs]
    assert first == ["A", "B"] * 3
    assert {(job.seconds, job.cores) for job in device.jobs} == {(0.1, "big")}
    assert [job.profile for job in device.jobs] == [True] + [False] * 5, "nodes are timed once"
    assert [len(job.feeds) for job in device.jobs] == [4, 1, 1, 1, 1, 1], "outputs are asked for once"
    (result,) = report.results
    assert [(d.measure, d.sessions, d.runs) for d in result.differences] == [("wall", 6, 48), ("cpu", 6, 48)]
    assert [len(one.sessions) for one in (result.a, result.b)] == [6, 6]
    assert result.nodes_a
    assert result.nodes_b


def test_a_slowdown_is_told_and_can_fail_a_build(device: PythonDevice, bundle: Path, slower: Path) -> None:
    found = edgeq("compare", bundle, slower, "--fail-if", "slower", "--sessions", "4")
    assert found.code == 7
    assert "B is slower than A: its time is 1.050 times (95 % interval 1.0" in found.out
    compare(bundle, slower)
    report = compare(slower, bundle, "--fail-if", "slower")
    assert report.results[0].difference.verdict == "faster"


def test_the_same_model_twice(device: PythonDevice, bundle: Path) -> None:
    report = compare(bundle, bundle)
    (result,) = report.results
    assert result.difference.verdict == "same"
    assert {metric.name: metric.value for metric in result.agreement} == {"cosine": 1.0, "SQNR": 200.0}
    assert result.metrics_a == result.metrics_b
    assert report.a.model_bytes == report.b.model_bytes == (bundle / "model.onnx").stat().st_size
    assert report.a.primary in {metric.name for metric in report.a.metrics}


def test_the_python_function_says_the_same(device: PythonDevice, bundle: Path, slower: Path) -> None:
    from edgeq import compare as function

    report = function(bundle, slower, sessions=4)
    assert report.results[0].difference.verdict == "slower"
    assert len(device.jobs) == 4


def test_what_decides(device: PythonDevice, bundle: Path) -> None:
    assert compare(bundle, bundle).results[0].decided_by == "cpu"
    assert compare(bundle, bundle, "--threads", "2").results[0].decided_by == "wall"
    assert compare(bundle, bundle, "--by", "wall").results[0].decided_by == "wall"


def test_an_onnx_file_against_its_bundle(device: PythonDevice, folder: Path, bundle: Path) -> None:
    report = compare(folder / "tiny.onnx", bundle)
    (result,) = report.results
    assert (report.a.name, report.a.target, report.a.metrics) == ("tiny", "", ())
    assert next(m.value for m in result.metrics_a if m.name == "SQNR") > 100, "the float model is the reference"
    assert next(m.value for m in result.metrics_b if m.name == "SQNR") < 60
    assert not list(folder.glob("*.tmp"))


def test_two_onnx_files_are_fed_what_fits(device: PythonDevice, tmp_path: Path) -> None:
    text = "g (float[N,4] x, int64[N,S] ids) => (float[N,4] y) {{ k = Cast<to=1>(ids) s = ReduceMax(k) y = {}(x, s) }}"
    a, b = (save(tmp_path / f"{op}.onnx", text.format(op)) for op in ("Mul", "Add"))
    found = edgeq("compare", a, b)
    assert found.code == 2
    assert "axis 1 (S) of the input 'ids' has no size" in found.err
    report = compare(a, b, "--fix", "S=3")
    assert device.jobs[0].feeds[0]["x"].shape == (1, 4)
    np.testing.assert_array_equal(device.jobs[0].feeds[0]["ids"], [[1, 1, 1]])
    assert "neither model brings samples" in report.results[0].notes[-1]
    assert report.results[0].metrics_a == ()


def test_models_with_other_inputs_are_refused(device: PythonDevice, folder: Path, bundle: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "other.onnx", "g (float[1,4] z) => (float[1,4] y) { y = Relu(z) }")
    found = edgeq("compare", bundle, other)
    assert (found.code, device.jobs) == (2, [])
    assert "B's are 'z' (float32, 2 axes)" in found.err


def test_a_device_that_fails_does_not_hide_the_others(
    device: PythonDevice, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = PythonDevice(spelling="ssh:board", error=ProviderError("no route to board", remedy="switch it on"))
    monkeypatch.setitem(registry.DEVICE_KINDS, "ssh", lambda _: broken)
    found = edgeq("compare", bundle, bundle, "-d", "ssh:board", "-d", "local")
    assert found.code == 5
    assert "ssh:board: no route to board" in found.out
    assert "local: B takes as long as A" in found.out


def test_emulated_devices_give_outputs_and_no_verdict(device: PythonDevice, bundle: Path, slower: Path) -> None:
    device.emulated = True
    found = edgeq("compare", bundle, slower, "--fail-if", "slower")
    assert found.code == 0
    assert "local: emulated: its times say nothing of the real device" in found.out
    assert [job.measure for job in device.jobs] == [False], "one process is enough for the outputs"
    (result,) = compare(bundle, slower).results
    assert (result.difference, result.a, result.differences) == (None, None, ())
    assert result.agreement
    assert edgeq("compare", bundle, slower, "--fail-if", "cannot-tell").code == 7


def test_the_report_is_written(device: PythonDevice, bundle: Path, tmp_path: Path) -> None:
    found = edgeq("compare", bundle, bundle, "--report", tmp_path / "new" / "folder", "--json")
    written = (tmp_path / "new" / "folder" / "compare.json").read_bytes()
    assert CompareReport.from_json(written) == CompareReport.from_json(found.out.encode())


@pytest.mark.parametrize("text", ["5", "-5%", "5 percent", "%"])
def test_percentages_carry_their_sign(device: PythonDevice, bundle: Path, text: str) -> None:
    found = edgeq("compare", bundle, bundle, f"--min-difference={text}", "--json")
    assert found.code == 2
    assert "such as 5%" in json.loads(found.out)["remedy"]
