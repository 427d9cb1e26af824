"""Android phones over adb: ``adb:SERIAL``, or ``adb`` for the only one."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from edgeq.device_report import DeviceInfo, DeviceState
from edgeq.devices.adb_client import Adb
from edgeq.devices.adb_transport import AdbTransport
from edgeq.devices.android import Heat, battery_percent, cool_down, fixed_performance, properties, read_heat
from edgeq.devices.linux import describe_linux
from edgeq.devices.native import Programs, run_native
from edgeq.devices.programs import find_runner
from edgeq.devices.protocol import Job, Outcome
from edgeq.devices.runtimes import android_runtime, check_library
from edgeq.errors import ConfigError, ProviderError
from edgeq.progress import Progress

__all__ = ["ANDROID_RUNNER", "AdbDevice", "find_phones"]

ANDROID_RUNNER = "EDGEQ_ANDROID_RUNNER"
"""Names a runner that the user built, where this installation has none for the phone's ABI."""

_OLDEST_SDK = 24
"""What ONNX Runtime's AAR is built for: Android 7."""

_ABIS = ("arm64-v8a", "x86_64")
_PROPERTIES = {
    "maker": "ro.product.manufacturer",
    "model": "ro.product.model",
    "soc_maker": "ro.soc.manufacturer",
    "soc": "ro.soc.model",
    "platform": "ro.board.platform",
    "abi": "ro.product.cpu.abi",
    "android": "ro.build.version.release",
    "sdk": "ro.build.version.sdk",
    "emulated": "ro.boot.qemu",
    "emulated_once": "ro.kernel.qemu",  # before Android 12
}


@dataclass(frozen=True)
class AdbDevice:
    """One phone; ``serial`` is empty for the only one that is attached."""

    serial: str = ""

    @classmethod
    def parse(cls, value: str) -> AdbDevice:
        """``adb`` alone, or a serial number as ``adb devices`` prints it (``192.168.0.7:5555``, too)."""
        if value.startswith("-") or any(letter.isspace() for letter in value):
            raise ConfigError(f"{value!r} is no phone's serial number", remedy="`adb devices` prints them")
        return cls(value)

    @property
    def spelling(self) -> str:
        return f"adb:{self.serial}" if self.serial else "adb"

    @property
    def machine(self) -> str:
        """By its serial number, also where it is the only one."""
        try:
            return f"adb:{Adb.find().choose(self.serial)}"
        except (ProviderError, ConfigError):
            return self.spelling

    def missing(self) -> str | None:
        try:
            Adb.find().choose(self.serial)
        except (ProviderError, ConfigError) as error:
            return f"{error.what}; {error.remedy}"
        return None

    def describe(self) -> DeviceInfo:
        return self._describe(self._reach())

    def _reach(self) -> AdbTransport:
        adb = Adb.find()
        return AdbTransport(adb, adb.choose(self.serial))

    def _describe(self, phone: AdbTransport) -> DeviceInfo:
        """What Linux tells, in Android's words where it has some."""
        spelling = f"adb:{phone.serial}"
        info = describe_linux(phone, spelling, "adb")
        told = properties(phone, *_PROPERTIES.values())
        facts = {key: told.get(name, "") for key, name in _PROPERTIES.items()}
        problem, remedy = _unfit(spelling, facts)
        return msgspec.structs.replace(
            info,
            model=" ".join(filter(None, (facts["maker"], facts["model"]))) or info.model,
            soc=" ".join(filter(None, (facts["soc_maker"], facts["soc"]))) or facts["platform"] or info.soc,
            abi=facts["abi"] or info.abi,
            os=f"Android {facts['android']} (API {facts['sdk']})" if facts["android"] else info.os,
            emulated="1" in (facts["emulated"], facts["emulated_once"]),
            problem=problem,
            remedy=remedy,
        )

    def run(self, job: Job, progress: Progress | None = None) -> Outcome:
        phone = self._reach()
        info = self._describe(phone)
        if info.problem is not None:
            raise ProviderError(info.problem, remedy=info.remedy)
        assert info.abi is not None
        programs = Programs(_runner(info.abi), android_runtime(info.abi))
        if not job.measure:
            return run_native(phone, job, programs, info)
        with ExitStack() as stack:
            notes = (*cool_down(phone, progress=progress), *stack.enter_context(fixed_performance(phone)))
            before = read_heat(phone), battery_percent(phone)
            outcome = run_native(phone, job, programs, info)
            after = read_heat(phone), battery_percent(phone)
        if after[0].throttled:
            notes += (f"Android throttled the phone while it was measured ({after[0].word}): its times are too long",)
        return replace(
            outcome,
            before=_warmed(outcome.before, *before),
            after=_warmed(outcome.after, *after),
            notes=(*notes, *outcome.notes),
        )


def find_phones() -> list[AdbDevice]:
    """All that adb knows of, usable or not.

    Raises:
        ProviderError: there is no adb, it does not start, or no phone is attached.
    """
    adb = Adb.find()
    return [AdbDevice(listed.serial) for listed in adb.devices()] or [AdbDevice(adb.choose(""))]


def _unfit(spelling: str, facts: dict[str, str]) -> tuple[str | None, str | None]:
    """Why ONNX Runtime does not run on this phone, and what to do."""
    if facts["sdk"].isdecimal() and int(facts["sdk"]) < _OLDEST_SDK:
        return (
            f"{spelling} runs Android {facts['android']} (API {facts['sdk']}): ONNX Runtime needs Android 7 (API 24)",
            "use a newer phone",
        )
    if facts["abi"] not in _ABIS:
        wrong = f"the ABI {facts['abi']}" if facts["abi"] else "no ABI of Android's"
        return (
            f"{spelling} has {wrong}: edgeq's runner is made for {' and '.join(_ABIS)}",
            "use a phone with a 64-bit Android",
        )
    return None, None


def _runner(abi: str) -> Path:
    named = os.environ.get(ANDROID_RUNNER)
    if not named:
        return find_runner(f"android-{abi}")
    if not Path(named).is_file():
        raise ConfigError(f"{ANDROID_RUNNER} names no file", where=named, remedy="name the runner that you built")
    check_library(Path(named), abi)
    return Path(named)


def _warmed(state: DeviceState, heat: Heat, charge: int | None) -> DeviceState:
    """What the runner read, completed with what only Android's services tell the shell."""
    return msgspec.structs.replace(
        state,
        temperature_c=state.temperature_c if state.temperature_c is not None else heat.celsius,
        throttled=heat.throttled if heat.throttled is not None else state.throttled,
        battery_percent=state.battery_percent if state.battery_percent is not None else charge,
    )
