"""The native runner on this machine, and over a transport that copies."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from command_line import edgeq, save, start_edgeq
from device_board import Board

from edgeq import run_on_devices
from edgeq.bundle import Bundle, read_bundle
from edgeq.device_report import DeviceInfo, DeviceReport
from edgeq.devices import Entry, Job
from edgeq.devices.here import EmulatedDevice, LocalDevice
from edgeq.devices.native import Programs, run_native
from edgeq.devices.runtimes import library_in
from edgeq.errors import ConfigError, MissingProviderError, ModelError, ProviderError
from edgeq.graph import TensorInfo
from edgeq.runtime import open_session
from edgeq.stages.calibrate import load_feed
from edgeq.stages.run.accuracy import evaluate

BOARD = DeviceInfo(spelling="board", kind="ssh", abi="linux")

pytestmark = pytest.mark.usefixtures("runner")


def job(bundle: Bundle, feeds: tuple, **settings: object) -> Job:
    defaults = {"min_runs": 5, "max_runs": 5, "seconds": 0.0, "warmup_runs": 2, "warmup_s": 0.0}
    return Job((Entry("one", bundle, bundle.manifest.main),), feeds, **{**defaults, **settings})


def in_python(bundle: Bundle, feeds: tuple) -> list[np.ndarray]:
    with open_session(bundle.model, provider=bundle.manifest.provider) as session:
        return [session.run(None, feed)[0] for feed in feeds]


@pytest.fixture
def programs(runner: Path) -> Programs:
    import onnxruntime

    return Programs(runner, library_in(Path(onnxruntime.__file__).parent))


def test_outputs_are_those_of_onnx_runtime_in_python(bundle: Bundle, feeds: tuple) -> None:
    found = LocalDevice().run(job(bundle, feeds)).runs[0]
    for ours, theirs in zip(found.outputs, in_python(bundle, feeds), strict=True):
        np.testing.assert_array_equal(ours["logits"], theirs)
        assert ours["logits"].dtype == theirs.dtype


def test_what_is_measured(bundle: Bundle, feeds: tuple) -> None:
    outcome = LocalDevice().run(job(bundle, feeds, profile=True))
    (run,) = outcome.runs
    assert len(run.wall_ms) == len(run.cpu_ms) == 5
    assert run.warmup_runs == 2
    assert min(run.wall_ms) > 0
    assert run.load_ms is not None
    assert run.first_ms is not None
    assert run.peak_mb is not None
    assert run.baseline_mb is not None
    assert 5 < run.baseline_mb < run.peak_mb < 500
    assert "QLinearConv" in {node.op_type for node in run.nodes}
    assert sum(node.share for node in run.nodes) == pytest.approx(1, abs=1e-3)
    assert outcome.runtime.startswith("onnxruntime 1.")
    assert "CPUExecutionProvider" in outcome.info.providers
    assert outcome.threads == 1


def test_entries_take_turns_and_keep_their_outputs_apart(bundle: Bundle, feeds: tuple) -> None:
    """Each of them is measured as often; their memory cannot be told apart, and is not told."""
    entries = tuple(Entry(name, bundle, bundle.manifest.main) for name in ("a", "../b"))
    runs = LocalDevice().run(Job(entries, feeds, seconds=0)).runs
    assert [run.name for run in runs] == ["a", "../b"]
    assert len(runs[0].wall_ms) == len(runs[1].wall_ms) == 20
    assert runs[0].peak_mb is None
    np.testing.assert_array_equal(runs[0].outputs[0]["logits"], runs[1].outputs[0]["logits"])


def test_measuring_can_be_left_out(bundle: Bundle, feeds: tuple) -> None:
    (run,) = LocalDevice().run(job(bundle, feeds, measure=False)).runs
    assert run.wall_ms == ()
    assert len(run.outputs) == len(feeds)


def test_it_is_pinned_to_the_cores_that_are_named(bundle: Bundle, feeds: tuple) -> None:
    outcome = LocalDevice().run(job(bundle, feeds, cores="0", threads=0))
    assert (outcome.core_mask, outcome.threads) == ("1", 1)
    for cores, words in (("first", "'first' names no cores"), ("1000", r"none of the cores 1000 may be used, only \d")):
        with pytest.raises(ConfigError, match=words) as caught:
            LocalDevice().run(job(bundle, feeds, cores=cores))
        assert caught.value.where == "--cores"
        assert "fault" not in str(caught.value.remedy)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cpu", "isa"), [("cortex-a53", ("NEON",)), ("cortex-a76", ("NEON", "DotProd")), ("Haswell", ())]
)
def test_an_emulated_processor_gives_its_own_integers(bundle: Bundle, feeds: tuple, cpu: str, isa: tuple) -> None:
    device = EmulatedDevice(cpu)
    if why := device.missing():
        pytest.skip(why)
    try:
        outcome = device.run(job(bundle, feeds, profile=True))
    except ProviderError as error:
        pytest.skip(error.what)  # no compiler for that processor
    assert outcome.info.emulated
    assert outcome.info.isa == isa
    assert outcome.before.frequency_mhz == ()
    (run,) = outcome.runs
    assert run.peak_mb is None
    assert run.nodes
    step = 0.02  # of the output's scale: integers may differ by one where kernels round differently
    for ours, theirs in zip(run.outputs, in_python(bundle, feeds), strict=True):
        np.testing.assert_allclose(ours["logits"], theirs, atol=step * np.abs(theirs).max())


def test_a_board_gets_what_it_lacks_and_nothing_twice(
    board: Board, programs: Programs, bundle: Bundle, feeds: tuple
) -> None:
    found = run_native(board, job(bundle, feeds, profile=True), programs, BOARD)
    np.testing.assert_array_equal(found.runs[0].outputs[1]["logits"], in_python(bundle, feeds)[1])
    assert found.runs[0].nodes
    assert board.pushed() == ["edgeq-runner", programs.runtime.name, "manifest.json", "model.onnx"]
    run_native(board, job(bundle, feeds), programs, BOARD)
    assert board.pushed() == []

    (bundle.path / "manifest.json").write_bytes((bundle.path / "manifest.json").read_bytes() + b"\n")
    run_native(board, job(read_bundle(bundle.path), feeds), programs, BOARD)
    assert board.pushed() == ["manifest.json"]
    (model,) = board.root.rglob("model.onnx")
    model.write_bytes(b"half")
    run_native(board, job(bundle, feeds), programs, BOARD)
    assert board.pushed() == ["model.onnx"]
    assert not list(board.root.rglob("job-*"))


def test_a_board_without_room_says_so(board: Board, programs: Programs, bundle: Bundle, feeds: tuple) -> None:
    board.free = 16 * 2**20
    with pytest.raises(
        ProviderError, match=r"no room for edgeq-runner on the device: it takes 0\.\d MB, 16\.8 MB are free"
    ):
        run_native(board, job(bundle, feeds), programs, BOARD)


def test_a_library_that_is_none(board: Board, programs: Programs, bundle: Bundle, feeds: tuple, tmp_path: Path) -> None:
    (tmp_path / "libonnxruntime.so").write_bytes(b"\x7fELF no more")
    broken = Programs(programs.runner, tmp_path / "libonnxruntime.so")
    with pytest.raises(ProviderError, match=r"^ONNX Runtime cannot be loaded"):
        run_native(board, job(bundle, feeds), broken, BOARD)
    assert not list(board.root.rglob("job-*"))


def test_a_model_that_does_not_load_is_told_in_the_runtimes_words(bundle: Bundle, feeds: tuple) -> None:
    save(bundle.model, "g (float[1,3,16,16] image) => (float[1,6] logits) { logits = toy.Nothing(image) }")
    with pytest.raises(ModelError, match=r"^the model does not load: .*Nothing"):
        LocalDevice().run(job(bundle, feeds))


def change_manifest(bundle: Bundle, **changes: object) -> Bundle:
    manifest = msgspec.structs.replace(bundle.manifest, **changes)
    (bundle.path / "manifest.json").write_bytes(manifest.to_json())
    return read_bundle(bundle.path)


def test_a_provider_that_is_not_there(bundle: Bundle, feeds: tuple) -> None:
    provider = msgspec.structs.replace(bundle.manifest.provider, name="QNNExecutionProvider")
    with pytest.raises(MissingProviderError, match="has no QNNExecutionProvider here"):
        LocalDevice().run(job(change_manifest(bundle, provider=provider), feeds))


def test_the_command_line(bundle: Bundle, tmp_path: Path) -> None:
    arguments = ("--device", "local", "--runs", "4", "--report", tmp_path / "report", "--profile")
    found = edgeq("run", bundle.path, *arguments)
    assert found.code == 0, found.err
    assert "QLinearConv" in found.out
    report = DeviceReport.from_json((tmp_path / "report" / "device-report.json").read_bytes())
    (result,) = report.results
    assert result.latency is not None
    assert (result.latency.runs, result.device.kind, result.error) == (4, "local", None)
    assert result.metrics[-1].value == pytest.approx(bundle.manifest.samples.sqnr_db["logits"], abs=0.01)


def test_outputs_that_are_not_what_they_were_fail(bundle: Bundle) -> None:
    samples = bundle.manifest.samples
    assert samples is not None
    changed = msgspec.structs.replace(samples, sqnr_db={"logits": samples.sqnr_db["logits"] + 3.5})
    change_manifest(bundle, samples=changed)
    found = edgeq("run", bundle.path, "--device", "local", "--no-latency", "--json")
    assert found.code == 6
    (result,) = json.loads(found.out)["results"]
    assert "SQNR of logits is" in result["error"]
    assert result["latency"] is None
    assert edgeq("run", bundle.path, "--device", "local", "--no-latency", "--tolerance", "4").code == 0


def test_a_data_set_is_streamed_in_parts_and_judged_as_anywhere(
    bundle: Bundle, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Parts of 8, then of 2 (the room for one and a half), give what one part gives in this process."""
    data, labels = bundle_folder.parent / "data.npy", tmp_path / "labels.csv"
    labels.write_text("".join(f"data.npy[{i}],{i % 6}\n" for i in range(24)))
    parts = []
    run = LocalDevice.run
    monkeypatch.setattr(LocalDevice, "run", lambda *given: parts.append(len(given[1].feeds)) or run(*given))
    monkeypatch.setattr("edgeq.devices.stream._ROOM", (5 * (3 * 16 * 16 + 6) * 4) // 2)
    reference = bundle_folder.parent / "small.onnx"
    report = run_on_devices(bundle.path, ["local"], latency=False, evaluation=data, labels=labels, reference=reference)
    assert parts == [bundle.manifest.samples.count, 8, *[2] * 8]

    inputs = [TensorInfo(entry.name, np.dtype(entry.dtype), entry.shape) for entry in bundle.manifest.inputs]
    feed = load_feed(data, inputs)
    expected = evaluate(
        reference,
        bundle.model,
        feed,
        task=bundle.manifest.task,
        source=feed.description,
        labels=[(i % 6,) for i in range(24)],
        provider=bundle.manifest.provider,
    )
    found = {metric.name: metric for metric in report.results[0].metrics if metric.source == feed.description}
    assert found == {metric.name: metric for metric in expected.metrics}
    assert "top-1 accuracy" in found

    alone = run_on_devices(bundle.path, ["local"], latency=False, evaluation=data, labels=labels, samples=6)
    (top,) = (metric for metric in alone.results[0].metrics if metric.name == "top-1 accuracy")
    assert top.float_value is None
    assert top.samples == 6


ANOTHER_MACHINE = """
from edgeq.devices import here, registry
class Other(here.LocalDevice):
    spelling = machine = "other"
registry.DEVICE_KINDS["other"] = lambda value: Other()
"""


@pytest.mark.parametrize("devices", [("local",), ("local", "other")], ids=["one machine", "two machines"])
def test_ctrl_c_leaves_no_program_running(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: tuple[str, ...]
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    named = [part for device in devices for part in ("--device", device)]
    process = start_edgeq("run", bundle.path, *named, "--seconds", "60", before=ANOTHER_MACHINE)
    deadline = time.monotonic() + 60
    while len(running_jobs(tmp_path)) < len(devices) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(running_jobs(tmp_path)) == len(devices)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert not running_jobs(tmp_path)
    assert not list((tmp_path / "temporary").iterdir())


def running_jobs(folder: Path) -> list[str]:
    """Command lines of runners whose job lies in ``folder``."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # it has ended
    return [line for line in lines if str(folder) in line and "edgeq-runner" in line]


def test_a_device_that_is_silent_for_too_long_is_given_up(bundle: Bundle) -> None:
    found = edgeq("run", bundle.path, "--device", "local", "--seconds", "60", "--timeout", "1")
    assert found.code == 5
    assert "edgeq-runner did not end within 1 s" in found.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--device", "fax:1"), "there is no kind of device 'fax'"),
        (("--device", "local:1"), "'local' takes no value"),
        (("--device", "local", "--gate", "all"), "--gate is for a run on this machine without --device"),
        (("--device", "local", "--labels", "x.csv"), "--labels goes with --evaluation"),
        (("--device", "local", "--evaluation", "photos"), "nothing to compare the device's outputs with"),
        (("--cores", "big"), "--cores says how a device is used, and none is named"),
    ],
)
def test_options_that_do_not_go_together(bundle: Bundle, arguments: tuple[str, ...], words: str) -> None:
    found = edgeq("run", bundle.path, *arguments)
    assert found.code == 2
    assert words in found.err
