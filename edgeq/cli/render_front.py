"""The sensitivity of groups and the Pareto front, for people: tables on stdout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from edgeq.cli.render import result_console, result_table

if TYPE_CHECKING:
    from edgeq.front import Front, FrontPoint

__all__ = ["add_front", "show_sensitivity"]

_MOST = 40


def show_sensitivity(front: Front, target: str) -> None:
    """Groups, worst first, and what mixes of formats are predicted to give."""
    console = result_console()
    how = "by Taylor scores" if front.method == "taylor" else "each place quantized alone, and measured"
    console.print(f"sensitivity: {front.precision} on {target}, {how}\n")
    table = result_table("group", "nodes", "operators", "as", "share", "SQNR if alone", "KL", "offered")
    for row in front.sensitivity[:_MOST]:
        ops = ", ".join(f"{count} {op}" if count > 1 else op for op, count in row.ops.items())
        alone = "no error" if row.db is None else f"{row.db:.1f} dB"
        divergence = "" if row.divergence is None else f"{row.divergence:.2g}"
        cells = (row.group, str(len(row.nodes)), ops, row.format, f"{100 * row.share:.1f} %", alone, divergence)
        table.add_row(*map(escape, (*cells, ", ".join(row.formats))))
    console.print(table)
    if len(front.sensitivity) > _MOST:
        console.print(f"and {len(front.sensitivity) - _MOST} more (--json shows all)")
    add_front(console, front)


def add_front(console: Console, front: Front) -> None:
    """The points of the front, cheapest first, and which one was taken."""
    unit = "ms" if front.measured else "estimated"
    table = result_table("point", "groups by format", f"predicted, {unit}", "SQNR", "drop", "time", "size", "")
    for point in front.points:
        table.add_row(*map(escape, _cells(point, told=bool(front.sensitivity))))
    console.print(f"\nmixes of {front.precision}, cheapest in time and bytes first (--pick N takes another):")
    console.print(table)


def _cells(point: FrontPoint, *, told: bool) -> tuple[str, ...]:
    formats = ", ".join(f"{count} {name}" for name, count in point.formats.items())
    db = point.sqnr_db if point.sqnr_db is not None else point.predicted_db
    found = f"{db:.1f} dB" + ("" if point.sqnr_db is not None else " predicted") if db is not None else ""
    found = found or ("exact" if told else "not predicted")
    size = point.size_bytes if point.size_bytes is not None else point.predicted_bytes
    return (
        str(point.number),
        formats,
        f"{point.predicted_ms:.3g}",
        found,
        "" if point.drop is None else f"{point.drop:.3g}",
        point.time,
        f"{size / 1e6:.2f} MB",
        "taken" if point.taken else point.why or "",
    )
