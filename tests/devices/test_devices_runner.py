"""The runner's C code against hostile jobs, manifests and arrays; the slow tests run it under sanitizers."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from edgeq.bundle import Bundle
from edgeq.devices import programs
from edgeq.devices.here import LocalDevice
from edgeq.devices.runtimes import board_runtime
from edgeq.errors import ProviderError

BAD_INPUT, BAD_MODEL, BAD_RUNTIME = 2, 3, 4
SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@dataclass
class Bench:
    """A valid job in a folder, to break and to run."""

    program: Path
    folder: Path
    job: dict = field(default_factory=dict)

    def run(self, text: bytes | None = None) -> tuple[int, dict]:
        (self.folder / "job.json").write_bytes(json.dumps(self.job).encode() if text is None else text)
        result = self.folder / "result.json"
        result.unlink(missing_ok=True)
        # The runner keeps names until it ends: there is no leak, but LeakSanitizer counts them where a job is refused.
        environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
        command = [str(self.program), str(self.folder / "job.json"), str(result)]
        done = subprocess.run(command, capture_output=True, check=False, env=environment, timeout=120, cwd=self.folder)
        said = done.stderr.decode(errors="replace")
        assert done.returncode >= 0, said
        assert "Sanitizer" not in said, said
        assert "runtime error" not in said, said
        return done.returncode, json.loads(result.read_bytes().decode(errors="replace"))

    def error(self, text: bytes | None = None) -> str:
        code, result = self.run(text)
        assert code == result["error"]["code"] != 0
        return result["error"]["text"]


@pytest.fixture(scope="session", params=["plain", pytest.param("sanitized", marks=pytest.mark.slow)])
def program(request: pytest.FixtureRequest, runner: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "plain":
        return runner
    abi = programs.host_abi()
    assert abi is not None
    try:
        return programs.compile_runner(abi, tmp_path_factory.mktemp("runner") / "edgeq-runner", flags=SANITIZERS)
    except ProviderError as error:
        pytest.skip(error.what)


@pytest.fixture
def bench(program: Path, bundle: Bundle, feeds: tuple, tmp_path: Path) -> Bench:
    abi = programs.host_abi()
    assert abi is not None
    folder = tmp_path / "job"
    folder.mkdir()
    with (folder / "feeds.npys").open("wb") as stream:
        for feed in feeds:
            np.save(stream, feed["image"])
    entry = {
        "name": "a",
        "bundle": str(bundle.path),
        "model": "model.onnx",
        "outputs": str(folder / "out.npys"),
        "profile": str(folder / "profile"),
        "plugin": None,
    }
    job = {
        "schema": 1,
        "runtime": str(board_runtime(abi.removeprefix("linux-"))),
        "cores": "all",
        "threads": 2,
        "timeout_s": 100,
        "warmup_runs": 1,
        "warmup_s": 0,
        "min_runs": 3,
        "max_runs": 3,
        "seconds": 0,
        "profile_s": 0,
        "measure": True,
        "sensors": True,
        "feeds": {"file": str(folder / "feeds.npys"), "names": ["image"], "count": len(feeds)},
        "entries": [entry],
    }
    return Bench(program, folder, job)


def test_the_job_itself_is_fine(bench: Bench) -> None:
    code, result = bench.run()
    assert code == 0
    assert len(result["entries"][0]["wall_ms"]) == 3
    assert result["threads"] == 2


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b'{"schema": 1',
        b'{"a": "\\u12"}',
        b'{"a": "\x01"}',
        b"[1, 2,, 3]",
        b"[" * 100_000,
        b'{"a": ' * 70 + b"1" + b"}" * 70,
        b"nul",
        b"-",
        b"1e",
        b'{"a" 1}',
        b'{"schema": 1} x',
    ],
    ids=range(13),
)
def test_what_is_not_json(bench: Bench, text: bytes) -> None:
    assert "is not JSON" in bench.error(text)


def deleted(*path: str | int) -> Callable[[dict], None]:
    def change(job: dict) -> None:
        for key in path[:-1]:
            job = job[key]
        del job[path[-1]]

    return change


def changed(value: object, *path: str | int) -> Callable[[dict], None]:
    def change(job: dict) -> None:
        for key in path[:-1]:
            job = job[key]
        job[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (deleted("entries"), "has no entries"),
        (deleted("entries", 0), "the job has no entries"),
        (deleted("seconds"), "the job has no seconds"),
        (changed(2, "schema"), "jobs of schema 1 only"),
        (changed(-1, "threads"), "no number between 0 and 4096"),
        (changed(1e300, "min_runs"), "no number between 0 and 1e+07"),
        (changed("1", "warmup_s"), "warmup_s of the job is no number"),
        (changed("0,1-", "cores"), "names no cores"),
        (changed("9-1", "cores"), "names no cores"),
        (changed("99999999999999999999", "cores"), "names no cores"),
        (changed("1000", "cores"), "none of the cores 1000 may be used, only 0"),
        (changed("/nowhere/manifest", "entries", 0, "bundle"), "manifest.json cannot be read"),
        (changed("../model.onnx", "entries", 0, "model"), "no plain path inside the bundle"),
        (changed("/etc/passwd", "entries", 0, "model"), "no plain path inside the bundle"),
        (changed("a/./b", "entries", 0, "model"), "no plain path inside the bundle"),
        (changed("a//b", "entries", 0, "model"), "no plain path inside the bundle"),
        (changed("a\0b", "entries", 0, "model"), "model of an entry of the job is no string"),
        (changed("none.onnx", "entries", 0, "model"), "the model does not load"),
        (changed(["picture"], "feeds", "names"), "the model does not run"),
        (changed([7], "feeds", "names"), "an input's name is no string"),
        (changed(99, "feeds", "count"), "holds no further .npy array"),
        (changed({"x": 1}, "entries", 0, "options"), "an option of the provider is no string"),
        (changed("/nowhere/lib.so", "runtime"), "ONNX Runtime cannot be loaded"),
        (changed("libm.so.6", "runtime"), "it has no OrtGetApiBase"),
    ],
)
def test_jobs_that_make_no_sense(bench: Bench, change: Callable[[dict], None], words: str) -> None:
    change(bench.job)
    assert words in bench.error()


def header(text: str, data: bytes = bytes(4 * 3 * 16 * 16)) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + data


SHAPE = "(1, 3, 16, 16)"


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (b"", "holds no further .npy array"),
        (b"\x93NUMPY\x01\x00", "holds no further .npy array"),
        (b"\x93NUMPY\x02\x00\xff\xff", "ends inside an array"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "an array's header has"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "ends inside an array's header"),
        (header(""), "no arrays of type"),
        (header("{'descr': '<f4"), "no arrays of type"),
        (header(f"{{'descr': '|O', 'fortran_order': False, 'shape': {SHAPE}}}"), "no arrays of type '|O'"),
        (header(f"{{'descr': '<f4', 'fortran_order': True, 'shape': {SHAPE}}}"), "not in C order"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3, 16"), "shape is malformed"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"), "shape is malformed"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}"), "shape is malformed"),
        (header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'1, ' * 33})}}"), "shape is malformed"),
        (header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'1099511627776, ' * 9})}}"), "malformed"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,)}"), "ends inside an array"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (1, 3, 16, 8)}"), "the model does not run"),
    ],
    ids=range(16),
)
def test_arrays_that_are_none(bench: Bench, array: bytes, words: str) -> None:
    Path(bench.job["feeds"]["file"]).write_bytes(array)
    assert words in bench.error()


@pytest.mark.parametrize("kind", ["job", "manifest", "feeds"])
def test_random_damage_ends_in_an_error_or_a_result(
    bench: Bench, bundle: Bundle, kind: str, request: pytest.FixtureRequest
) -> None:
    """Bytes are changed, removed and repeated; whatever comes of it, the program ends by itself."""
    manifest, feeds = bundle.path / "manifest.json", Path(bench.job["feeds"]["file"])
    whole = {"job": json.dumps(bench.job).encode(), "manifest": manifest.read_bytes(), "feeds": feeds.read_bytes()}
    rng = random.Random(0)
    for _ in range(60 if request.node.callspec.params["program"] == "sanitized" else 5):
        data = bytearray(whole[kind])
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(min(len(data), 400) if kind == "feeds" else len(data))
            data[at : at + rng.randint(0, 4)] = rng.randbytes(rng.randint(0, 4))
        manifest.write_bytes(data if kind == "manifest" else whole["manifest"])
        feeds.write_bytes(data if kind == "feeds" else whole["feeds"])
        code, result = bench.run(bytes(data) if kind == "job" else None)
        assert (code == 0) == ("error" not in result)


def test_names_from_a_model_are_data(bench: Bench) -> None:
    """A name with quotes and line ends comes back as it is, and names no file."""
    name = 'a"\\\n\t\u00e9\U0001f600/../x'
    bench.job["entries"][0]["name"] = name
    code, result = bench.run()
    assert code == 0
    assert result["entries"][0]["name"] == name


@pytest.fixture(scope="module")
def with_own_sys(runner: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A runner that reads a folder of ours in the place of ``/sys``, and the folder."""
    abi = programs.host_abi()
    assert abi is not None
    folder = tmp_path_factory.mktemp("sys")
    try:
        made = programs.compile_runner(abi, folder / "edgeq-runner", flags=("-O0", f'-DSYS="{folder}"'))
    except ProviderError as error:
        pytest.skip(error.what)
    return made, folder


