"""What the page of a device report shows: one table over all devices, how their times spread, and each in detail."""

from __future__ import annotations

from typing import Any

from edgeq.device_report import DeviceReport, DeviceResult
from edgeq.stages.package.page_nodes import nodes_page
from edgeq.stages.package.page_numbers import number
from edgeq.stages.package.page_spread import spread_plot
from edgeq.verdicts import in_words

__all__ = ["devices_page"]

_MARKS = {"passed": "met", "failed": "missed", "error": "missed", "undecided": "open"}


def devices_page(report: DeviceReport) -> dict[str, Any]:
    """The template's variables."""
    results = report.results
    spreads = [(result.device.spelling, result.latency, "") for result in results if result.latency is not None]
    return {
        "r": report,
        "json_name": "device-report.json",
        "verdict": _verdict(report),
        "checks": [
            {
                "device": result.device.spelling,
                "name": check.name,
                "state": check.state,
                "mark": _MARKS[check.state],
                "text": check.text,
            }
            for result in results
            for check in result.checks
        ],
        "rows": [_row(result) for result in results],
        "spread": spread_plot(spreads),
        "regressions": [
            f"{result.device.spelling}: {in_words(result.regression, 'the baseline', 'it')}"
            for result in results
            if result.regression is not None
        ],
        "details": [
            {"result": result, "times": nodes_page(result.nodes, names=("package", ""))}
            for result in results
            if result.error or result.nodes or result.findings or result.notes
        ],
    }


def _verdict(report: DeviceReport) -> dict[str, str]:
    count = len(report.results)
    failed = sum(result.exit_code != 0 for result in report.results)
    if failed:
        return {"tone": "bad", "text": f"Fails on {failed} of {count} {'device' if count == 1 else 'devices'}"}
    where = "the device" if count == 1 else f"all {count} devices"
    if any(check.state == "undecided" for result in report.results for check in result.checks):
        return {"tone": "warn", "text": f"Runs on {where}, but not everything that was asked can be told"}
    return {"tone": "good", "text": f"Gives its outputs on {where}"}


def _row(result: DeviceResult) -> dict[str, Any]:
    info, latency = result.device, result.latency
    known = [info.model, info.soc, info.abi, f"{info.cores} cores" if info.cores else None]
    times: list[str] = ["n/a"] * 7
    if latency is not None and not latency.emulated:
        cpu, load, first = latency.cpu_p50_ms, latency.load_ms, latency.first_ms
        figures = (latency.p50_ms, latency.p90_ms, latency.p99_ms, cpu, load, first, latency.per_second)
        times = [number(value) for value in figures]
    before, after = result.before.temperature_c, result.after.temperature_c
    return {
        "spelling": info.spelling,
        "what": ", ".join(part for part in known if part) + (", emulated" if info.emulated else ""),
        "provider": result.provider.removesuffix("ExecutionProvider") or ("failed" if result.error else "n/a"),
        "how": f"{result.runtime}, {result.threads} thread{'s' * (result.threads != 1)}" if result.runtime else "",
        "cells": [
            *times,
            number(result.peak_mb, "MB"),
            "n/a" if before is None or after is None else f"{before:.0f} to {after:.0f} \N{DEGREE SIGN}C",
            number(result.energy_mj, "mJ"),
            result.closeness,
        ],
    }
