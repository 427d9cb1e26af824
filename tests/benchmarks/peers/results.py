"""Result rows as JSON lines, and as tables of Markdown in a page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

KEY = ("network", "precision", "method", "samples")
"""What makes a row another row; the last one written counts."""

COLUMNS = {
    "method": "",
    "mb": "MB",
    "sqnr_db": "SQNR dB",
    "agreement": "agree",
    "accuracy": "accuracy",
    "wall_ratio": "time / float",
    "cpu_ratio": "CPU time / float",
    "cpu_s": "CPU s",
    "wall_s": "wall s",
    "peak_mb": "peak MB",
}

BEGIN, END = "<!-- peers: written by tests/benchmarks/compare_peers.py -->", "<!-- peers: end -->"


def read(path: Path) -> list[Row]:
    """The latest row of each key, in the order in which the keys were first written."""
    rows: dict[tuple, Row] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            rows[key(row)] = row
    return list(rows.values())


def write(path: Path, row: Row) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def key(row: Mapping[str, Any]) -> tuple:
    return tuple(row[name] for name in KEY)


def shown(row: Mapping[str, Any], column: str) -> str:
    """One cell; what was not measured stays empty."""
    value = row.get(column)
    if value is None:
        return ""
    if column == "method":
        marks = (
            " (weights only)" if row.get("weights_only") else "",
            " (unoptimized)" if row.get("unoptimized") else "",
        )
        return f"`{value}`{''.join(marks)}"
    if column in ("agreement", "accuracy"):
        return f"{100 * value:.1f} %"
    return f"{value:.0f}" if column in ("wall_s", "peak_mb") else f"{value:.{3 if 'ratio' in column else 1}f}"


def table(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Lines of one Markdown table: float first, then as they come; an error takes the place of the figures."""
    lines = ["| " + " | ".join(COLUMNS.values()) + " |", "|---" * len(COLUMNS) + "|"]
    for row in sorted(rows, key=lambda row: row["method"] != "float"):
        cells = [shown(row, column) for column in COLUMNS]
        if row.get("error"):
            cells[1:6] = [f"**fails**: {row['error'].replace('|', ' ').replace('<', '&lt;')}", *[""] * 4]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def page(rows: Sequence[Mapping[str, Any]], methods: Mapping[str, str], notes: Mapping[str, str]) -> str:
    """All tables: by network and precision, then growth, then what each method and tool is.

    ``methods`` says what each is, in the order of the rows; ``notes`` what is to be known about a tool.
    """
    order = {name: index for index, name in enumerate(["float", *methods])}
    known = sorted((row for row in rows if row["method"] in order), key=lambda row: order[row["method"]])
    main = dict.fromkeys(row["network"] for row in rows if not row.get("growth"))  # in the order of their first rows
    parts: list[str] = []
    for network in main:
        of_network = [row for row in known if row["network"] == network and not row.get("growth")]
        floats = [row for row in of_network if row["method"] == "float"]
        for precision in ("w8a8", "w4a8", "w4a16"):
            of_precision = [row for row in of_network if row["precision"] == precision]
            if of_precision:
                samples = max(row["samples"] for row in of_precision)
                parts += [f"### {network}, {precision.upper()}, {samples} samples", ""]
                parts += [*table([*floats, *of_precision]), ""]
    parts += growth([row for row in known if row.get("growth")])
    missing = [name for name in methods if not any(row["method"] == name for row in known)]
    parts += [f"Not measured yet: {', '.join(f'`{name}`' for name in missing)}.", ""] if missing else []
    parts += ["### What the methods are", "", *(f"- `{name}`: {what}" for name, what in methods.items()), ""]
    tools = {row["tool"]: row.get("version", "") for row in known if row["method"] != "float"}
    parts += [
        "Versions: " + ", ".join(f"{tool} {version}".strip() for tool, version in sorted(tools.items())) + ".",
        "",
    ]
    parts += [f"- {tool}: {note}" for tool, note in notes.items() if note]
    dates = sorted({row["date"] for row in known})
    machines = sorted({row["machine"] for row in known})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else ""
    parts += ["", f"Measured {when} on {'; '.join(machines)}."] if dates else []
    return "\n".join(parts)


def growth(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """CPU seconds and memory by samples and by layers."""
    if not rows:
        return []
    columns = ("network", "layers", "method", "samples", "cpu_s", "wall_s", "peak_mb")
    lines = ["### Time and memory of the efforts", "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    ordered = sorted(rows, key=lambda row: (row["method"], row["network"], row["samples"]))
    lines += ["| " + " | ".join(str(row.get(column, "")) for column in columns) + " |" for row in ordered]
    return [*lines, ""]


def put(path: Path, text: str) -> None:
    """Replace what stands between the marks in a page; raises ValueError if they are not there, once and in order."""
    old = path.read_text(encoding="utf-8")
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} lacks the lines {BEGIN} and {END}")
    path.write_text(f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{after}", encoding="utf-8")
