"""What the page of a comparison shows: the verdict per device, the intervals, and both models side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeq.compare_report import ComparedDevice, CompareReport
from edgeq.comparison import Difference
from edgeq.report import LIMIT_DB, Metric
from edgeq.stages.package.page_nodes import nodes_page
from edgeq.stages.package.page_numbers import number
from edgeq.stages.package.page_spread import scale_ticks, spread_plot
from edgeq.verdicts import in_words, interval

__all__ = ["compare_page"]

_LEFT, _RIGHT = 230.0, 985.0
_TONES = {"faster": "good", "slower": "bad", "same": "plain", "cannot tell": "warn"}
_HEADLINES = {
    "faster": "B is faster",
    "slower": "B is slower",
    "same": "No difference that matters",
    "cannot tell": "It cannot be told",
}


_TIMES = (("p50", "p50_ms"), ("p90", "p90_ms"), ("CPU time, p50", "cpu_p50_ms"), ("load", "load_ms"))


def compare_page(report: CompareReport) -> dict[str, Any]:
    """The template's variables."""
    spreads = [
        (f"{result.device.spelling} {name}", latency, kind)
        for result in report.results
        for name, latency, kind in (("A", result.a, "other"), ("B", result.b, ""))
        if latency is not None
    ]
    return {
        "r": report,
        "json_name": "compare.json",
        "devices": [_device(result) for result in report.results],
        "forest": _forest(report.results),
        "figures": _figures(report),
        "spread": spread_plot(spreads),
    }


def _device(result: ComparedDevice) -> dict[str, Any]:
    found = result.difference
    times = nodes_page(result.nodes_b, result.nodes_a, names=("B", "A"))
    if found is None or result.error is not None:
        told = {"tone": "bad", "headline": "Failed", "words": result.error}
        if result.error is None:
            told = {"tone": "plain", "headline": "No times to compare", "words": result.why}
        return {"result": result, **told, "why": "", "times": times}
    return {
        "result": result,
        "tone": _TONES[found.verdict],
        "headline": _HEADLINES[found.verdict],
        "words": in_words(found),
        "why": f"Judged by {'CPU' if found.measure == 'cpu' else 'wall'} time: {result.why}.",
        "times": times,
    }


def _forest(results: Sequence[ComparedDevice]) -> dict[str, Any] | None:
    """The intervals of all devices and measures on one scale, around 1."""
    rows = [
        (
            f"{result.device.spelling} {'CPU' if found.measure == 'cpu' else 'wall'}",
            found,
            found.measure == result.decided_by,
        )
        for result in results
        for found in result.differences
        if found.low is not None
    ]
    if not rows:
        return None
    least = rows[0][1].min_difference
    ends = [end for _, found, _ in rows for end in (found.low, found.high) if end is not None]
    low, high = min([*ends, 1 - 2 * least]), max([*ends, 1 + 2 * least])

    def x(value: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * (value - low) / (high - low), 1)

    return {
        "ticks": [{"x": x(tick), "text": f"{tick:g}"} for tick in scale_ticks(low, high)],
        "band": {"x": x(1 / (1 + least)), "width": round(x(1 + least) - x(1 / (1 + least)), 1)},
        "rows": [_interval(name, found, counts, x) for name, found, counts in rows],
    }


def _interval(name: str, found: Difference, counts: bool, x: Any) -> dict[str, Any]:
    return {
        "name": name,
        "text": f"{name}: {interval(found)}",
        "x": x(found.ratio),
        "low": x(found.low),
        "high": x(found.high),
        "counts": counts,
    }


def _figures(report: CompareReport) -> list[dict[str, str]]:
    sizes = [f"{model.model_bytes / 1e6:.2f} MB" for model in (report.a, report.b)]
    rows = [{"name": "size of the model", "a": sizes[0], "b": sizes[1], "source": ""}]
    rows += _metrics(report.a.metrics, report.b.metrics, "when it was made: ")
    for result in report.results:
        where = f" on {result.device.spelling}"
        if result.a is not None and result.b is not None:
            for name, field in (
                ("p50", "p50_ms"),
                ("p90", "p90_ms"),
                ("CPU time, p50", "cpu_p50_ms"),
                ("load", "load_ms"),
            ):
                a, b = (number(getattr(side, field), "ms") for side in (result.a, result.b))
                rows.append({"name": f"{name}{where}", "a": a, "b": b, "source": result.runtime})
        rows += _metrics(result.metrics_a, result.metrics_b, "", where)
        rows += [
            {"name": f"{m.name} of B with A{where}", "a": "", "b": _value(m), "source": m.source}
            for m in result.agreement
        ]
    return rows


def _metrics(a: Sequence[Metric], b: Sequence[Metric], when: str, where: str = "") -> list[dict[str, str]]:
    sides = [{metric.name: metric for metric in side} for side in (a, b)]
    rows = []
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        found = [side.get(name) for side in sides]
        source = next(metric.source for metric in found if metric is not None)
        ours, theirs = ("n/a" if metric is None else _value(metric) for metric in found)
        rows.append({"name": f"{name}{where}", "a": ours, "b": theirs, "source": f"{when}{source}"})
    return rows


def _value(metric: Metric) -> str:
    if metric.unit == "dB" and metric.value >= LIMIT_DB:
        return "identical"
    return f"{metric.value:.4f}" if not metric.unit else number(metric.value, metric.unit)
