"""The list of devices: every kind is asked, none can hold up or hide the others, and what is wrong is said."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from command_line import edgeq

from edgeq.device_report import Cluster, DeviceInfo
from edgeq.devices import Device, Job, Outcome
from edgeq.devices import registry as kinds
from edgeq.devices.listing import list_devices
from edgeq.errors import ConfigError, ProviderError


@dataclass
class Fake:
    """A phone as it would describe itself; a call stands for one that does not."""

    spelling: str = "adb:PHONE"
    answer: Callable[[], DeviceInfo] | None = None
    why: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def missing(self) -> str | None:
        return self.why

    def describe(self) -> DeviceInfo:
        return self.answer() if self.answer else DeviceInfo(spelling=self.spelling, kind="adb", **self.facts)

    def run(self, job: Job, progress: object = None) -> Outcome:
        raise AssertionError("a list runs nothing")


def fail(error: Exception) -> Callable[[], Any]:
    def call() -> Any:
        raise error

    return call


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[], Sequence[Device]]]:
    """What each kind finds, for the test to fill; nothing of this machine."""
    monkeypatch.setattr(kinds, "DEVICE_KINDS", {"adb": lambda value: Fake(f"adb:{value}", facts={"model": value})})
    table: dict[str, Callable[[], Sequence[Device]]] = {}
    monkeypatch.setattr("edgeq.devices.listing.DISCOVERY", table)
    return table


def test_kinds_are_listed_in_their_order_with_what_each_found(found: dict[str, Any]) -> None:
    found["local"] = lambda: [Fake("local")]
    found["qemu"] = list
    found["adb"] = lambda: [Fake("adb:A", facts={"cores": 8}), Fake("adb:B")]
    local, qemu, *phones = list_devices()
    assert (local.spelling, local.problem) == ("local", None)
    assert (qemu.spelling, qemu.problem) == ("qemu", "none is connected")
    assert [(info.spelling, info.cores) for info in phones] == [("adb:A", 8), ("adb:B", None)]


def test_what_cannot_be_used_says_why_and_what_to_do(found: dict[str, Any]) -> None:
    found["adb"] = fail(ProviderError("there is no adb", remedy="install it"))
    found["qemu"] = lambda: [
        Fake("qemu:max", answer=fail(ProviderError("it does not start", remedy="start it"))),
        Fake("qemu:a53", why="the runner is missing"),
        Fake("qemu:a76", why="never asked", facts={"problem": "unauthorized", "remedy": "look at its screen"}),
    ]
    found["local"] = lambda: [Fake("local", answer=fail(KeyError("cores")))]
    told = {info.spelling: (info.problem, info.remedy) for info in list_devices()}
    assert told.pop("local")[0] == "edgeq failed unexpectedly: KeyError: 'cores'"
    assert told == {
        "adb": ("there is no adb", "install it"),
        "qemu:max": ("it does not start", "start it"),
        "qemu:a53": ("the runner is missing", None),
        "qemu:a76": ("unauthorized", "look at its screen"),
    }


def test_one_that_never_answers_holds_up_nobody(found: dict[str, Any]) -> None:
    stuck = threading.Event()
    found["ssh"] = lambda: stuck.wait() and []
    found["adb"] = lambda: [Fake("adb:A", answer=lambda: stuck.wait() and None), Fake("adb:B")]
    try:
        told = {info.spelling: info.problem for info in list_devices(timeout_s=0.2)}
    finally:
        stuck.set()
    assert told == {"ssh": "no answer within 0.2 s", "adb:A": "no answer within 0.2 s", "adb:B": None}


def test_all_are_asked_at_the_same_time(found: dict[str, Any]) -> None:
    """Each waits until all three have been asked: one after the other would never end."""
    together = threading.Barrier(3, timeout=10)
    found |= {kind: lambda: together.wait() * 0 or [] for kind in ("adb", "ssh", "qemu")}
    assert [info.problem for info in list_devices()] == ["none is connected"] * 3


def test_those_named_are_asked_alone(found: dict[str, Any]) -> None:
    found["adb"] = fail(AssertionError("nobody asked for the others"))
    assert [info.model for info in list_devices(["adb:A", "adb:B", "adb:A"])] == ["A", "B"]
    with pytest.raises(ConfigError, match="no kind of device 'usb'"):
        list_devices(["usb:A"])


def test_the_command_prints_a_table_and_the_problems_below_it(
    found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kinds, "DISCOVERY", found)
    monkeypatch.setitem(kinds.DEVICE_KINDS, "usb", Fake)
    facts = {"model": "Phone [3]", "soc": "SM8750", "abi": "arm64-v8a", "cores": 8, "memory_mb": 12000.0}
    clusters = (Cluster(cores=6, max_mhz=3530), Cluster(cores=2, max_mhz=4320))
    facts |= {"clusters": clusters, "providers": ("CPUExecutionProvider", "QNNExecutionProvider")}
    found["adb"] = lambda: [Fake("adb:A", facts=facts), Fake("qemu:max", facts={"emulated": True})]
    found["ssh"] = fail(ProviderError("there is no ssh", remedy="install [openssh]"))
    text = edgeq("devices")
    assert text.code == 0
    _, phone, emulated, problem, remedy, named = text.out.splitlines()
    for cell in ("adb:A", "Phone [3]", "SM8750", "arm64-v8a", "8 (6 x 3.5, 2 x 4.3 GHz)", "12 GB", "CPU, QNN"):
        assert cell in phone
    assert emulated.split() == ["qemu:max", *["n/a"] * 6, "emulated"]
    assert problem == "ssh: there is no ssh"
    assert remedy == "  remedy: install [openssh]"
    assert named == "usb: by name only, such as `edgeq devices --device usb:NAME`"
    listed = json.loads(edgeq("devices", "--json").out)
    assert listed[0]["clusters"] == [{"cores": 6, "max_mhz": 3530}, {"cores": 2, "max_mhz": 4320}]
    assert listed[2]["problem"] == "there is no ssh"


def test_a_named_device_that_cannot_be_used_fails_the_command(
    found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(kinds.DEVICE_KINDS, "adb", lambda value: Fake(why="offline"))
    monkeypatch.setitem(kinds.DEVICE_KINDS, "qemu", lambda value: Fake())
    assert edgeq("devices", "--device", "qemu:max").code == 0
    assert edgeq("devices", "--device", "qemu:max", "-d", "adb:PHONE").code == 5
    assert edgeq("devices", "-d", "usb").code == 2


def test_doctor_says_what_devices_lack(found: dict[str, Any]) -> None:
    from edgeq.doctor import examine

    found["local"] = lambda: [Fake("local")]
    found["adb"] = list
    found["ssh"] = fail(ProviderError("there is no ssh", remedy="install it"))
    found["qemu"] = lambda: [Fake("qemu:max", why="not installed"), Fake("qemu:a53", why="not installed")]
    checks = {check.name: check for check in examine() if check.name.startswith("device ")}
    told = {name: (check.state, check.found, check.remedy) for name, check in checks.items()}
    assert told == {
        "device local": ("ok", "local", None),
        "device adb": ("ok", "none is connected", None),
        "device ssh": ("absent", "there is no ssh", "install it"),
        "device qemu": ("absent", "not installed", None),
    }
