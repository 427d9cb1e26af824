"""adb's real client against adb's real daemon, with emulated programs for Arm: push, run, pull, and each failure.

See ``emulated_phone`` for what of it is real.
"""

from __future__ import annotations

import json
import os
import shutil
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
from device_tools import phone_parts, why_no_phone
from emulated_phone import DRAGON, Phone, emulated_phone

from edgeq.bundle import Bundle, read_bundle
from edgeq.devices.adb import ANDROID_RUNNER, AdbDevice, find_phones
from edgeq.devices.adb_client import Adb
from edgeq.devices.adb_transport import ANDROID_FOLDER, AdbTransport
from edgeq.devices.native import died
from edgeq.devices.programs import find_runner
from edgeq.devices.registry import parse_device
from edgeq.devices.runtimes import ANDROID_RUNTIME
from edgeq.errors import ConfigError, EdgeqError, ModelError, ProviderError

pytestmark = pytest.mark.slow

RUNNER = "edgeq-runner"


@pytest.fixture(scope="module", autouse=True)
def parts() -> None:
    if why := why_no_phone():
        pytest.skip(why)


@pytest.fixture(scope="module")
def bundle(bundle_folder: Path) -> Bundle:
    return read_bundle(bundle_folder)


@pytest.fixture(scope="module")
def shared_phone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Phone]:
    with emulated_phone(tmp_path_factory.mktemp("phone")) as running:
        yield running


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The phone's C library is that of Linux, so that its runner and its ONNX Runtime are Linux's, too."""
    try:
        runner = find_runner("linux-aarch64")
    except ProviderError as error:
        pytest.skip(str(error))
    monkeypatch.setenv(ANDROID_RUNNER, str(runner))
    library = next(phone_parts().arm_root.rglob("libonnxruntime.so*"))
    monkeypatch.setenv(ANDROID_RUNTIME, str(library))


def attach(phone: Phone, monkeypatch: pytest.MonkeyPatch) -> Phone:
    monkeypatch.setenv("PATH", f"{phone.adb.parent}:{os.environ['PATH']}")
    return phone


@pytest.fixture
def phone(shared_phone: Phone, monkeypatch: pytest.MonkeyPatch, programs: None) -> Phone:
    return attach(shared_phone, monkeypatch)


@pytest.fixture
def own_phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: None) -> Iterator[Phone]:
    """One that may be broken."""
    with emulated_phone(tmp_path / "phone") as running:
        yield attach(running, monkeypatch)


@pytest.fixture
def transport(phone: Phone) -> AdbTransport:
    return AdbTransport(Adb.find(), phone.serial)


def folder_of(phone: Phone) -> Path:
    """edgeq's folder on the phone, as seen from here."""
    return phone.root / str(ANDROID_FOLDER).lstrip("/")


