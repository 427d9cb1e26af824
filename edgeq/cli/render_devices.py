"""Devices for people: a table of what can be used, and in words why the rest cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape

from edgeq.cli.render import result_console, result_table

if TYPE_CHECKING:
    from edgeq.device_report import DeviceInfo

__all__ = ["show_devices"]


def show_devices(devices: Sequence[DeviceInfo], *, by_name_only: Sequence[str] = ()) -> None:
    """One line per device; then the problems, each with what to do, and the kinds that nothing looks for."""
    console = result_console()
    usable = [info for info in devices if info.problem is None]
    if usable:
        table = result_table("device", "model", "SoC", "ABI", "cores", "memory", "providers", "")
        for info in usable:
            memory = "" if info.memory_mb is None else f"{info.memory_mb / 1000:.3g} GB"
            providers = ", ".join(name.removesuffix("ExecutionProvider") for name in info.providers)
            cells = (info.spelling, info.model, info.soc, info.abi, _cores(info), memory, providers)
            table.add_row(*(escape(cell or "n/a") for cell in cells), "emulated" if info.emulated else "")
        console.print(table)
    for (problem, remedy), infos in _problems(devices).items():
        console.print(f"[yellow]{escape(', '.join(map(_named, infos)))}[/]: {escape(problem)}")
        if remedy:
            console.print(f"  remedy: {escape(remedy)}")
    for kind in by_name_only:
        console.print(f"{kind}: by name only, such as `edgeq devices --device {kind}:NAME`")


def _problems(devices: Sequence[DeviceInfo]) -> dict[tuple[str, str | None], list[DeviceInfo]]:
    """Devices by what is wrong with them, so that it is said once."""
    found: dict[tuple[str, str | None], list[DeviceInfo]] = {}
    for info in devices:
        if info.problem is not None:
            found.setdefault((info.problem, info.remedy), []).append(info)
    return found


def _named(info: DeviceInfo) -> str:
    """With the model, which a serial number does not tell."""
    return f"{info.spelling} ({info.model})" if info.model and not info.emulated else info.spelling


def _cores(info: DeviceInfo) -> str:
    """``8 (4 x 1.8, 3 x 2.4, 1 x 2.9 GHz)``."""
    if info.cores is None:
        return ""
    known = [cluster for cluster in info.clusters if cluster.max_mhz is not None]
    speeds = ", ".join(f"{cluster.cores} x {(cluster.max_mhz or 0) / 1000:.1f}" for cluster in known)
    return f"{info.cores} ({speeds} GHz)" if known else str(info.cores)
