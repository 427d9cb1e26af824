"""The table of `edgeq targets check`, and what the rules say of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from edgeq.checks.record import summary
from edgeq.cli.render import result_console, result_table

if TYPE_CHECKING:
    from edgeq.checks.record import Result, TargetRecord
    from edgeq.checks.rules import Violation

__all__ = ["show_check", "show_violations"]

_STYLES = {"holds": "green", "does not hold": "red", "not verified": "yellow", "rules only": "yellow"}


def show_check(records: Sequence[TargetRecord]) -> None:
    """For each target one line per operator and type, then what does not hold, then the summary."""
    console = result_console()
    for record in records:
        how = record.version or record.sandbox or "no provider here: rules only"
        console.print(f"[bold]{record.target}[/] ({record.provider}; {escape(how)})")
        table = result_table(
            "operator", "kind", "type", "verdict", "forms", "to the specification", "to the float model"
        )
        for capability in record.capabilities:
            for results in _by_type(capability.results):
                _add_row(table, capability.kind, results)
        console.print(table)
        _show_failures(console, record.results)
        console.print(f"{record.target}: {summary(record.results)}\n")
    if len(records) > 1:
        table = result_table("target", "", "checked with")
        for record in records:
            table.add_row(record.target, summary(record.results), escape(record.version or "-"))
        console.print(table)


def _by_type(results: Sequence[Result]) -> list[list[Result]]:
    """The forms of each operator and type together."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.op, result.type), []).append(result)
    return list(groups.values())


def _add_row(table: object, kind: str, results: Sequence[Result]) -> None:
    from rich.table import Table

    assert isinstance(table, Table)
    first = results[0]
    verdicts = dict.fromkeys(result.verdict for result in results)
    shown = ", ".join(f"[{_STYLES[verdict]}]{verdict}[/]" for verdict in verdicts)
    good = sum(result.verdict in ("holds", "rules only") for result in results)
    near, far = (_least(results, key) for key in ("db", "float_db"))
    table.add_row(first.op, kind, first.type, shown, f"{good} of {len(results)}", near, far)


def _least(results: Sequence[Result], key: str) -> str:
    """The worst SQNR of the forms; 200 dB stands for identical."""
    found = [value for result in results if (value := getattr(result, key)) is not None]
    return "-" if not found else "identical" if min(found) >= 200 else f"{min(found):.0f} dB"


def _show_failures(console: Console, results: Sequence[Result]) -> None:
    for result in results:
        if result.verdict == "does not hold":
            console.print(escape(f"does not hold: {result.name}: {result.reason}"))
    reasons = dict.fromkeys(result.reason for result in results if result.verdict == "not verified")
    for reason in reasons:
        console.print(escape(f"not verified here: {reason}"))


def show_violations(target: str, violations: Sequence[Violation]) -> None:
    """Each place where a model breaks a rule."""
    console = result_console()
    table = result_table("", "rule", "node", "what is wrong")
    for violation in violations:
        table.add_row(violation.severity, violation.rule, escape(violation.node), escape(violation.text))
    if violations:
        console.print(table)
    errors = sum(violation.severity == "error" for violation in violations)
    warnings = len(violations) - errors
    console.print(f"{target}, by its rules only: {errors} errors, {warnings} warnings")
