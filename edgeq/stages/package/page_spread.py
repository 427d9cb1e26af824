"""How times spread, drawn from the quantiles that a device report holds: a row per device or model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgeq.device_report import DeviceLatency
from edgeq.stages.package.page_numbers import number

__all__ = ["scale_ticks", "spread_plot"]

_LEFT, _RIGHT = 230.0, 985.0
_WIDE = 8.0
"""From this ratio of the longest to the shortest time on, the scale is logarithmic."""

_LONGEST_NAME = 29


def spread_plot(rows: Sequence[tuple[str, DeviceLatency, str]]) -> dict[str, Any] | None:
    """The template's variables for ``(name, latency, kind)``, ``kind`` being a class of the style sheet.

    None if no latency tells its sessions. Emulated times are left out: they say nothing.
    """
    shown = [(n, latency, kind) for n, latency, kind in rows if latency.sessions and not latency.emulated]
    if not shown:
        return None
    quantiles = [_quantiles(latency) for _, latency, _ in shown]
    low, high = min(q[0] for q in quantiles), max(q[-1] for q in quantiles)
    logarithmic = high > _WIDE * low
    ticks = scale_ticks(low, high, logarithmic=logarithmic)
    return {
        "logarithmic": logarithmic,
        "ticks": [{"x": _x(tick, low, high, logarithmic), "text": number(tick)} for tick in ticks],
        "rows": [_row(*row, q, low, high, logarithmic) for row, q in zip(shown, quantiles, strict=True)],
    }


def scale_ticks(low: float, high: float, *, logarithmic: bool = False) -> list[float]:
    """A few round numbers from ``low`` to ``high``, both positive."""
    if logarithmic:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = (1, 2, 5) if len(decades) < 4 else (1,)
        return [t for d in decades for s in steps if low <= (t := s * 10.0**d) <= high]
    raw = (high - low) / 6
    if raw <= 0:
        return [low]
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw)
    return [round(k * step, 10) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _quantiles(latency: DeviceLatency) -> list[float]:
    """5, 25, 50, 75 and 95 % over all sessions, each weighed by its runs."""
    values = np.concatenate([np.asarray(session.wall_ms) for session in latency.sessions])
    weights = np.concatenate(
        [np.full(len(session.wall_ms), session.runs / len(session.wall_ms)) for session in latency.sessions]
    )
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order]) / weights.sum()
    return [float(max(values[order][np.searchsorted(reached, q)], 1e-6)) for q in (0.05, 0.25, 0.5, 0.75, 0.95)]


def _x(value: float, low: float, high: float, logarithmic: bool) -> float:
    if logarithmic:
        value, low, high = (math.log(max(v, 1e-9)) for v in (value, low, high))
    share = (value - low) / (high - low) if high > low else 0.5
    return round(_LEFT + (_RIGHT - _LEFT) * min(max(share, 0.0), 1.0), 1)


def _row(
    name: str, latency: DeviceLatency, kind: str, quantiles: Sequence[float], low: float, high: float, logarithmic: bool
) -> dict[str, Any]:
    x5, x25, x50, x75, x95 = (_x(value, low, high, logarithmic) for value in quantiles)
    medians = [session.p50_ms for session in latency.sessions] if len(latency.sessions) > 1 else []
    told = ", ".join(f"{q} % {number(value, 'ms')}" for q, value in zip((5, 25, 50, 75, 95), quantiles, strict=True))
    return {
        "name": name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}\N{HORIZONTAL ELLIPSIS}",
        "kind": kind,
        "text": f"{name}: {told}; {latency.runs} runs",
        "x5": x5,
        "x25": x25,
        "x50": x50,
        "x95": x95,
        "width": round(max(x75 - x25, 1.0), 1),
        "dots": [_x(median, low, high, logarithmic) for median in medians],
    }
