"""All kinds of devices by name: the one place that knows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgeq.devices.adb import AdbDevice, find_phones
from edgeq.devices.browser import BrowserDevice, find_browsers
from edgeq.devices.here import EmulatedDevice, LocalDevice, find_emulated
from edgeq.devices.htp import HtpDevice, find_htp
from edgeq.devices.protocol import Device
from edgeq.devices.ssh import SshDevice
from edgeq.errors import ConfigError

__all__ = ["DEVICE_KINDS", "DISCOVERY", "parse_device"]

DEVICE_KINDS: dict[str, Callable[[str], Device]] = {
    "local": LocalDevice.parse,
    "qemu": EmulatedDevice.parse,
    "adb": AdbDevice.parse,
    "ssh": SshDevice.parse,
    "browser": BrowserDevice.parse,
    "htp": HtpDevice.parse,
}
"""Kind -> what makes the device of ``KIND:VALUE`` (the value may be empty)."""

DISCOVERY: dict[str, Callable[[], Sequence[Device]]] = {
    "local": lambda: (LocalDevice(),),
    "qemu": find_emulated,
    "adb": find_phones,
    "browser": find_browsers,
    "htp": find_htp,
}
"""Kind -> what finds its devices without a name, within seconds; a kind that is not here is found by name only.

It raises ProviderError, with what to do, where the kind itself cannot be used: no adb, no browser.
"""


def parse_device(text: str) -> Device:
    """``"adb:emulator-5554"`` -> that device; nothing is reached for yet.

    Raises:
        ConfigError: no such kind, or a value that the kind does not take.
    """
    kind, _, value = text.partition(":")
    if kind not in DEVICE_KINDS:
        raise ConfigError(f"there is no kind of device {kind!r}", remedy=f"choose one of: {', '.join(DEVICE_KINDS)}")
    return DEVICE_KINDS[kind](value)
