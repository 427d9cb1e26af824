"""Six networks for every target, each package run on the target's real provider, emulator or compiler where one is.

    python tests/benchmarks/every_target.py DATA --output results.jsonl [--target NAME ...] [--network NAME ...]

DATA is the folder that docs/benchmarks.md describes. Sandboxes that are not installed are named, not skipped in
silence (`edgeq doctor --install-provider NAME`). One line of JSON per package is appended to the output; what stands
there already is not made again. The table of all lines is printed at the end, as Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from networks import Network, networks

import edgeq
from edgeq.report import Report
from edgeq.sandbox.place import Place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--target", action="append", help="a target, with @variant or not [default: all, all variants]")
    parser.add_argument("--network", action="append")
    given = parser.parse_args()
    done = {(row["network"], row["target"]) for row in rows_of(given.output)}
    makers = networks(given.data.resolve())
    for name in given.network or makers:
        wanted = [target for target in given.target or all_targets() if (name, target) not in done]
        if not wanted:
            continue
        network = makers[name]()
        for target in wanted:
            row = measure(network, target)
            with given.output.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
            print(target, name, cell_of(row), file=sys.stderr, flush=True)
    print(table(rows_of(given.output)))


def all_targets() -> list[str]:
    """Every target, and every variant of it that is not its default."""
    found = []
    for name in edgeq.target_names():
        profile = edgeq.load_target(name)
        found += [name, *(f"{name}@{variant}" for variant in profile.variants if variant != profile.variant)]
    return found


def measure(network: Network, target: str) -> dict[str, Any]:
    """Export, run on the target's own provider, and say what came of it."""
    verification = edgeq.load_target(target).verification
    places = [] if verification.sandbox is None else [str(Place(verification.sandbox, verification.arguments))]
    row: dict[str, Any] = {"network": network.name, "target": target}
    with tempfile.TemporaryDirectory(prefix="edgeq-") as folder:
        try:
            exported = edgeq.export(
                network.source,
                target=target,
                output=Path(folder) / "bundle",
                calibration=network.calibration,
                evaluation=network.evaluation,
                fix=network.fix,
                example_inputs=network.example_inputs,
                fallback=False,
                on=places,
                measure=False,
            )
        except edgeq.EdgeqError as error:
            return {**row, "error": str(error)}
    return {**row, **summary(exported.report)}


def summary(report: Report) -> dict[str, Any]:
    """The figures of one report."""
    kinds = Counter(placed.kind for placed in report.placement)
    return {
        "precision": report.precision,
        "sqnr_db": decibels(report.metrics),
        "agreement": report.agreement,
        "kinds": dict(kinds),
        "mb": None if report.size is None else report.size.quantized_bytes / 1e6,
        "checks": [
            {
                "place": check.place,
                "status": check.status,
                "version": check.version,
                "taken": check.taken,
                "nodes": check.nodes,
                "metrics": {metric.name: metric.value for metric in check.metrics},
                "text": check.text,
            }
            for check in report.checks
        ],
        "findings": [f"{finding.severity}: {finding.text}" for finding in report.findings],
    }


def decibels(metrics: Any) -> float | None:
    """The first figure in dB: the pooled embedding's where there is one, else the worst output's."""
    return next((metric.value for metric in metrics if metric.unit == "dB"), None)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def cell_of(row: dict[str, Any]) -> str:
    """Precision and SQNR in dB on the provider, or in parentheses where nothing runs it here."""
    if "error" in row:
        return "failed"
    check = row["checks"][0] if row["checks"] else {"status": "none", "metrics": {}}
    on_provider = [value for name, value in check["metrics"].items() if "SQNR" in name and "machine" not in name]
    if check["status"] in ("refused", "crashed"):
        return check["status"]
    judged = "n/a" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}"
    return f"{row['precision']} {min(on_provider):.1f}" if on_provider else f"{row['precision']} ({judged})"


def placed_of(rows: list[dict[str, Any]]) -> str:
    """The share of all nodes that run as predicted, where the provider tells."""
    told = [(row["agreement"], sum(row["kinds"].values())) for row in rows if row.get("agreement") is not None]
    total = sum(count for _, count in told)
    return f"{100 * sum(share * count for share, count in told) / total:.1f} %" if total else "n/a"


def table(rows: list[dict[str, Any]]) -> str:
    """Targets by networks, as Markdown."""
    names = list(dict.fromkeys(row["network"] for row in rows))
    lines = [f"| target | run on | {' | '.join(names)} | placed as predicted |", "|---" * (len(names) + 3) + "|"]
    for target in sorted({row["target"] for row in rows}):
        own = {row["network"]: row for row in rows if row["target"] == target}
        places = [check["place"] for row in own.values() for check in row.get("checks", ())[:1]]
        cells = [cell_of(own[name]) if name in own else "" for name in names]
        where = next((place for place in places if place), "rules only")
        lines.append(f"| `{target}` | {where} | {' | '.join(cells)} | {placed_of(list(own.values()))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
