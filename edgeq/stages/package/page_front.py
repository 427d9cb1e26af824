"""What the report's page shows of a Pareto front: a plot, a table of its points, and the sensitivity of groups."""

from __future__ import annotations

import math
from typing import Any

from edgeq.front import Front, FrontPoint, Sensitivity

__all__ = ["front_page"]

_WIDTH, _HEIGHT = 1000.0, 220.0
_CEILING_DB = 60.0
"""Mixes that are nearly float have no error to speak of: the plot ends here."""

_GROUPS = 16


def front_page(front: Front | None) -> dict[str, Any] | None:
    """The template's variables for the front; None where there is none."""
    if front is None:
        return None
    return {
        "precision": front.precision,
        "unit": "ms" if front.measured else "estimated",
        "plot": _plot(front),
        "rows": [_row(point, front) for point in front.points],
        "groups": [_group(row) for row in front.sensitivity[:_GROUPS]],
        "more": max(0, len(front.sensitivity) - _GROUPS),
    }


def _db(point: FrontPoint) -> float:
    """The SQNR that was measured, else the one that was predicted, as far as the plot reaches."""
    value = point.sqnr_db if point.sqnr_db is not None else point.predicted_db
    return _CEILING_DB if value is None else min(value, _CEILING_DB)


def _plot(front: Front) -> dict[str, Any] | None:
    """Points in an area of 1000 by 220: predicted time to the right, SQNR upwards."""
    if len(front.points) < 2:
        return None
    times = [point.predicted_ms for point in front.points]
    values = [_db(point) for point in front.points]
    left, span = min(times), (max(times) - min(times)) or 1.0
    low = max(-10.0, math.floor((min(values) - 2) / 10) * 10)
    high = max(low + 10.0, math.ceil((max(values) + 1) / 10) * 10)

    def y(value: float) -> float:
        return round(_HEIGHT * (high - max(value, low)) / (high - low), 1)

    points = [
        {
            "x": round(40 + (_WIDTH - 80) * (time - left) / span, 1),
            "y": y(value),
            "point": point,
            "kind": "taken" if point.taken else "tried" if point.sqnr_db is not None else "predicted",
        }
        for point, time, value in zip(front.points, times, values, strict=True)
    ]
    lines = [{"y": y(db), "text": f"{db:.0f}"} for db in range(int(low), int(high) + 1, 10)]
    return {"points": points, "lines": lines, "from": f"{left:.3g}", "to": f"{max(times):.3g}"}


def _row(point: FrontPoint, front: Front) -> dict[str, Any]:
    time = f"{point.predicted_ms:.3g}{' ms' if front.measured else ''}"
    noise = "exact" if point.predicted_db is None else f"{point.predicted_db:.1f} dB"
    return {
        "number": point.number,
        "taken": point.taken,
        "formats": ", ".join(f"{count} {name}" for name, count in point.formats.items()),
        "predicted": f"{time}, {noise}" if front.sensitivity else time,
        "sqnr": "n/a" if point.sqnr_db is None else f"{point.sqnr_db:.1f} dB",
        "drop": "n/a" if point.drop is None else f"{point.drop:.2f}",
        "latency": point.time or "n/a",
        "size": f"{(point.size_bytes or point.predicted_bytes) / 1e6:.2f} MB",
        "why": "taken" if point.taken else point.why or "",
    }


def _group(row: Sensitivity) -> dict[str, Any]:
    return {
        "name": row.group,
        "ops": ", ".join(f"{count} {op}" if count > 1 else op for op, count in row.ops.items()),
        "percent": round(100 * row.share, 2),
        "text": "no error" if row.db is None else f"{row.db:.1f} dB",
        "formats": ", ".join(row.formats),
    }
