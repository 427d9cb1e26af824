"""What Android tells: heat, battery, properties; and that fixed performance is always given back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from edgeq.devices.android import (
    Heat,
    battery_percent,
    cool_down,
    fixed_performance,
    parse_heat,
    properties,
    read_heat,
)
from edgeq.devices.transport import Completed

PIXEL = """IsStatusOverride: false
ThermalEventListeners:
	callbacks: 2
	killed: false
	broadcasts count: -1
Thermal Status: 2
Cached temperatures:
	Temperature{mValue=77.0, mType=0, mName=BIG, mStatus=3}
	Temperature{mValue=31.9, mType=3, mName=VIRTUAL-SKIN, mStatus=0}
HAL Ready: true
HAL connection:
	ThermalHAL 2.0 connected: yes
Current temperatures from HAL:
	Temperature{mValue=61.0, mType=0, mName=BIG, mStatus=0}
	Temperature{mValue=58.5, mType=0, mName=LITTLE, mStatus=0}
	Temperature{mValue=63.5, mType=1, mName=G3D, mStatus=0}
	Temperature{mValue=62.0, mType=9, mName=TPU, mStatus=0}
	Temperature{mValue=-273.15, mType=0, mName=BROKEN, mStatus=0}
Current cooling devices from HAL:
	CoolingDevice{mValue=0, mType=2, mName=thermal-cpufreq-0}
Temperature static thresholds from HAL:
	TemperatureThreshold{mType=0, mName=BIG, mHotThrottlingThresholds=[NaN, 95.0]}
"""
COOL = "Thermal Status: 0\nCurrent temperatures from HAL:\n"
HOT = "Thermal Status: 3\nCurrent temperatures from HAL:\n"


@dataclass
class FakePhone:
    """Answers commands; what it was asked is kept."""

    answer: Callable[[Sequence[str]], Completed]
    asked: list[str] = field(default_factory=list)

    def run(
        self, command: Sequence[str], *, environment: Mapping[str, str] | None = None, timeout_s: float = 60.0
    ) -> Completed:
        self.asked.append(" ".join(command))
        return self.answer(command)


def says(*texts: str) -> Callable[[Sequence[str]], Completed]:
    """One text after another; the last one from then on."""
    left = list(texts)
    return lambda command: Completed(0, left.pop(0) if len(left) > 1 else left[0], "")


def refuses(command: Sequence[str]) -> Completed:
    return Completed(1, "", "Can't find service: thermalservice")


def test_heat_is_that_of_the_processor_now() -> None:
    assert parse_heat(PIXEL) == Heat(2, 62.0)
    assert parse_heat(PIXEL).throttled
    assert parse_heat(PIXEL).word == "moderate"


def test_what_android_does_not_tell_is_not_guessed() -> None:
    assert parse_heat("Can't find service") == Heat(None, None)
    assert Heat().throttled is None
    assert read_heat(FakePhone(refuses)) == Heat()
    assert battery_percent(FakePhone(refuses)) is None
    assert parse_heat("Thermal Status: 9\n").word == "9"


def test_battery() -> None:
    text = "Current Battery Service state:\n  AC powered: false\n  level: 83\n  scale: 100\n  voltage: 4305\n"
    assert battery_percent(FakePhone(says(text))) == 83


def test_properties_that_are_empty_are_left_out() -> None:
    text = "ro.soc.model=SM8550\nro.soc.manufacturer=\nro.other=1\nro.product.model=A = B\n"
    told = properties(FakePhone(says(text)), "ro.soc.model", "ro.soc.manufacturer", "ro.product.model")
    assert told == {"ro.soc.model": "SM8550", "ro.product.model": "A = B"}


def test_a_cool_phone_is_not_waited_for() -> None:
    slept: list[float] = []
    assert cool_down(FakePhone(says(COOL)), sleep=slept.append) == ()
    assert slept == []


def test_a_hot_phone_is_waited_for() -> None:
    slept: list[float] = []
    (note,) = cool_down(FakePhone(says(HOT, HOT, HOT, COOL)), sleep=slept.append)
    assert note == f"the phone was throttled at first, and left to cool down for {sum(slept):.0f} s"
    assert len(slept) == 3


def test_waiting_has_an_end() -> None:
    slept: list[float] = []
    (note,) = cool_down(FakePhone(says(HOT)), limit_s=30, sleep=slept.append)
    assert sum(slept) == 30
    assert "still throttled (severe) after 30 s" in note


def test_a_phone_that_does_not_tell_is_not_waited_for() -> None:
    slept: list[float] = []
    (note,) = cool_down(FakePhone(refuses), sleep=slept.append)
    assert "is not known" in note
    assert slept == []


def test_fixed_performance_is_given_back_whatever_happens() -> None:
    phone = FakePhone(says(""))

    def interrupted() -> None:
        with fixed_performance(phone) as notes:
            assert notes == ()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    command = "cmd power set-fixed-performance-mode-enabled"
    assert phone.asked == [f"{command} true", f"{command} false"]


@pytest.mark.parametrize(
    "answer",
    [Completed(255, "", "cmd: Failure"), Completed(0, "java.lang.SecurityException: no\n", "")],
    ids=["exit code", "exception"],
)
def test_a_phone_without_fixed_performance_is_told_of_and_left_alone(answer: Completed) -> None:
    phone = FakePhone(lambda command: answer)
    with fixed_performance(phone) as (note,):
        assert "no fixed-performance mode" in note
    assert len(phone.asked) == 1
