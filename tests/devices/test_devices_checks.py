"""`edgeq run --device` against limits and baselines: what fails a build, what cannot be told, and JUnit of it."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import msgspec
import pytest
from command_line import Result, classifier, edgeq, images
from python_device import PythonDevice

from edgeq.device_checks import DeviceLimits, against_baseline, with_checks
from edgeq.device_report import (
    DeviceCheck,
    DeviceInfo,
    DeviceLatency,
    DeviceReport,
    DeviceResult,
    SessionTimes,
)
from edgeq.devices import registry
from edgeq.errors import ProviderError
from edgeq.junit import junit_xml

INFO = DeviceInfo(spelling="adb:1", kind="adb", model="Phone", soc="Chip", abi="arm64-v8a", cores=8)


def result(*medians: float, **changes: object) -> DeviceResult:
    """A phone on which the sessions took these times, in ms; CPU time is half of it."""
    sessions = tuple(SessionTimes(runs=20, wall_ms=(ms,) * 21, cpu_p50_ms=ms / 2) for ms in medians)
    ms = medians[0] if medians else 1.0
    common = dict.fromkeys(("min_ms", "p50_ms", "p90_ms", "p99_ms", "max_ms", "mean_ms"), ms)
    latency = DeviceLatency(runs=20 * len(medians), warmup_runs=3, per_second=1e3 / ms, sessions=sessions, **common)
    made = DeviceResult(
        device=INFO,
        target="android",
        precision="w8a8",
        provider="CPUExecutionProvider",
        runtime="onnxruntime 1.32.0",
        latency=latency if medians else None,
    )
    return msgspec.structs.replace(made, **changes)


def report(*results: DeviceResult) -> DeviceReport:
    return DeviceReport(edgeq="0", name="tiny", target="android", precision="w8a8", results=results)


BEFORE = result(10.0, 10.1, 9.9, 10.0)
LIMITS = DeviceLimits(max_regression=0.05)


@pytest.mark.parametrize(
    ("now", "state", "code"),
    [
        ((11.0, 11.1, 10.9, 11.0), "failed", 7),
        ((10.2, 10.3, 10.1, 10.2), "passed", 0),
        ((10.0, 11.5, 9.5, 11.0), "undecided", 0),
        ((9.0, 9.1, 8.9, 9.0), "passed", 0),
    ],
    ids=["slower", "a little slower", "noisy", "faster"],
)
def test_a_regression_fails_only_if_the_interval_says_so(now: tuple[float, ...], state: str, code: int) -> None:
    found = with_checks(against_baseline(result(*now), report(BEFORE)), LIMITS)
    assert [(check.name, check.state) for check in found.checks[1:]] == [("--max-regression", state)]
    assert found.exit_code == code
    strict = msgspec.structs.replace(against_baseline(result(*now), report(BEFORE)))
    strict = with_checks(strict, DeviceLimits(max_regression=0.05, fail_if_undecided=True))
    assert strict.exit_code == (0 if state == "passed" else 7)


def test_cpu_time_decides_with_one_thread_and_wall_time_with_several() -> None:
    assert against_baseline(BEFORE, report(BEFORE)).regression.measure == "cpu"
    threads = msgspec.structs.replace(BEFORE, threads=2)
    assert against_baseline(threads, report(threads)).regression.measure == "wall"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"threads": 4}, "threads 4 instead of 1"),
        ({"provider": "QNNExecutionProvider"}, "provider QNNExecutionProvider instead of CPUExecutionProvider"),
        ({"core_mask": "f0"}, "core mask f0 instead of n/a"),
        ({"device": msgspec.structs.replace(INFO, model="Tablet")}, "model Tablet instead of Phone"),
        ({"device": msgspec.structs.replace(INFO, emulated=True)}, "emulated True instead of False"),
    ],
    ids=["threads", "provider", "cores", "device", "emulated"],
)
def test_a_baseline_of_other_conditions_is_refused(changes: dict[str, object], said: str) -> None:
    baseline = report(msgspec.structs.replace(BEFORE, **changes))
    found = with_checks(against_baseline(result(20.0, 20.0, 20.0, 20.0), baseline), LIMITS)
    (check,) = found.checks[1:]
    assert (check.state, found.regression, found.exit_code) == ("error", None, 2)
    assert said in check.text


def test_the_same_phone_may_have_another_serial_number_and_another_runtime() -> None:
    before = msgspec.structs.replace(
        BEFORE, device=msgspec.structs.replace(INFO, spelling="adb:2"), runtime="onnxruntime 1.30.0"
    )
    found = against_baseline(BEFORE, report(before))
    assert found.regression.verdict == "same"
    assert "measured with onnxruntime 1.30.0, this run with onnxruntime 1.32.0" in found.findings[-1].text


def test_limits_of_latency() -> None:
    for limit, state, code in ((10.0, "passed", 0), (9.9, "failed", 7)):
        found = with_checks(BEFORE, DeviceLimits(max_latency_ms=limit))
        assert (found.checks[1].state, found.exit_code) == (state, code)
    emulated = msgspec.structs.replace(BEFORE.latency, emulated=True)
    for latency in (emulated, None):
        result = msgspec.structs.replace(BEFORE, latency=latency)
        for limits in (DeviceLimits(max_latency_ms=1.0), LIMITS):
            found = with_checks(result, limits)
            assert (found.checks[1].state, found.exit_code) == ("error", 2)


def test_a_device_that_failed_keeps_its_exit_code() -> None:
    for code, state in ((6, "failed"), (5, "error")):
        found = with_checks(msgspec.structs.replace(BEFORE, error="it broke", exit_code=code), LIMITS)
        assert [(check.state, check.text) for check in found.checks] == [(state, "it broke")]
        assert found.exit_code == code


def test_junit_counts_and_escapes() -> None:
    evil = 'a "quote", <tag>, & ]]>, \x00\x1b[31m, \ud800'
    checks = [DeviceCheck(name=evil, state=state, text=evil) for state in ("passed", "failed", "undecided", "error")]
    text = junit_xml(report(msgspec.structs.replace(BEFORE, checks=tuple(checks)), with_checks(BEFORE, LIMITS)))
    root = ET.fromstring(text)
    assert (root.tag, root.attrib["tests"], root.attrib["failures"], root.attrib["errors"]) == (
        "testsuites",
        "6",
        "1",
        "2",
    )
    first, second = root
    counts = ("tests", "failures", "errors", "skipped")
    assert [[suite.attrib[key] for key in counts] for suite in (first, second)] == [list("4111"), list("2010")]
    assert [case[0].tag for case in first] == ["system-out", "failure", "skipped", "error"]
    assert all(case.attrib["classname"] == "tiny on adb:1" for case in first)
    assert first[1][0].attrib["message"].startswith('a "quote", <tag>, & ]]>, ')


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checks")
    model, data = classifier(folder / "tiny.onnx"), images(folder / "data.npy")
    arguments = ("-t", "android", "-c", data, "-o", folder / "bundle", "--no-cache", "--no-measure", "--effort", "0")
    found = edgeq("export", model, *arguments)
    assert found.code == 0, found.err
    return folder / "bundle"


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> PythonDevice:
    made = PythonDevice(slow=lambda name: 1.5 if name == "slower" else 1.0)
    monkeypatch.setitem(registry.DEVICE_KINDS, "local", lambda _: made)
    return made


def run(bundle: Path, *arguments: str | Path) -> Result:
    return edgeq("run", bundle, "--device", "local", *arguments)


def test_a_baseline_is_stored_and_compared_with(device: PythonDevice, bundle: Path, tmp_path: Path) -> None:
    stored = tmp_path / "base.json"
    found = run(bundle, "--save-baseline", stored)
    assert found.code == 0, found.err
    assert [len(job.feeds) for job in device.jobs] == [4] + [1] * 7, "eight processes, outputs once"
    kept = DeviceReport.from_json(stored.read_bytes())
    assert [session.runs for session in kept.results[0].latency.sessions] == [8] * 8
    device.slow = lambda _: 4.0
    found = run(bundle, "--baseline", stored, "--max-regression", "50%", "--junit", tmp_path / "a" / "junit.xml")
    assert found.code == 7, found.out
    assert "failed: local: --max-regression: CPU time is" in " ".join(found.out.split())
    suite = ET.parse(tmp_path / "a" / "junit.xml").getroot()[0]
    assert [(case.attrib["name"], case[0].tag) for case in suite] == [
        ("runs and gives its outputs", "system-out"),
        ("--max-regression", "failure"),
    ]


@pytest.mark.parametrize("option", ["--save-baseline", "--junit", "--report"])
def test_nothing_is_measured_that_could_not_be_stored(
    option: str, device: PythonDevice, bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    found = run(bundle, option, tmp_path / "file" / "result")
    assert (found.code, device.jobs) == (8, [])
    assert "nothing can be written" in found.err


def test_a_bundle_as_the_baseline_runs_in_turn(device: PythonDevice, bundle: Path, tmp_path: Path) -> None:
    slower = Path(shutil.copytree(bundle, tmp_path / "slower"))
    limits = ("--max-regression", "5%", "--sessions", "4", "--json")
    found = run(slower, "--baseline", bundle, *limits)
    (judged,) = json.loads(found.out)["results"]
    assert (found.code, judged["regression"]["verdict"]) == (7, "slower")
    assert [job.entries[0].name for job in device.jobs[-4:]] == ["A", "B", "A", "B"]
    assert run(bundle, "--baseline", slower, *limits).code == 0


def test_without_limits_one_process_is_enough(device: PythonDevice, bundle: Path) -> None:
    assert run(bundle).code == 0
    assert len(device.jobs) == 1
    assert run(bundle, "--max-latency-ms", "0.000001").code == 7


def test_a_device_that_cannot_be_reached_is_in_the_junit_report(
    device: PythonDevice, bundle: Path, tmp_path: Path
) -> None:
    device.error = ProviderError("no route to board", remedy="switch it on")
    assert run(bundle, "--junit", tmp_path / "j.xml").code == 5
    (suite,) = ET.parse(tmp_path / "j.xml").getroot()
    assert (suite.attrib["errors"], suite[0][0].attrib["message"]) == ("1", "no route to board")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--max-regression", "5%"), "needs something to compare with"),
        (("--baseline", "missing.json"), "cannot read the baseline"),
        (("--max-latency-ms", "5", "--no-latency"), "--max-latency-ms limits the latency, which --no-latency leaves"),
    ],
    ids=["no baseline", "no such file", "not measured"],
)
def test_what_cannot_be_compared_is_refused_first(
    device: PythonDevice, bundle: Path, arguments: tuple[str, ...], said: str
) -> None:
    found = run(bundle, *arguments)
    assert (found.code, device.jobs) == (2, [])
    assert said in found.err


def test_limits_need_a_device(bundle: Path) -> None:
    found = edgeq("run", bundle, "--max-regression", "5%")
    assert found.code == 2
    assert "--max-regression says how a device is used" in found.err
