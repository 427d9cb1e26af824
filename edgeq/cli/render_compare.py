"""A comparison for people: the verdict in words, then both models side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from edgeq.cli.render import result_console, result_table
from edgeq.cli.render_nodes import add_times
from edgeq.report import LIMIT_DB
from edgeq.verdicts import in_words, other_measures

if TYPE_CHECKING:
    from rich.table import Table

    from edgeq.compare_report import ComparedDevice, ComparedModel, CompareReport
    from edgeq.report import Metric

__all__ = ["show_comparison"]

_STYLES = {"faster": "green", "slower": "red", "same": "bold", "cannot tell": "yellow"}


def show_comparison(report: CompareReport, folder: Path | None) -> None:
    """Per device the verdict, the figures of both, and where their time goes."""
    console = result_console()
    console.print(f"A: {escape(_title(report.a))}\nB: {escape(_title(report.b))}\n")
    for result in report.results:
        _show_device(console, result)
    _show_models(console, report)
    if folder is not None:
        console.print(escape(f"\nreport: {folder / 'compare.html'}"))


def _title(model: ComparedModel) -> str:
    made = f"for {model.target} in {model.precision}" if model.target else "an ONNX file"
    return f"{model.name} {made}, {model.provider.removesuffix('ExecutionProvider')}"


def _show_device(console: Console, result: ComparedDevice) -> None:
    spelling = result.device.spelling
    found = result.difference
    if result.error is not None:
        console.print(f"[red]{escape(spelling)}[/]: {escape(result.error)}")
        if result.remedy:
            console.print(escape(f"  remedy: {result.remedy}"))
        return
    if found is None:
        console.print(f"[bold]{escape(spelling)}[/]: {escape(result.why)}")
    else:
        console.print(f"[bold]{escape(spelling)}[/]: [{_STYLES[found.verdict]}]{escape(in_words(found))}[/]")
        console.print(escape(f"  judged by {'CPU' if result.decided_by == 'cpu' else 'wall'} time: {result.why}"))
        for line in other_measures(result.differences, result.decided_by):
            console.print(escape(f"  {line}"))
    console.print()
    table = result_table("", "A", "B", "")
    said = f"{result.runtime}, {result.threads} thread{'s' * (result.threads != 1)}"
    if result.a is not None and result.b is not None:
        for name, a, b in (
            ("p50", result.a.p50_ms, result.b.p50_ms),
            ("p90", result.a.p90_ms, result.b.p90_ms),
            ("p99", result.a.p99_ms, result.b.p99_ms),
            ("CPU time p50", result.a.cpu_p50_ms, result.b.cpu_p50_ms),
            ("load", result.a.load_ms, result.b.load_ms),
        ):
            table.add_row(name, _ms(a), _ms(b), said if name == "p50" else "")
    _add_metrics(table, result.metrics_a, result.metrics_b)
    for metric in result.agreement:
        table.add_row(escape(f"{metric.name} of B with A"), "", _figure(metric), escape(metric.source))
    console.print(table)
    add_times(console, result.nodes_b, result.nodes_a, names=("B", "A"))
    for note in result.notes:
        console.print(escape(f"note: {note}"))


def _show_models(console: Console, report: CompareReport) -> None:
    console.print()
    table = result_table("", "A", "B", "")
    sizes = [model.model_bytes for model in (report.a, report.b)]
    ratio = sizes[1] / max(sizes[0], 1)
    table.add_row("size", *(f"{size / 1e6:.2f} MB" for size in sizes), f"B is {ratio:.3f} times as large")
    primary = report.a.primary or report.b.primary
    ours, theirs = ([m for m in model.metrics if m.name == primary] for model in (report.a, report.b))
    _add_metrics(table, tuple(ours), tuple(theirs), " when it was made")
    console.print(table)


def _add_metrics(table: Table, a: tuple[Metric, ...], b: tuple[Metric, ...], when: str = "") -> None:
    by_name = [{metric.name: metric for metric in side} for side in (a, b)]
    for name in dict.fromkeys([*by_name[0], *by_name[1]]):
        found = [side.get(name) for side in by_name]
        known = next(metric for metric in found if metric is not None)
        cells = (_figure(metric) if metric else "n/a" for metric in found)
        table.add_row(escape(f"{name}{when}"), *cells, escape(known.source))


def _figure(metric: Metric) -> str:
    if metric.unit == "dB" and metric.value >= LIMIT_DB:
        return "identical"
    return f"{metric.value:.4g} {metric.unit}".strip()


def _ms(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f} ms"
