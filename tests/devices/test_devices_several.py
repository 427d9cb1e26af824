"""Several devices in one run: at the same time where they are independent, and one failure is not all of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from command_line import edgeq
from python_device import PythonDevice

from edgeq import run_on_devices
from edgeq.bundle import Bundle
from edgeq.devices.protocol import Job, Outcome
from edgeq.devices.registry import DEVICE_KINDS
from edgeq.errors import MissingProviderError, ProviderError


@dataclass
class Meeting(PythonDevice):
    """Works only while another of another machine works, too; two of one machine must not meet."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(2))
    busy: set[str] = field(default_factory=set)

    def run(self, job: Job, progress: object = None) -> Outcome:
        assert self.machine not in self.busy
        self.busy.add(self.machine)
        self.barrier.wait(timeout=20)
        self.busy.discard(self.machine)
        return super().run(job)


@pytest.fixture
def kinds() -> Iterator[dict]:
    before = dict(DEVICE_KINDS)
    yield DEVICE_KINDS
    DEVICE_KINDS.clear()
    DEVICE_KINDS.update(before)


def test_machines_work_at_the_same_time_and_each_does_one_thing(bundle: Bundle, kinds: dict) -> None:
    barrier, busy = threading.Barrier(2), set()
    kinds["board"] = lambda value: Meeting(f"board:{value}", value[0], barrier=barrier, busy=busy)
    report = run_on_devices(bundle.path, ["board:a1", "board:b1", "board:a2", "board:b2", "board:a1"])
    assert [result.device.spelling for result in report.results] == ["board:a1", "board:b1", "board:a2", "board:b2"]
    assert all(result.error is None for result in report.results)


def test_one_that_fails_does_not_stop_the_others(bundle: Bundle, kinds: dict) -> None:
    kinds["board"] = lambda value: PythonDevice(f"board:{value}", value, error=ProviderError("it is out of paper"))
    kinds["fine"] = lambda value: PythonDevice("fine", "fine")
    found = edgeq("run", bundle.path, "--device", "board:1", "--device", "fine")
    assert found.code == 5
    assert "board:1: it is out of paper" in found.out
    assert "fine" in found.out


def test_names_of_devices_are_no_emoji(bundle: Bundle, kinds: dict) -> None:
    kinds["ssh"] = lambda value: PythonDevice(f"ssh:{value}", value, error=ProviderError("it is out of paper"))
    assert "ssh:x: it is out of paper" in edgeq("run", bundle.path, "--device", "ssh:x").out


def test_without_the_provider_the_fallback_runs_if_there_is_one(bundle: Bundle, kinds: dict) -> None:
    class Picky(PythonDevice):
        def run(self, job: Job, progress: object = None) -> Outcome:
            if job.entries[0].graph.provider.name == "QNNExecutionProvider":
                raise MissingProviderError("it has no QNN")
            return super().run(job)

    kinds["board"] = lambda value: Picky("board", "board")
    manifest = bundle.manifest
    main = manifest.main
    provider = {"name": "QNNExecutionProvider", "package": "onnxruntime-qnn", "version": ">=2"}
    import msgspec

    from edgeq.target import Provider

    changed = msgspec.structs.replace(manifest, provider=msgspec.convert(provider, Provider), fallback=main)
    (bundle.path / "manifest.json").write_bytes(changed.to_json())
    (result,) = run_on_devices(bundle.path, ["board"]).results
    assert result.error is None
    assert result.provider == "CPUExecutionProvider"
    assert "the fallback for android ran, since it has no QNN" in result.findings[0].text

    (bundle.path / "manifest.json").write_bytes(msgspec.structs.replace(changed, fallback=None).to_json())
    (result,) = run_on_devices(bundle.path, ["board"]).results
    assert (result.error, result.exit_code) == ("it has no QNN", 5)
