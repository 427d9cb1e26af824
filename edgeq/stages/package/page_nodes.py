"""What a page shows of the time per node: what it is spent on, by operator, kernel by kernel, and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeq.node_times import OWN, WORK, NodeTime, Work, by_operator, by_work, work_of

__all__ = ["nodes_page"]

_WIDTH = 1000.0
_NARROWEST = 1.2
"""Of the plot's 1000 units: what is narrower is drawn together with its neighbours of the same operator."""

_LETTER = 6.7
_CHARACTERS = 400


def nodes_page(
    nodes: Sequence[NodeTime], reference: Sequence[NodeTime] = (), names: tuple[str, str] = ("quantized", "float")
) -> dict[str, Any] | None:
    """The template's variables for one model's kernels, with those of another beside them; None without any.

    Kernels of both belong together if their names are the same.
    """
    if not nodes:
        return None
    sides = [(names[0], nodes), *([(names[1], reference)] if reference else [])]
    longest = max(_total(side) for _, side in sides)
    return {
        "sides": [_side(name, side, longest) for name, side in sides],
        "legend": [
            {"work": work, "text": text}
            for work, text in WORK.items()
            if any(work in by_work(side) for _, side in sides)
        ],
        "operators": _operators([side for _, side in sides]),
        "icicle": _icicle(nodes),
        "rows": _rows(nodes, reference),
        "matched": bool(reference) and any(node.node in {r.node for r in reference} for node in nodes),
    }


def _total(nodes: Sequence[NodeTime]) -> float:
    return max(sum(node.mean_us for node in nodes), 1e-9)


def _side(name: str, nodes: Sequence[NodeTime], longest: float) -> dict[str, Any]:
    """One model: its total, its overhead in words, and its kernels in order of execution as a strip of boxes."""
    total, spent = _total(nodes), by_work(nodes)
    overhead = {work: us for work, us in spent.items() if work not in OWN}
    parts = [f"{WORK[work]} {100 * us / total:.1f} %" for work, us in overhead.items()]
    return {
        "name": name,
        "ms": _ms(total),
        "kernels": len(nodes),
        "overhead": f"{100 * sum(overhead.values()) / total:.1f} %",
        "parts": ", ".join(parts) or "none",
        "boxes": _strip(nodes, _WIDTH / longest),
        "providers": ", ".join(dict.fromkeys(node.provider.removesuffix("ExecutionProvider") for node in nodes)),
    }


def _strip(nodes: Sequence[NodeTime], scale: float) -> list[dict[str, Any]]:
    """Neighbours that are too narrow to see share a box, if they do the same kind of work."""
    groups: list[list[NodeTime]] = []
    for node in nodes:
        last = groups[-1] if groups else []
        narrow = all(one.mean_us * scale < _NARROWEST for one in (*last[-1:], node))
        if last and narrow and work_of(last[-1]) == work_of(node):
            last.append(node)
        else:
            groups.append([node])
    boxes, x = [], 0.0
    for group in groups:
        us = sum(node.mean_us for node in group)
        boxes.append(_box(x, us * scale, work_of(group[0]), _told(group, us)))
        x += us * scale
    return boxes


def _icicle(nodes: Sequence[NodeTime]) -> list[dict[str, Any]]:
    """Three rows of boxes: what the time is spent on, by which operator, in which kernel; each the longest first."""
    total = _total(nodes)
    scale = _WIDTH / total
    boxes: list[dict[str, Any]] = []
    start = 0.0
    for work, us in sorted(by_work(nodes).items(), key=lambda item: -item[1]):
        text = f"{WORK[work]}: {_ms(us)} ms, {100 * us / total:.1f} %"
        boxes.append({**_box(start, us * scale, work, text, WORK[work]), "row": 0})
        group = [node for node in nodes if work_of(node) == work]
        x = start
        for operator in by_operator(group):
            kernels = sorted(
                (n for n in group if (n.op_type, n.provider) == (operator.op_type, operator.provider)),
                key=lambda node: -node.mean_us,
            )
            width = operator.mean_us * scale
            boxes.append({**_box(x, width, work, _told(kernels, operator.mean_us), operator.op_type), "row": 1})
            boxes += _kernels(kernels, x, scale, work)
            x += width
        start += us * scale
    return boxes


def _kernels(kernels: Sequence[NodeTime], x: float, scale: float, work: Work) -> list[dict[str, Any]]:
    boxes = []
    wide = [node for node in kernels if node.mean_us * scale >= _NARROWEST]
    for node in wide:
        boxes.append({**_box(x, node.mean_us * scale, work, _told([node], node.mean_us), node.node), "row": 2})
        x += node.mean_us * scale
    rest = kernels[len(wide) :]
    us = sum(node.mean_us for node in rest)
    if rest and us > 0:
        boxes.append({**_box(x, us * scale, work, _told(rest, us), f"{len(rest)} more"), "row": 2})
    return boxes


def _box(x: float, width: float, work: Work, text: str, label: str = "") -> dict[str, Any]:
    room = int((width - 8) / _LETTER)
    short = label if len(label) <= room else f"{label[: room - 1]}\N{HORIZONTAL ELLIPSIS}" if room >= 4 else ""
    return {
        "x": round(x, 2),
        "width": round(max(width, 0.3), 2),
        "work": work,
        "text": text[:_CHARACTERS],
        "label": short,
    }


def _told(group: Sequence[NodeTime], us: float) -> str:
    share = 100 * sum(node.share for node in group)
    where = group[0].provider.removesuffix("ExecutionProvider")
    if len(group) == 1:
        return f"{group[0].node}: {group[0].op_type} on {where}, {_ms(us)} ms, {share:.1f} %"
    kinds = ", ".join(dict.fromkeys(node.op_type for node in group))
    return f"{len(group)} kernels ({kinds}) on {where}: {_ms(us)} ms, {share:.1f} %"


def _operators(sides: Sequence[Sequence[NodeTime]]) -> list[dict[str, Any]]:
    found = [{(o.op_type, o.provider): o for o in by_operator(side)} for side in sides]
    keys = sorted(
        dict.fromkeys(key for side in found for key in side),
        key=lambda key: -max(side[key].mean_us for side in found if key in side),
    )
    return [
        {
            "op_type": op_type,
            "provider": provider.removesuffix("ExecutionProvider"),
            "work": work_of(next(n for side in sides for n in side if (n.op_type, n.provider) == (op_type, provider))),
            "cells": [
                {"ms": _ms(o.mean_us), "share": f"{100 * o.share:.1f} %", "kernels": o.kernels} if o else None
                for side in found
                for o in (side.get((op_type, provider)),)
            ],
        }
        for op_type, provider in keys
    ]


def _rows(nodes: Sequence[NodeTime], reference: Sequence[NodeTime]) -> list[dict[str, Any]]:
    """Every kernel in order of execution; ``other`` is what the kernels of this name take in the other model."""
    others: dict[str, float] = {}
    for node in reference:
        others[node.node] = others.get(node.node, 0.0) + node.mean_us
    return [
        {
            "node": node.node,
            "op_type": node.op_type,
            "provider": node.provider.removesuffix("ExecutionProvider"),
            "work": work_of(node),
            "ms": _ms(node.mean_us),
            "share": f"{100 * node.share:.2f} %",
            "percent": round(100 * node.share, 2),
            "other": _ms(others[node.node]) if node.node in others else "",
            "ratio": f"{node.mean_us / others[node.node]:.2f}" if others.get(node.node) else "",
        }
        for node in nodes
    ]


def _ms(us: float) -> str:
    return f"{us / 1e3:.3f}"