PHONE = {
    "devices/system/cpu/cpu{slow}/cpufreq/cpuinfo_max_freq": "1800000",
    "devices/system/cpu/cpu{slow}/cpufreq/scaling_cur_freq": "1500000",
    "devices/system/cpu/cpu{fast}/cpufreq/cpuinfo_max_freq": "2400000",
    "devices/system/cpu/cpu{fast}/cpufreq/scaling_cur_freq": "2400000",
    "class/thermal/thermal_zone0/type": "battery",
    "class/thermal/thermal_zone0/temp": "91000",
    "class/thermal/thermal_zone1/type": "cpu-1-2-usr",
    "class/thermal/thermal_zone1/temp": "48250",
    "class/thermal/thermal_zone2/type": "cpu-broken",
    "class/thermal/thermal_zone2/temp": "-273000",
    "class/hwmon/hwmon0/name": "coretemp",
    "class/hwmon/hwmon0/temp2_input": "51500",
    "class/thermal/cooling_device0/type": "thermal-cpufreq-0",
    "class/thermal/cooling_device0/cur_state": "2",
    "class/power_supply/usb/type": "USB",
    "class/power_supply/bms/type": "Battery",
    "class/power_supply/bms/capacity": "73",
    "class/power_supply/bms/status": "Discharging",
    "class/power_supply/bms/current_now": "-500000",
    "class/power_supply/bms/voltage_now": "4000000",
}