def in_the_middle(phone: Phone, act: object) -> threading.Thread:
    """Do it as soon as the runner runs on the phone."""

    def wait() -> None:
        for _ in range(1200):
            if phone.processes(RUNNER):
                time.sleep(1.5)
                act()  # type: ignore[operator]
                return
            time.sleep(0.05)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_files_and_commands_go_there_and_back(transport: AdbTransport, tmp_path: Path) -> None:
    content = os.urandom(3_000_000) + b"\r\n\x00\xff"
    (tmp_path / "out").write_bytes(content)
    there = transport.folder() / "folder/a file"
    transport.push(tmp_path / "out", there, executable=True)
    transport.pull(there, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    assert transport.run(["stat", "-c", "%a", str(there)]).out == "755\n"
    assert transport.run(["ls", "-A", str(there.parent)]).out == "a file\n"
    done = transport.run(["sh", "-c", 'echo "$WORD"; exit 41'], environment={"WORD": "a  'b'"})
    assert (done.code, done.out) == (41, "a  'b'\n")
    assert transport.run(["sh", "-c", "kill -11 $$"]).code == -signal.SIGSEGV
    assert transport.read(transport.folder() / "none") is None
    transport.remove(there.parent)
    assert transport.run(["ls", str(there.parent)]).code != 0
    free = transport.free_bytes(transport.folder())
    assert free is not None
    assert 0 < free <= 200 * 2**20


def test_a_package_gives_the_same_integers_as_here(phone: Phone, bundle: Bundle) -> None:
    job = small_job(bundle, cores="big")
    (here,) = parse_device("local").run(job).runs
    outcome = AdbDevice().run(job)
    (run,) = outcome.runs
    for own, wanted in zip(run.outputs, here.outputs, strict=True):
        assert own.keys() == wanted.keys()
        for name, array in wanted.items():
            np.testing.assert_array_equal(own[name], array)
    assert len(run.wall_ms) == 3
    assert run.peak_mb is not None
    assert outcome.runtime.startswith("onnxruntime ")
    assert outcome.core_mask == f"{(1 << os.cpu_count()) - (1 << os.cpu_count() // 2):x}"
    info = outcome.info
    assert (info.spelling, info.model, info.soc) == (f"adb:{phone.serial}", "Example Dragon 7", "QTI SM8550")
    assert (info.abi, info.os) == ("arm64-v8a", "Android 15 (API 35)")
    assert [cluster.max_mhz for cluster in info.clusters] == [1800, 2800]
    assert "DotProd" in info.isa
    assert info.emulated
    assert outcome.before.temperature_c == 42.5
    assert outcome.before.battery_percent == 83
    assert outcome.after.throttled is False
    assert not phone.processes(RUNNER)


def test_little_cores(phone: Phone, bundle: Bundle) -> None:
    assert AdbDevice().run(small_job(bundle, cores="little")).core_mask == f"{(1 << os.cpu_count() // 2) - 1:x}"


def test_fixed_performance_is_set_and_given_back(phone: Phone, bundle: Bundle) -> None:
    (phone.root / "data/calls").write_text("")
    AdbDevice().run(small_job(bundle))
    command = "cmd power set-fixed-performance-mode-enabled"
    assert (phone.root / "data/calls").read_text().splitlines() == [f"{command} true", f"{command} false"]


def test_only_what_changed_is_pushed_and_nothing_else_stays(phone: Phone, bundle: Bundle, tmp_path: Path) -> None:
    AdbDevice().run(small_job(bundle))
    before = {file: file.stat().st_mtime_ns for file in folder_of(phone).rglob("*") if file.is_file()}
    names = {file.name for file in before}
    assert {"index.json", "manifest.json", "model.onnx", RUNNER} <= names
    assert not [name for name in names if "part" in name or "job" in name or "feeds" in name]
    AdbDevice().run(small_job(bundle))
    assert before == {file: file.stat().st_mtime_ns for file in folder_of(phone).rglob("*") if file.is_file()}
    AdbDevice().run(small_job(read_bundle(shutil.copytree(bundle.path, tmp_path / "other"))))
    after = {file: file.stat().st_mtime_ns for file in folder_of(phone).rglob("*") if file.is_file()}
    assert {file.name for file in after.keys() - before.keys()} == {"manifest.json", "model.onnx"}
    assert [file.name for file, written in before.items() if after[file] != written] == ["index.json"]


def test_half_a_file_is_pushed_again(phone: Phone, bundle: Bundle) -> None:
    AdbDevice().run(small_job(bundle))
    for model in folder_of(phone).rglob("model.onnx"):
        model.write_bytes(model.read_bytes()[:100])
    assert len(AdbDevice().run(small_job(bundle)).runs[0].outputs) == 2


def test_a_hot_phone_cools_down_first(phone: Phone, bundle: Bundle) -> None:
    phone.warm(91.0, 3)
    timer = threading.Timer(2, phone.warm, (45.0, 0))
    timer.start()
    outcome = AdbDevice().run(small_job(bundle))
    timer.join()
    assert any("left to cool down for" in note for note in outcome.notes)
    assert outcome.after.throttled is False


def test_a_phone_that_gets_hot_is_told_of(phone: Phone, bundle: Bundle) -> None:
    thread = in_the_middle(phone, lambda: phone.warm(97.0, 4))
    outcome = AdbDevice().run(small_job(bundle, seconds=5))
    thread.join()
    phone.warm(41.0, 0)
    assert outcome.after.throttled
    assert any("throttled the phone while it was measured (critical)" in note for note in outcome.notes)


def test_what_takes_too_long_is_ended(phone: Phone, bundle: Bundle) -> None:
    with pytest.raises(EdgeqError, match=r"did not end within"):
        AdbDevice().run(small_job(bundle, seconds=600, timeout_s=6))
    assert not phone.processes(RUNNER)
    assert not list(folder_of(phone).glob("job-*"))


def test_a_runner_that_the_system_kills(phone: Phone, bundle: Bundle) -> None:
    def kill() -> None:
        phone.call("-s", phone.serial, "shell", f"kill -9 {phone.processes(RUNNER)[-1]}")

    thread = in_the_middle(phone, kill)
    with pytest.raises(ModelError, match="the system killed the runner") as caught:
        AdbDevice().run(small_job(bundle, seconds=60))
    thread.join()
    assert "memory" in str(caught.value.remedy)


def test_ctrl_c_ends_the_runner_and_gives_everything_back(phone: Phone, bundle: Bundle) -> None:
    (phone.root / "data/calls").write_text("")
    command = [sys.executable, str(Path(__file__).with_name("device_jobs.py")), str(bundle.path), "adb"]
    host = subprocess.Popen(command, stderr=subprocess.PIPE)
    thread = in_the_middle(phone, lambda: host.send_signal(signal.SIGINT))
    _, words = host.communicate(timeout=120)
    thread.join()
    assert b"KeyboardInterrupt" in words
    assert not phone.processes(RUNNER)
    assert not list(folder_of(phone).glob("job-*"))
    assert (phone.root / "data/calls").read_text().splitlines()[-1].endswith("enabled false")


def test_a_phone_that_is_lost_in_the_middle(own_phone: Phone, bundle: Bundle) -> None:
    """The error is that of the loss, not that of cleaning up what is out of reach."""
    thread = in_the_middle(own_phone, own_phone.lose)
    with pytest.raises(ProviderError, match=rf"{own_phone.serial} .*lost while it ran {RUNNER}") as caught:
        AdbDevice().run(small_job(bundle, seconds=60))
    thread.join()
    assert caught.value.remedy


def test_what_lost_jobs_left_is_removed_a_day_later(phone: Phone, bundle: Bundle) -> None:
    AdbDevice().run(small_job(bundle))
    for name, hours in {"job-old": 50, "job-new": 1, "lib-old": 50}.items():
        (folder_of(phone) / name).mkdir()
        then = time.time() - hours * 3600
        os.utime(folder_of(phone) / name, (then, then))
    AdbDevice().run(small_job(bundle))
    assert {path.name for path in folder_of(phone).glob("*-*")} == {"job-new", "lib-old"}
    for path in folder_of(phone).glob("*-*"):
        path.rmdir()


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: None, bundle: Bundle) -> None:
    with emulated_phone(tmp_path / "phone", room_mb=20) as small:
        attach(small, monkeypatch)
        with pytest.raises(ProviderError, match="no room for libonnxruntime"):
            AdbDevice().run(small_job(bundle))
        assert not list(folder_of(small).rglob(".*.part"))
        transport = AdbTransport(Adb.find(), small.serial)
        (tmp_path / "large").write_bytes(bytes(25 * 2**20))
        with pytest.raises(ProviderError, match="has no room for large"):
            transport.push(tmp_path / "large", transport.folder() / "large")
        assert not list(folder_of(small).rglob(".*.part"))


