"""The gates that a build can be told to fail on: their names, and which of them a report does not pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import get_args

import msgspec

from edgeq.errors import ConfigError
from edgeq.report import Finding, NodePlacement, Report
from edgeq.target import Gate, Gates

__all__ = ["GATES", "failing", "parse_gates", "strict", "unchecked"]

GATES: tuple[Gate, ...] = get_args(Gate)


def parse_gates(names: Iterable[str]) -> frozenset[Gate]:
    """``("unfused", "fallback")`` or ``("all",)`` as a set.

    Raises:
        ConfigError: a name that is no gate.
    """
    asked: set[Gate] = set()
    for name in names:
        found = GATES if name == "all" else tuple(gate for gate in GATES if gate == name)
        if not found:
            raise ConfigError(f"there is no gate {name!r}", remedy=f"choose among {', '.join(GATES)}, all")
        asked.update(found)
    return frozenset(asked)


def strict(gates: Gates, asked: frozenset[Gate]) -> Gates:
    """The profile's severities, but ``"error"`` for the gates that were asked for."""
    return msgspec.structs.replace(gates, **dict.fromkeys(sorted(asked), "error"))


def failing(report: Report, asked: frozenset[Gate]) -> tuple[Finding, ...]:
    """The findings of the gates that were asked for, of all graphs."""
    graphs = (report, report.fallback)
    return tuple(f for graph in graphs if graph is not None for f in graph.findings if f.gate in asked)


def unchecked(asked: frozenset[Gate], nodes: Sequence[NodePlacement]) -> list[Finding]:
    """A warning where gates were asked for, but no provider told where the nodes run."""
    if not asked or any(place.runs_as != "not run here" for place in nodes):
        return []
    text = (
        f"the gates {', '.join(sorted(asked))} were judged by the profile's prediction: the provider did not run here"
    )
    remedy = "run the package where its provider is available: `edgeq run BUNDLE --gate NAME`"
    return [Finding(severity="warning", text=text, remedy=remedy)]
