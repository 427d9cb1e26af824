"""What Android tells and lets one set, beside what Linux does: properties, heat, battery, fixed performance."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from edgeq.devices.transport import Transport
from edgeq.errors import ProviderError
from edgeq.progress import Progress, Silent

__all__ = ["COOL_DOWN_S", "Heat", "battery_percent", "cool_down", "fixed_performance", "properties", "read_heat"]

COOL_DOWN_S = 120.0
"""How long a phone that is throttled is waited for before it is measured."""

_BETWEEN_LOOKS_S = 5.0
_STATUS = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
"""Android's ThrottlingSeverity, by its numbers."""

_OF_THE_PROCESSOR = {"0", "9"}
"""Android's TemperatureType CPU and NPU."""


@dataclass(frozen=True)
class Heat:
    """``status`` is Android's throttling severity, 0 for none; ``celsius`` the hottest sensor of the processor.

    None: the system does not tell (``dumpsys thermalservice`` is there since Android 10).
    """

    status: int | None = None
    celsius: float | None = None

    @property
    def throttled(self) -> bool | None:
        return None if self.status is None else self.status > 0

    @property
    def word(self) -> str:
        """Android's name of the status."""
        return _STATUS[self.status] if self.status is not None and self.status < len(_STATUS) else str(self.status)


def properties(transport: Transport, *names: str) -> dict[str, str]:
    """Android's system properties of these names; those that are empty or not there are left out."""
    script = 'for name in "$@"; do echo "$name=$(getprop "$name")"; done'
    done = transport.run(["sh", "-c", script, "sh", *names])
    pairs = (line.partition("=") for line in done.out.splitlines())
    return {name: value.strip() for name, _, value in pairs if name in names and value.strip()}


def read_heat(transport: Transport) -> Heat:
    """From ``dumpsys thermalservice``."""
    done = transport.run(["dumpsys", "thermalservice"])
    return parse_heat(done.out) if done.code == 0 else Heat()


def parse_heat(text: str) -> Heat:
    """Status, and the current temperatures (behind the cached ones, which may be hours old)."""
    status = re.search(r"^\s*Thermal Status: (\d+)", text, re.MULTILINE)
    current = text.partition("Current temperatures from HAL:")[2].partition("Current cooling devices")[0]
    sensors = re.findall(r"mValue=(-?[\d.]+), mType=(-?\d+)", current)
    degrees = [float(value) for value, kind in sensors if kind in _OF_THE_PROCESSOR and 0 < float(value) < 150]
    return Heat(int(status.group(1)) if status else None, max(degrees, default=None))


def battery_percent(transport: Transport) -> int | None:
    """From ``dumpsys battery``."""
    found = re.search(r"^\s*level: (\d+)", transport.run(["dumpsys", "battery"]).out, re.MULTILINE)
    return int(found.group(1)) if found else None


def cool_down(
    transport: Transport,
    *,
    limit_s: float = COOL_DOWN_S,
    progress: Progress | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[str, ...]:
    """Wait until Android slows the phone down no more, ``limit_s`` at most; returns what there is to say of it."""
    progress = progress or Silent()
    heat, waited = read_heat(transport), 0.0
    if heat.status is None:
        return ("whether the phone is throttled is not known: Android before 10 does not tell",)
    if not heat.throttled:
        return ()
    progress.start(f"waiting for the phone to cool down (throttling: {heat.word})", None)
    try:
        while heat.throttled and waited < limit_s:
            sleep(_BETWEEN_LOOKS_S)
            waited += _BETWEEN_LOOKS_S
            heat = read_heat(transport)
    finally:
        progress.finish()
    if heat.throttled:
        return (f"the phone was still throttled ({heat.word}) after {waited:.0f} s of waiting: its times are too long",)
    return (f"the phone was throttled at first, and left to cool down for {waited:.0f} s",)


@contextlib.contextmanager
def fixed_performance(transport: Transport) -> Iterator[tuple[str, ...]]:
    """Android's fixed-performance mode while the block runs; gives what there is to say if the phone has none.

    It limits the clock to what the phone can keep up (Android 11 and later, and only phones that support it).
    """
    command = ["cmd", "power", "set-fixed-performance-mode-enabled"]
    done = transport.run([*command, "true"])
    if done.code or "exception" in (done.out + done.err).lower():
        yield ("the phone has no fixed-performance mode: its clock may have changed while it was measured",)
        return
    try:
        yield ()
    finally:
        with contextlib.suppress(ProviderError):  # a phone that is lost keeps the mode until it restarts
            transport.run([*command, "false"])
