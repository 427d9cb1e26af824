"""What a careful engineer would say of a package: its data, its speed, and the choice of its precision."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgeq.box_metrics import AGREEMENT
from edgeq.graph import constant_array, output_infos
from edgeq.pipeline.job import Job
from edgeq.pipeline.judge import Attempt, Impossible, Verdict
from edgeq.report import Finding, LatencyComparison
from edgeq.request import box_agreement, output_sqnr_db
from edgeq.stages.run.accuracy import Evaluation
from edgeq.stages.run.boxes import PRECISION

_FEW_BOXES = 20
"""Where the float model finds fewer, one more or less is 5 points."""

_SURE = 4
"""A limit that allows fewer samples than this is said to be hardly measurable: half of them come and go by chance."""

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
    if halved := sum(array.nbytes for array in _stored(attempt)):
        text = f"float weights are stored in 16 bits and turned back while loading: {halved / 1e6:.2f} MB less"
        findings.append(Finding(severity="info", text=text))
    used, held_out = job.feeds
    if used is not None and attempt.scheme.calibrated and len(used.rows) < 32:
        text = f"only {len(used.rows)} calibration samples: ranges may miss what your data holds"
        findings.append(Finding(severity="info", text=text, remedy="give --calibration 100 or more of your own"))
    if held_out is not None and len(held_out.rows) < 32:
        text = f"accuracy was measured on only {len(held_out.rows)} samples: take its figures as rough"
        findings.append(Finding(severity="info", text=text, remedy="give --evaluation 100 or more of your own"))
    metric = next((m for m in attempt.evaluation.metrics if m.name == AGREEMENT), None)
    if metric is not None and metric.samples < _FEW_BOXES:
        text = (
            f"the float model finds only {metric.samples} boxes in all that was looked at: agreement is partly chance"
        )
        remedy = "give --evaluation pictures of what the model finds, or a smaller score"
        findings.append(Finding(severity="warning", text=text, remedy=remedy))
    if job.names is not None and job.boxes is None:
        infos = output_infos(job.prepared.model)
        if not any(info.shape and info.shape[-1] == len(job.names) for info in infos):
            outputs = ", ".join(info.describe() for info in infos)
            text = f"there are {len(job.names)} names of classes, and no output has as many: {outputs}"
            remedy = "give --class-names one name for each class, in the order of the model's"
            findings.append(Finding(severity="warning", text=text, remedy=remedy))
    if held_out is None and job.data.pairs is None:
        text = "accuracy was measured on example inputs, which are not real data"
        findings.append(Finding(severity="warning", text=text, remedy="give --calibration or --evaluation data"))
    return findings


def _stored(attempt: Attempt) -> list[np.ndarray]:
    """The weights in 16 bits that ``edgeq.stages.tune.store_floats`` made."""
    casts = (node for node in attempt.model.graph if node.op_type == "Cast")
    arrays = (constant_array(node.inputs[0]) for node in casts)
    return [array for array in arrays if array is not None and array.dtype == np.int16]


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
        why = other.lost
        if isinstance(other, Verdict) and other.contract is not None and other.met:
            why = f"it keeps the limits, too, but costs more: {other.cost}"
        text = f"{other.precision} was tried and not taken: {why}"
        findings.append(Finding(severity="info", text=text))
    findings.extend(_resolution(attempt))
    if attempt.verdict.contract is None and not attempt.verdict.acceptable:
        text = f"{_kept(attempt.evaluation)}: do not ship this"
        remedy = "try another --precision, or give calibration data like what the model will see"
        findings.append(Finding(severity="error", text=text, remedy=remedy))
    return findings


def _kept(evaluation: Evaluation) -> str:
    boxes = box_agreement(evaluation)
    if boxes is not None:
        return f"only {boxes:.3g} % of the boxes are the float model's"
    return f"the outputs keep an SQNR of only {output_sqnr_db(evaluation):.1f} dB"


def _resolution(attempt: Attempt) -> list[Finding]:
    """Where the limit on accuracy is finer than one sample, what it really asks for, and what one sample more buys."""
    contract, evaluation = attempt.verdict.contract, attempt.evaluation
    asked = (
        next((c.asked for c in contract.clauses if c.option == "--max-drop"), None) if contract is not None else None
    )
    metric = next((m for m in evaluation.metrics if m.name == evaluation.primary), None)
    if asked is None or metric is None or metric.unit != "%" or not metric.samples or metric.name == PRECISION:
        return []  # a mean over curves of precision has no such steps
    step = 100 / metric.samples
    allowed = int(asked / step + 1e-6)
    if allowed >= _SURE:
        return []
    count = "none" if allowed == 0 else f"only {allowed}"
    noun = "boxes" if metric.name == AGREEMENT else "samples"
    text = (
        f"--max-drop {asked:g} allows {count} of {metric.samples} {noun} to be lost, as one is {step:.2g} points of "
        f"{metric.name}: what keeps it is partly chance"
    )
    points = attempt.front.points if attempt.front is not None else ()
    nearly = [p for p in points if p.drop is not None and asked < p.drop <= asked + step + 1e-4 and not p.taken]
    priced = [(p.size_bytes / p.speedup, p.number) for p in nearly if p.size_bytes and p.speedup]
    if priced:
        point = points[min(priced)[1]]
        text += (
            f"; with one more lost, point {point.number} would do: {(point.size_bytes or 0) / 1e6:.2f} MB, {point.time}"
        )
    remedy = f"give --evaluation {math.ceil(100 * _SURE / asked)} {noun} or more" if asked else None
    return [Finding(severity="info", text=text, remedy=remedy)]