def test_what_a_phone_tells_of_itself(bench: Bench, with_own_sys: tuple[Path, Path]) -> None:
    """-0.5 A at 4 V are 2 W; a sensor of the battery and one that is broken are not the processor's."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        pytest.skip("needs two cores to be of two kinds")
    bench.program, sys = with_own_sys
    for name, value in PHONE.items():
        file = sys / name.format(slow=cores[0], fast=cores[1])
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n")
    bench.job |= {"cores": ",".join(map(str, cores)), "min_runs": 2, "max_runs": 5000, "seconds": 0.3}
    code, result = bench.run()
    assert code == 0
    expected = {"frequency_mhz": [1500, 2400], "temperature_c": 51.5, "throttled": True, "battery_percent": 73}
    assert result["before"] == result["after"] == expected
    assert "energy is from the battery's current and voltage: the whole device" in result["notes"]
    (entry,) = result["entries"]
    mean_ms = sum(entry["wall_ms"]) / len(entry["wall_ms"])
    assert entry["energy_mj"] >= 2 * mean_ms * 0.99  # between two runs the battery gives, too
    bench.job |= {"max_runs": 2, "seconds": 0.0}  # over before the battery's first reading is due
    code, result = bench.run()
    assert result["entries"][0]["energy_mj"] > 0
    for kind, core in zip(("little", "big"), cores, strict=True):
        bench.job["cores"] = kind
        code, result = bench.run()
        if len(os.sched_getaffinity(0)) == 2:  # others tell of no frequency here
            assert int(result["core_mask"], 16) == 1 << core

    (sys / "class/power_supply/bms/status").write_text("Charging\n")
    (sys / "class/thermal/cooling_device0/cur_state").write_text("0\n")
    _, result = bench.run()
    assert result["entries"][0]["energy_mj"] is None
    assert any("being charged" in note for note in result["notes"])
    assert result["after"]["throttled"] is False


def test_a_counter_of_energy_that_stands_still_tells_nothing(bench: Bench, with_own_sys: tuple[Path, Path]) -> None:
    bench.program, sys = with_own_sys
    counter = sys / "class/powercap/intel-rapl:0"
    counter.mkdir(parents=True, exist_ok=True)
    (counter / "max_energy_range_uj").write_text("1000000\n")
    (counter / "energy_uj").write_text("400000\n")
    try:
        _, result = bench.run()
    finally:
        shutil.rmtree(sys / "class/powercap")
    assert "energy is n/a: the processor's own counter (RAPL) stands still" in result["notes"]
    assert result["entries"][0]["energy_mj"] is None


def test_it_says_how_it_is_used(program: Path) -> None:
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == BAD_INPUT
    assert "usage: edgeq-runner JOB.json RESULT.json" in done.stderr


def test_a_result_that_cannot_be_written(bench: Bench, bundle: Bundle, feeds: tuple) -> None:
    bench.job["entries"][0]["outputs"] = "/nowhere/out.npys"
    assert "/nowhere/out.npys cannot be written" in bench.error()
    assert LocalDevice().missing() is None
