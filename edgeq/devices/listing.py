"""What can be reached: every kind of device is asked at the same time, and none may take long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import TypeVar, cast

import msgspec

from edgeq.device_report import DeviceInfo, Kind
from edgeq.devices.protocol import Device
from edgeq.devices.registry import DISCOVERY, parse_device
from edgeq.errors import EdgeqError, ProviderError

__all__ = ["LIMIT_S", "find_devices", "list_devices"]

LIMIT_S = 20.0
"""How long a kind may look for its devices, and then each device may take to describe itself."""

T = TypeVar("T")


def list_devices(named: Sequence[str] = (), *, timeout_s: float = LIMIT_S) -> tuple[DeviceInfo, ...]:
    """The devices that are ``named``, or else all that are found; no model is run.

    One that is there but cannot be used has a ``problem``, and so has a kind that found none, or could not look
    for any: then ``spelling`` is the kind alone.

    Raises:
        ConfigError: a name that no kind takes.
    """
    if named:
        return _described([parse_device(name) for name in dict.fromkeys(named)], timeout_s)
    found: list[DeviceInfo | Device] = []
    for kind, devices in find_devices(timeout_s=timeout_s).items():
        if isinstance(devices, EdgeqError):
            found.append(_unusable(kind, devices))
        else:
            found += devices or [_unusable(kind, ProviderError("none is connected"))]
    infos = iter(_described([one for one in found if not isinstance(one, DeviceInfo)], timeout_s))
    return tuple(one if isinstance(one, DeviceInfo) else next(infos) for one in found)


def find_devices(*, timeout_s: float = LIMIT_S) -> dict[str, Sequence[Device] | EdgeqError]:
    """By kind, the devices that it finds, which were not spoken to yet, or why it could not look for them."""
    return dict(zip(DISCOVERY, _at_once(list(DISCOVERY.values()), timeout_s), strict=True))


def _described(devices: Sequence[Device], timeout_s: float) -> tuple[DeviceInfo, ...]:
    answers = _at_once([_describe(device) for device in devices], timeout_s)
    return tuple(
        _unusable(device.spelling, answer) if isinstance(answer, EdgeqError) else answer
        for device, answer in zip(devices, answers, strict=True)
    )


def _describe(device: Device) -> Callable[[], DeviceInfo]:
    def ask() -> DeviceInfo:
        info = device.describe()
        why = info.problem or device.missing()
        return info if why == info.problem else msgspec.structs.replace(info, problem=why)

    return ask


def _unusable(spelling: str, error: EdgeqError) -> DeviceInfo:
    kind = cast(Kind, spelling.partition(":")[0])
    return DeviceInfo(spelling=spelling, kind=kind, problem=error.what, remedy=error.remedy)


def _at_once(calls: Sequence[Callable[[], T]], timeout_s: float) -> list[T | EdgeqError]:
    """What each call returns or raises. One that is too slow is left behind: nobody can end a thread."""
    answers: list[SimpleQueue[T | EdgeqError]] = [SimpleQueue() for _ in calls]
    for call, answer in zip(calls, answers, strict=True):
        threading.Thread(target=_answer, args=(call, answer), daemon=True).start()
    deadline = time.monotonic() + timeout_s
    return [_wait(answer, deadline, timeout_s) for answer in answers]


def _answer(call: Callable[[], T], answer: SimpleQueue[T | EdgeqError]) -> None:
    try:
        answer.put(call())
    except EdgeqError as error:
        answer.put(error)
    except Exception as error:  # a fault of one kind must not hide the others
        answer.put(ProviderError(f"edgeq failed unexpectedly: {type(error).__name__}: {error}"))


def _wait(answer: SimpleQueue[T | EdgeqError], deadline: float, timeout_s: float) -> T | EdgeqError:
    try:
        return answer.get(timeout=max(0.0, deadline - time.monotonic()))
    except Empty:
        return ProviderError(f"no answer within {timeout_s:g} s", remedy="see whether it is asleep or busy; try again")
