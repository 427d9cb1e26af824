"""Qualcomm's emulator as a device: its numbers and placement, never its time; and what is said where it is missing."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from edgeq.bundle import Bundle
from edgeq.devices import Entry, Job
from edgeq.devices import htp as module
from edgeq.devices.htp import HtpDevice, find_htp
from edgeq.devices.registry import parse_device
from edgeq.errors import ConfigError, ModelError, ProviderError
from edgeq.graph import load_model
from edgeq.metrics import sqnr_db
from edgeq.runtime import run_model
from edgeq.sandbox import Outcome, find_sandbox
from edgeq.target import load_target


def installed() -> None:
    if why := find_sandbox("qnn").missing():
        pytest.skip(f"{why}: edgeq doctor --install-provider qnn")


def job_of(*bundles: Bundle, feeds: Any) -> Job:
    return Job(tuple(Entry(f"model {n}", one, one.manifest.main) for n, one in enumerate(bundles)), feeds)


def test_a_package_for_phones_runs_on_the_chip_and_no_time_is_told(bundle: Bundle, feeds: Any) -> None:
    installed()
    outcome = parse_device("htp:SM8750").run(job_of(bundle, feeds=feeds[:2]))
    (run,) = outcome.runs
    assert (outcome.info.soc, outcome.info.emulated) == ("SM8750", True)
    assert run.wall_ms == run.nodes == ()
    assert run.load_ms is run.first_ms is run.peak_mb is None
    assert list((run.assigned or {}).values()).count("QNNExecutionProvider") > 10
    for feed, outputs in zip(feeds[:2], run.outputs, strict=True):
        assert sqnr_db(run_model(load_model(bundle.model), feed)["logits"], outputs["logits"]) > 25
    fixed, placed, times = outcome.notes
    assert fixed == "batch fixed to 1"
    assert "on QNNExecutionProvider" in placed
    assert times.startswith("latency, memory and time per node: n/a")


def test_what_the_chip_leaves_to_the_processor_altogether_has_not_run_on_it(bundle: Bundle, feeds: Any) -> None:
    """Without a size for the batch the provider takes nothing, and says nothing of it."""
    installed()
    (image,) = bundle.manifest.inputs
    unnamed = msgspec.structs.replace(image, shape=(None, *image.shape[1:]))
    manifest = msgspec.structs.replace(bundle.manifest, inputs=(unnamed,))
    with pytest.raises(ModelError, match="QNNExecutionProvider takes none of the model's") as caught:
        HtpDevice.parse("v79").run(job_of(Bundle(bundle.path, manifest), feeds=feeds[:1]))
    assert "android-npu@v79" in str(caught.value.remedy)


class Emulator:
    """A sandbox that notes what it is given."""

    def __init__(self, **outcome: Any) -> None:
        self.outcome = Outcome(**{"status": "ran", "assigned": {"a": "QNNExecutionProvider"}, **outcome})
        self.tasks: list[Any] = []

    def run(self, tasks: Any, timeout_s: float) -> list[Outcome]:
        self.tasks += tasks
        return [self.outcome for _ in tasks]


def test_each_chip_is_asked_by_its_own_number(bundle: Bundle, feeds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    emulator = Emulator()
    monkeypatch.setattr(module, "_usable", lambda: emulator)
    known = load_target("android-npu").compile
    assert known is not None
    for chip in known.known:
        parse_device(f"htp:{chip.name}").run(job_of(bundle, feeds=feeds))
    assert [task.provider.options["soc_model"] for task in emulator.tasks] == [chip.value for chip in known.known]
    assert emulator.tasks[0].provider.options["backend_type"] == "htp"
    assert emulator.tasks[0].dimensions == {"batch": 1}


def test_options_of_a_package_for_the_chip_are_kept(
    bundle: Bundle, feeds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = Emulator()
    monkeypatch.setattr(module, "_usable", lambda: emulator)
    own = msgspec.structs.replace(load_target("android-npu@v68").provider, options={"x": "1", "soc_model": "30"})
    made = Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, provider=own))
    HtpDevice.parse("v79").run(job_of(made, feeds=feeds))
    assert emulator.tasks[0].provider.options == {"x": "1", "soc_model": "69"}


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ({"status": "refused", "reason": "no such op"}, "no such op"),
        ({"status": "crashed"}, "crashed without a reason"),
    ],
    ids=["refused", "crashed"],
)
def test_a_failure_is_in_the_providers_own_words(
    outcome: Any, words: str, bundle: Bundle, feeds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_usable", lambda: Emulator(**outcome))
    with pytest.raises(ModelError, match=f"^{words}"):
        HtpDevice.parse("").run(job_of(bundle, feeds=feeds))


def test_chips_and_architectures_are_those_of_the_target() -> None:
    known = load_target("android-npu").compile
    assert known is not None
    for chip in known.known:
        assert HtpDevice.parse(chip.name) == HtpDevice(chip, chip.name)
    assert HtpDevice.parse("v73").chip.name == "SM8550"
    assert HtpDevice.parse("sm8550").spelling == "htp:SM8550"
    assert HtpDevice.parse("").spelling == "htp:v79"
    with pytest.raises(ConfigError, match="'v99'") as caught:
        HtpDevice.parse("v99")
    assert "htp:v79 (htp:SM8750)" in str(caught.value.remedy)


@pytest.mark.parametrize("method", ["unusable", "missing"])
def test_a_missing_emulator_is_said_with_what_to_do(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = find_sandbox("qnn")
    monkeypatch.setattr(type(sandbox), "unusable", lambda self: "wrong machine" if method == "unusable" else None)
    monkeypatch.setattr(type(sandbox), "missing", lambda self: "not there")
    for call in (find_htp, HtpDevice.parse("").describe):
        with pytest.raises(ProviderError) as caught:
            call()
        assert ("edgeq doctor" in str(caught.value.remedy)) == (method == "missing")
    assert ("wrong machine" if method == "unusable" else "not there") in str(HtpDevice.parse("").missing())
