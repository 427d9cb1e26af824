"""Where the time goes, for people: operators in order of their time, and what is overhead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape

from edgeq.cli.render import result_table
from edgeq.node_times import OWN, WORK, NodeTime, by_operator, by_work

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["add_times"]

_SHOWN = 8


def add_times(
    console: Console,
    nodes: Sequence[NodeTime],
    reference: Sequence[NodeTime] = (),
    *,
    names: tuple[str, str] = ("quantized", "float"),
) -> None:
    """The operators that take the longest, with those of ``reference`` beside them; nothing if no node was timed."""
    if not nodes:
        return
    sides = [nodes, *([reference] if reference else [])]
    operators = [{(o.op_type, o.provider): o for o in by_operator(side)} for side in sides]
    longest = sorted(
        dict.fromkeys(key for side in operators for key in side),
        key=lambda key: -max(side[key].mean_us for side in operators if key in side),
    )
    heads = [head for name in names[: len(sides)] for head in (f"{name}: ms", "share", "kernels")]
    table = result_table("time by operator", "on", *heads)
    for key in longest[:_SHOWN]:
        cells = []
        for side in operators:
            found = side.get(key)
            cells += (
                ["", "", ""]
                if found is None
                else [_ms(found.mean_us), f"{100 * found.share:.1f} %", str(found.kernels)]
            )
        table.add_row(escape(key[0]), escape(key[1].removesuffix("ExecutionProvider")), *cells)
    if len(longest) > _SHOWN:
        rest = [[o for key, o in side.items() if key in longest[_SHOWN:]] for side in operators]
        cells = []
        for left in rest:
            share = 100 * sum(o.share for o in left)
            cells += [_ms(sum(o.mean_us for o in left)), f"{share:.1f} %", str(sum(o.kernels for o in left))]
        table.add_row("others", "", *cells)
    console.print()
    console.print(table)
    for name, timed in zip(names, sides, strict=False):
        console.print(f"{name}: {_overhead(timed)}")


def _overhead(nodes: Sequence[NodeTime]) -> str:
    """What is not the model's own work, as shares of the time of all kernels."""
    spent = by_work(nodes)
    total = max(sum(spent.values()), 1e-9)
    parts = [f"{100 * us / total:.1f} % {WORK[work]}" for work, us in spent.items() if work not in OWN]
    return f"{_ms(total)} ms in {len(nodes)} kernels, of it {', '.join(parts) if parts else 'no overhead'}"


def _ms(us: float) -> str:
    return f"{us / 1e3:.3f}"
