"""What ONNX Runtime's packages on PyPI weigh, by operating system and processor."""

from __future__ import annotations

from dataclasses import dataclass

from edgeq.stages.embed.sizes import RuntimeSize

__all__ = ["VERSION", "WHEELS", "library_sizes", "wheel_sizes"]

VERSION = "1.32.0"
"""The release that was measured; others differ by some percent."""


@dataclass(frozen=True)
class Wheel:
    """Bytes of a wheel and of what it installs; of the library for C in it, as it is and deflated (zlib, level 6)."""

    wheel: int
    installed: int
    library: int
    library_deflated: int


WHEELS = {
    "linux-x64": Wheel(27_780_211, 75_707_280, 34_824_680, 13_162_366),
    "linux-arm64": Wheel(23_196_724, 60_065_987, 27_165_936, 10_909_736),
    "macos-arm64": Wheel(22_519_308, 83_199_407, 35_272_344, 9_802_389),
    "windows-x64": Wheel(16_698_767, 50_533_531, 22_668_640, 7_665_431),
    "windows-arm64": Wheel(16_030_610, 47_619_699, 20_798_776, 7_255_785),
}
"""Of the package onnxruntime for Python 3.12: manylinux_2_28, macosx_14_0 and win."""


def wheel_sizes(target: str, *, beside: tuple[str, ...] = ()) -> list[RuntimeSize]:
    """What pip installs, on the machine of ``target``, or on all where the target does not tell."""
    return [
        RuntimeSize(f"onnxruntime {VERSION}", machine, one.installed, one.wheel, "measured on pip's wheel", beside)
        for machine, one in _for(target).items()
    ]


def library_sizes(target: str) -> list[RuntimeSize]:
    """What a program in C brings along; ``target`` as for `wheel_sizes`."""
    return [
        RuntimeSize(
            f"ONNX Runtime's library {VERSION}",
            machine,
            one.library,
            one.library_deflated,
            "measured on the one in pip's wheel",
        )
        for machine, one in _for(target).items()
    ]


def _for(target: str) -> dict[str, Wheel]:
    machine = target.partition("@")[0]
    return {machine: WHEELS[machine]} if machine in WHEELS else WHEELS
