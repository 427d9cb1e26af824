"""A bundle on devices, for people: one table, then what has to be known about each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from edgeq.cli.render import result_console, result_table
from edgeq.cli.render_nodes import add_times
from edgeq.verdicts import in_words

if TYPE_CHECKING:
    from edgeq.device_report import DeviceLatency, DeviceReport, DeviceResult

__all__ = ["show_device_report"]

_STATES = {"passed": "green", "failed": "red", "undecided": "yellow", "error": "red"}


def show_device_report(report: DeviceReport, folder: Path | None) -> None:
    """One line per device, then errors, findings and notes, and the slowest nodes where they were timed."""
    console = result_console()
    console.print(f"[bold]{escape(report.name)}[/] for [bold]{report.target}[/] in {report.precision}\n")
    ran = [result for result in report.results if result.metrics]
    if ran:
        table = result_table("device", "provider", "threads", "load", "first", "min", "p50", "p90", "p99", "max")
        for title in ("per s", "memory", "temperature", "energy", "SQNR", ""):
            table.add_column(title, overflow="fold")
        for result in ran:
            table.add_row(*map(escape, _cells(result)))
        console.print(table)
        console.print("times in ms")
    for result in report.results:
        _show_words(result)
    if folder is not None:
        console.print(escape(f"\nreport: {folder / 'device-report.html'}"))


def _cells(result: DeviceResult) -> list[str]:
    return [
        result.device.spelling,
        result.provider.removesuffix("ExecutionProvider"),
        str(result.threads),
        *_times(result.latency),
        _known(result.peak_mb, "{:.0f} MB"),
        _temperature(result),
        _known(result.energy_mj, "{:.3g} mJ"),
        result.closeness,
        "emulated" if result.device.emulated else "",
    ]


def _times(latency: DeviceLatency | None) -> list[str]:
    if latency is None:
        return ["n/a"] * 8
    parts = (latency.load_ms, latency.first_ms, latency.min_ms, latency.p50_ms, latency.p90_ms)
    return [_known(part, "{:.4g}") for part in (*parts, latency.p99_ms, latency.max_ms, latency.per_second)]


def _temperature(result: DeviceResult) -> str:
    before, after = result.before.temperature_c, result.after.temperature_c
    return "n/a" if before is None or after is None else f"{before:.0f} to {after:.0f} °C"


def _known(value: float | None, form: str) -> str:
    return "n/a" if value is None else form.format(value)


def _show_words(result: DeviceResult) -> None:
    console = result_console()
    name = result.device.spelling
    if result.error is not None:
        console.print(f"[red]error[/]: {escape(name)}: {escape(result.error)}")
        if result.remedy:
            console.print(escape(f"  remedy: {result.remedy}"))
    for check in result.checks[1:]:
        console.print(
            f"[{_STATES[check.state]}]{check.state}[/]: {escape(name)}: {escape(f'{check.name}: {check.text}')}"
        )
    if result.regression is not None:
        console.print(escape(f"{name}: {in_words(result.regression, 'the baseline', 'it')}"))
    streamed = [metric for metric in result.metrics if metric.source != result.metrics[0].source]
    if streamed:
        metrics = result_table(f"accuracy on {escape(name)}", "there", "float", "")
        for metric in streamed:
            theirs = "" if metric.float_value is None else f"{metric.float_value:.4g} {metric.unit}"
            metrics.add_row(escape(metric.name), f"{metric.value:.4g} {metric.unit}", theirs, escape(metric.source))
        console.print(metrics)
    for finding in result.findings:
        console.print(escape(f"{finding.severity}: {name}: {finding.text}"))
        if finding.remedy:
            console.print(escape(f"  remedy: {finding.remedy}"))
    for note in result.notes:
        console.print(escape(f"note: {name}: {note}"))
    if result.nodes:
        add_times(console, result.nodes, names=(name, ""))