def test_programs_that_may_not_be_run(own_phone: Phone, bundle: Bundle) -> None:
    """As on a phone whose security policy says so."""
    own_phone.remount_data("noexec")
    with pytest.raises(ProviderError, match=r"does not start: the system forbids it.*ermission denied") as caught:
        AdbDevice().run(small_job(bundle))
    assert "security policy" in str(caught.value.remedy)


def test_a_runner_for_another_processor(
    phone: Phone, transport: AdbTransport, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(ANDROID_RUNNER, sys.executable)
    with pytest.raises(ProviderError, match="is made for x86_64, the device is arm64-v8a"):
        AdbDevice().run(small_job(bundle))
    other = bytearray(find_runner("linux-aarch64").read_bytes())
    other[18:20] = (22).to_bytes(2, "little")  # IBM's S/390
    (tmp_path / RUNNER).write_bytes(other)
    transport.push(tmp_path / RUNNER, transport.folder() / "other", executable=True)
    error = died(transport.run([str(transport.folder() / "other")]), AdbDevice().describe())
    assert "does not start: it is made for another processor" in str(error)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"ro.build.version.sdk": "23", "ro.build.version.release": "6.0.1"}, "needs Android 7"),
        ({"ro.product.cpu.abi": "armeabi-v7a"}, "has the ABI armeabi-v7a"),
        ({"ro.product.cpu.abi": ""}, "has no ABI of Android's"),
    ],
    ids=["too old", "32 bits", "no Android"],
)
def test_a_phone_that_onnx_runtime_does_not_run_on(
    own_phone: Phone, bundle: Bundle, changed: dict[str, str], what: str
) -> None:
    own_phone.say({**DRAGON, **changed})
    assert what in str(AdbDevice().describe().problem)
    with pytest.raises(ProviderError, match=what):
        AdbDevice().run(small_job(bundle))


def test_two_phones(own_phone: Phone) -> None:
    """The same phone under two addresses."""
    own_phone.call("connect", "127.0.0.2:5555")
    assert {one.spelling for one in find_phones()} == {"adb:127.0.0.1:5555", "adb:127.0.0.2:5555"}
    with pytest.raises(ConfigError, match="several phones") as caught:
        AdbDevice().describe()
    assert "adb:127.0.0.2:5555" in str(caught.value.remedy)
    assert AdbDevice("127.0.0.2:5555").describe().model == "Example Dragon 7"


def test_the_command_line(phone: Phone, bundle: Bundle) -> None:
    command = [sys.executable, "-m", "edgeq"]
    named = [*command, "devices", "--device", "adb", "--json"]
    listed = subprocess.run(named, capture_output=True, text=True, check=True)
    assert f"adb:{phone.serial}" in {one["spelling"] for one in json.loads(listed.stdout)}
    device = ["--device", f"adb:{phone.serial}", "--json"]
    ran = subprocess.run([*command, "run", str(bundle.path), *device], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    (result,) = json.loads(ran.stdout)["results"]
    assert result["device"]["soc"] == "QTI SM8550"
    assert result["latency"]["runs"] > 0
    assert result["metrics"]
    absent = subprocess.run(
        [*command, "run", str(bundle.path), "--device", "adb:absent"], capture_output=True, text=True, check=False
    )
    assert absent.returncode == 5
    assert "there is no phone 'absent'" in absent.stdout + absent.stderr
