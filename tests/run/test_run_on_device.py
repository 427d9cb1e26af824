"""What is said of a device's run: judged from outcomes that are made up."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from edgeq.bundle import GraphEntry
from edgeq.device_report import DeviceInfo, DeviceResult, DeviceState
from edgeq.devices.protocol import ModelRun, Outcome
from edgeq.errors import ValidationError
from edgeq.stages.run.on_device import References, judge_device
from edgeq.target import CPU_PROVIDER, Provider

REFERENCE = np.array([[3.0, 4.0]], np.float32)  # energy 25
ANSWER = np.array([[3.0, 3.5]], np.float32)  # noise 0.25: 20 dB
GRAPH = GraphEntry(
    model="model.onnx",
    target="linux-arm64",
    precision="w8a8",
    provider=Provider(name=CPU_PROVIDER, package="onnxruntime", version=">=1"),
    sqnr_db={"y": 20.0},
)
QUIET = DeviceState(frequency_mhz=(1800, 1800), temperature_c=50.0, throttled=False)
RUN = ModelRun("one", CPU_PROVIDER, load_ms=5.0, wall_ms=(2.0,) * 20, cpu_ms=(2.0,) * 20, peak_mb=20.0)
BOARD = Outcome(DeviceInfo(spelling="ssh:board", kind="ssh"), "onnxruntime 1.32.0", (), 1, before=QUIET, after=QUIET)


def judge(
    outcome: Outcome = BOARD, run: ModelRun = RUN, answer: np.ndarray = ANSWER, **changes: object
) -> DeviceResult:
    run = replace(run, outputs=({"y": answer},))
    graph = msgspec.structs.replace(GRAPH, **changes)
    return judge_device(outcome, run, graph, References([{}], [{"y": REFERENCE}], "one sample"))


def texts(result: DeviceResult) -> str:
    return " | ".join(finding.text for finding in result.findings)


def test_a_quiet_run_that_is_as_good_as_promised_has_nothing_to_say() -> None:
    result = judge()
    assert (result.error, result.exit_code, result.findings, result.notes) == (None, 0, (), ())
    assert result.metrics[-1].value == pytest.approx(20.0)


@pytest.mark.parametrize(("recorded", "code"), [(23.0, 0), (23.1, 6)])
def test_the_tolerance_is_what_an_output_may_stay_behind(recorded: float, code: int) -> None:
    result = judge(sqnr_db={"y": recorded})
    assert result.exit_code == code
    assert (result.error is None) == (code == 0)


def test_an_output_of_another_shape_is_an_error() -> None:
    with pytest.raises(ValidationError, match=r"output 'y' is \(1, 3\)"):
        judge(answer=np.zeros((1, 3), np.float32))


def test_what_was_computed_for_padding_is_not_judged() -> None:
    reference, answer = np.stack([REFERENCE] * 2, 1), np.stack([ANSWER, 9 * ANSWER], 1)
    run = replace(RUN, outputs=({"y": answer},))
    found = [
        judge_device(BOARD, run, GRAPH, References([{"attention_mask": np.array([mask])}], [{"y": reference}], "one"))
        for mask in ([1, 0], [1, 1])
    ]
    assert [result.exit_code for result in found] == [0, 6]
    assert found[0].metrics[-1].value == pytest.approx(20.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"after": msgspec.structs.replace(QUIET, throttled=True)}, "slowed itself down because it was hot"),
        ({"after": msgspec.structs.replace(QUIET, frequency_mhz=(1200, 1800))}, "from 1800 to 1500 MHz"),
        ({"info": DeviceInfo(spelling="qemu:max", kind="qemu", emulated=True)}, "its times say nothing of it"),
    ],
)
def test_what_happened_to_the_device_is_said(changes: dict, words: str) -> None:
    assert words in texts(judge(replace(BOARD, **changes)))


def test_a_processor_that_was_shared_and_times_that_vary() -> None:
    shared = replace(RUN, wall_ms=(3.0,) * 20)
    assert "the processor was shared: one inference takes 3 ms, of which it computes 2 ms" in texts(judge(run=shared))
    uneven = replace(RUN, wall_ms=(2.0,) * 15 + (4.0,) * 5)
    assert "p90 is 2.0 times p50" in texts(judge(run=uneven))
    assert texts(judge(replace(BOARD, threads=2), shared)) == ""


def test_what_is_not_told_is_named() -> None:
    silent = replace(BOARD, before=DeviceState(), after=DeviceState())
    assert judge(silent, replace(RUN, peak_mb=None)).notes == (
        "n/a, as the device does not tell: temperature, frequency, memory",
    )
