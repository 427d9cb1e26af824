"""What a careful engineer would say of a package: its data, its speed, and the choice of its precision."""

from __future__ import annotations

from collections.abc import Sequence

from edgeq.pipeline.job import Job
from edgeq.pipeline.judge import Attempt, Impossible, Verdict
from edgeq.report import Finding, LatencyComparison
from edgeq.request import output_sqnr_db

__all__ = ["choice_findings", "data_findings", "speed_findings"]


def data_findings(job: Job, attempt: Attempt) -> list[Finding]:
    """What a careful engineer would say of the data."""
    findings = []
    if notes := attempt.plan.notes:
        text = f"{len(notes)} steps were taken to keep accuracy, such as: {notes[0]}"
        findings.append(Finding(severity="info", text=text))
    if islands := attempt.plan.islands:
        whys = dict.fromkeys(islands.values())
        count = "1 node stays" if len(islands) == 1 else f"{len(islands)} nodes stay"
        text = f"{count} float32 where the rest is float16, such as {next(iter(islands))}: {next(iter(whys))}"
        findings.append(Finding(severity="info", text=text, nodes=tuple(islands)))
    used, held_out = job.feeds
    if used is not None and attempt.scheme.calibrated and len(used.rows) < 32:
        text = f"only {len(used.rows)} calibration samples: ranges may miss what your data holds"
        findings.append(Finding(severity="info", text=text, remedy="give --calibration 100 or more of your own"))
    if held_out is not None and len(held_out.rows) < 32:
        text = f"accuracy was measured on only {len(held_out.rows)} samples: take its figures as rough"
        findings.append(Finding(severity="info", text=text, remedy="give --evaluation 100 or more of your own"))
    if held_out is None and job.data.pairs is None:
        text = "accuracy was measured on example inputs, which are not real data"
        findings.append(Finding(severity="warning", text=text, remedy="give --calibration or --evaluation data"))
    return findings


def speed_findings(latency: LatencyComparison | None) -> list[Finding]:
    """A package that is slower than what it was made from is not what anybody wanted."""
    if latency is None or latency.cpu_speedup is None or latency.cpu_speedup >= 1:
        return []
    text = f"the package takes {1 / latency.cpu_speedup:.2f} times the float model's CPU time on this machine"
    remedy = "look at the placement for nodes that run in float; very small models gain nothing from 8 bits"
    return [Finding(severity="warning", text=text, remedy=remedy)]


def choice_findings(attempt: Attempt, rejected: Sequence[Verdict | Impossible]) -> list[Finding]:
    """Which precisions were tried and not taken, and whether the one that was taken is worth having."""
    findings = []
    for other in rejected:
        text = f"{other.precision} was tried and not taken: {other.lost}"
        findings.append(Finding(severity="info", text=text))
    if attempt.verdict.contract is None and not attempt.verdict.acceptable:
        text = f"the outputs keep an SQNR of only {output_sqnr_db(attempt.evaluation):.1f} dB: do not ship this"
        remedy = "try another --precision, or give calibration data like what the model will see"
        findings.append(Finding(severity="error", text=text, remedy=remedy))
    return findings
