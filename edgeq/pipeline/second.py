"""The second graph of a bundle, for devices on which the first one's provider is missing or fails."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from edgeq.errors import CalibrationError, ModelError
from edgeq.pipeline.choosing import best_attempt
from edgeq.pipeline.job import Job
from edgeq.pipeline.judge import Attempt, Impossible, Verdict
from edgeq.report import Contract, Finding
from edgeq.request import Limits

__all__ = ["FALLBACK", "Second", "joint_contract", "second_graph"]

FALLBACK = "fallback/model.onnx"
"""Where it lies in the bundle."""


@dataclass(frozen=True)
class Second:
    """The fallback's job and the precision that was taken; None: none can be made, and ``findings`` say why."""

    job: Job
    attempt: Attempt | None
    rejected: tuple[Verdict | Impossible, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def met(self) -> bool:
        return self.attempt is None or self.attempt.verdict.met


def second_graph(job: Job, limits: Limits) -> Second | None:
    """Make the graph of the target's fallback; None where the target has none, or the user wants none.

    Of the limits ``--max-drop`` counts for it, too.
    """
    other = job.fallback
    if other is None:
        return None
    findings = []
    if other.feeds[0] is None:
        left_out = [scheme.name for scheme in other.schemes if scheme.calibrated]
        other.schemes = tuple(scheme for scheme in other.schemes if not scheme.calibrated) or other.schemes
        if left_out:
            text = f"the fallback for {other.target.name} cannot be {' or '.join(left_out)} without calibration data"
            findings.append(Finding(severity="info", text=text, remedy="give --calibration data"))
    try:
        found, rejected = best_attempt(other, Limits(max_drop=limits.max_drop))
    except (CalibrationError, ModelError) as error:
        text = f"the package has no fallback for {other.target.name}: {error.what}"
        return Second(other, None, (), (Finding(severity="warning", text=text, remedy=error.remedy),))
    return Second(other, found, tuple(rejected), tuple(findings))


def joint_contract(first: Contract | None, second: Second | None) -> Contract | None:
    """The contract of both graphs; the clauses of the fallback say that they are its."""
    theirs = second.attempt.verdict.contract if second is not None and second.attempt is not None else None
    if first is None or theirs is None or second is None:
        return first
    named = f"for the fallback ({second.job.target.name})"
    ours = [msgspec.structs.replace(clause, option=f"{clause.option} {named}") for clause in theirs.clauses]
    clauses = (*first.clauses, *ours)
    return Contract(clauses=clauses, met=all(clause.met for clause in clauses))
