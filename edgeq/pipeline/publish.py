"""From an attempt to a bundle on disk, measured as it lies there, and its report."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from edgeq import __version__
from edgeq.agreement import agreement
from edgeq.bundle import Calibration, Context, GraphEntry, Manifest
from edgeq.gates import strict, unchecked
from edgeq.graph import save_model
from edgeq.interface import Interface
from edgeq.machine import describe_machine
from edgeq.node_times import NodeTime
from edgeq.pipeline.findings import choice_findings, data_findings, speed_findings
from edgeq.pipeline.job import Job
from edgeq.pipeline.judge import Attempt, Impossible, Verdict
from edgeq.pipeline.second import FALLBACK, Second, joint_contract
from edgeq.pipeline.wrapping import wrapping_findings
from edgeq.report import (
    Finding,
    GraphReport,
    LatencyComparison,
    Memory,
    PlanRow,
    Report,
    plan_row,
)
from edgeq.request import library_versions, planned_placement
from edgeq.runtime import unavailable
from edgeq.sandbox.place import Place
from edgeq.stages.package import write_bundle, write_report
from edgeq.stages.run.blame import layer_errors
from edgeq.stages.run.gates import gate_findings
from edgeq.stages.run.latency import Timing, compare_latency
from edgeq.stages.run.memory import measure_memory
from edgeq.stages.run.node_timing import profile_nodes
from edgeq.stages.run.on_provider import (
    Ran,
    Samples,
    check_findings,
    placement_of,
    places_for,
    run_everywhere,
)
from edgeq.stages.run.placement import Placement
from edgeq.stages.tune import opset_note
from edgeq.stages.tune.context import compile_contexts
from edgeq.target import Provider

__all__ = ["publish"]


def publish(
    job: Job,
    folder: Path,
    attempt: Attempt,
    rejected: Sequence[Verdict | Impossible] = (),
    second: Second | None = None,
) -> Report:
    """Write the bundle into ``folder``, measure it there, and write its report."""
    other = second.attempt if second is not None else None
    manifest = write_bundle(
        folder,
        model=attempt.model,
        manifest=msgspec.structs.replace(_manifest(job, attempt, second), contexts=_contexts(job, folder, attempt)),
        fallback=other.model if other is not None else None,
        sample_inputs=attempt.evaluation.sample_inputs,
        reference_outputs=attempt.evaluation.reference_outputs,
        sqnr_db=attempt.evaluation.sqnr_db,
        box_agreement=attempt.evaluation.box_agreement,
        labels=job.source.labels,
    )
    places = places_for([job.target.verification, second.job.target.verification if second else None], job.places)
    report = _report(job, folder / "model.onnx", attempt, rejected, manifest.plan, places[0])
    report = _with_second(report, folder, attempt, second, places[1])
    write_report(folder, report, manifest)
    return report


def _contexts(job: Job, folder: Path, attempt: Attempt) -> tuple[Context, ...]:
    """The model compiled for the chips that the profile and the user name, in the bundle's ``contexts`` folder."""
    chips = job.chips
    if not chips:
        return ()
    job.progress.start(f"compiling for {', '.join(chips)}", None)
    with tempfile.TemporaryDirectory(prefix="edgeq-") as scratch:
        model = Path(scratch) / "model.onnx"
        save_model(attempt.model, model)
        made = compile_contexts(model, job.target, chips, folder / "contexts", attempt.evaluation.sample_inputs[0])
    job.progress.finish()
    return made


def _manifest(job: Job, attempt: Attempt, second: Second | None) -> Manifest:
    attempts = {job.target.name: (job, attempt)}
    if second is not None and second.attempt is not None:
        attempts[second.job.target.name] = (second.job, second.attempt)
    used = None if not any(one.scheme.calibrated for _, one in attempts.values()) else job.feeds[0]
    return Manifest(
        edgeq=__version__,
        name=job.source.name,
        target=job.target.name,
        precision=attempt.precision,
        provider=job.target.provider,
        verification=job.target.verification,
        fallback=_entry(second.job, second.attempt) if second is not None and second.attempt is not None else None,
        task=job.source.task,
        preprocess=job.preprocess,
        interface=job.wrapping.interface if job.wrapping is not None else Interface(),
        calibration=None
        if used is None
        else Calibration(
            description=used.description, fingerprint=used.fingerprint, count=len(used), licence=used.licence
        ),
        parity=job.source.parity,
        size=attempt.verdict.size,
        plan=tuple(plan_row(decision) for decision in attempt.plan),
        forecast=tuple(attempt.plan.nodes.values()),
        gates=job.target.gates,
        provenance=dict(job.source.provenance),
        licences=job.source.licences,
        versions=library_versions(),
        notes=tuple(dict.fromkeys(note for one in attempts.values() for note in _notes(*one))),
    )


def _entry(job: Job, attempt: Attempt) -> GraphEntry:
    return GraphEntry(
        model=FALLBACK,
        target=job.target.name,
        precision=attempt.precision,
        provider=job.target.provider,
        verification=job.target.verification,
        size=attempt.verdict.size,
        plan=tuple(plan_row(decision) for decision in attempt.plan),
        forecast=tuple(attempt.plan.nodes.values()),
        gates=job.target.gates,
        sqnr_db={name: round(value, 3) for name, value in attempt.evaluation.sqnr_db.items()},
        box_agreement=dict(attempt.evaluation.box_agreement),
    )


def _notes(job: Job, attempt: Attempt) -> tuple[str, ...]:
    """What was not verified here, and what the graph could not be given, in words."""
    opset = opset_note(attempt.shaped, job.target, attempt.scheme)
    return (f"{job.target.name}: {job.target.verification.note}.", *((f"{opset}.",) if opset else ()))


def _report(
    job: Job,
    path: Path,
    attempt: Attempt,
    rejected: Sequence[Verdict | Impossible],
    plan: tuple[PlanRow, ...],
    places: Sequence[Place],
) -> Report:
    """Measure the packaged model as it lies on disk."""
    ran = _run_on_provider(job, path, attempt, places)
    checks = tuple(one.check for one in ran)
    placement, provider, findings = _placement(job, path, attempt, ran)
    costs = _costs(job, path, attempt, provider)
    blame = layer_errors(
        attempt.shaped,
        attempt.model,
        attempt.plan.counterparts(attempt.shaped, attempt.model),
        attempt.evaluation.sample_inputs,
        progress=job.progress,
    )
    return Report(
        edgeq=__version__,
        name=job.source.name,
        target=job.target.name,
        precision=attempt.precision,
        task=job.source.task,
        machine=describe_machine(),
        parity=job.source.parity,
        metrics=attempt.evaluation.metrics,
        primary=attempt.evaluation.primary,
        drop=attempt.evaluation.drop,
        latency=costs.latency,
        node_times=costs.node_times,
        float_node_times=costs.float_node_times,
        memory=costs.memory,
        float_memory=costs.float_memory,
        size=attempt.verdict.size,
        placement=placement.nodes,
        agreement=agreement(placement.nodes),
        blame=blame,
        plan=plan,
        contract=attempt.verdict.contract,
        front=attempt.front,
        trials=attempt.plan.trials,
        checks=checks,
        findings=(
            *check_findings(checks),
            *placement.findings,
            *findings,
            *wrapping_findings(job, attempt.plan),
            *speed_findings(costs.latency),
            *choice_findings(attempt, rejected),
            *data_findings(job, attempt),
        ),
        notes=_notes(job, attempt),
    )


def _with_second(
    report: Report, folder: Path, first: Attempt, second: Second | None, places: Sequence[Place]
) -> Report:
    """The report with the figures of the fallback."""
    if second is None:
        return report
    job, attempt = second.job, second.attempt
    if attempt is None:
        return msgspec.structs.replace(report, findings=(*report.findings, *second.findings))
    ran = _run_on_provider(job, folder / FALLBACK, attempt, places)
    checks = tuple(one.check for one in ran)
    placement, _, findings = _placement(job, folder / FALLBACK, attempt, ran)
    found = GraphReport(
        target=job.target.name,
        precision=attempt.precision,
        provider=job.target.provider.name,
        metrics=attempt.evaluation.metrics,
        primary=attempt.evaluation.primary,
        drop=attempt.evaluation.drop,
        size=attempt.verdict.size,
        kinds=dict(Counter(node.kind for node in placement.nodes)),
        checks=checks,
        findings=(
            *check_findings(checks),
            *placement.findings,
            *findings,
            *choice_findings(attempt, second.rejected),
            *second.findings,
        ),
        notes=_notes(job, attempt),
    )
    return msgspec.structs.replace(report, fallback=found, contract=joint_contract(first.verdict.contract, second))


@dataclass(frozen=True)
class _Costs:
    """What running the package takes beside the float model; what is missing was not measured."""

    latency: LatencyComparison | None = None
    node_times: tuple[NodeTime, ...] = ()
    float_node_times: tuple[NodeTime, ...] = ()
    memory: Memory | None = None
    float_memory: Memory | None = None


def _costs(job: Job, path: Path, attempt: Attempt, provider: Provider | None) -> _Costs:
    """Latency of both models and of their nodes, and the peak memory of the package and of the float model."""
    costs = _Costs()
    if not job.measure:
        return costs
    inputs = attempt.evaluation.sample_inputs[0]
    with tempfile.TemporaryDirectory(prefix="edgeq-") as folder:
        reference = Path(folder) / "float.onnx"
        save_model(job.reference, reference)
        job.progress.start("measuring latency and memory", None)
        if job.target.verification.latency_here:
            costs = replace(
                costs,
                latency=compare_latency(path, reference, inputs, provider=provider, timing=Timing(seconds=job.seconds)),
                node_times=profile_nodes(path, inputs, provider=provider),
                float_node_times=profile_nodes(reference, inputs),
            )
        # An emulator's memory says nothing of the chip's.
        if job.target.verification.accuracy == "provider":
            memory, float_memory = measure_memory(path, inputs, provider=provider), measure_memory(reference, inputs)
            costs = replace(costs, memory=memory, float_memory=float_memory)
        job.progress.finish()
    return costs


def _run_on_provider(job: Job, path: Path, attempt: Attempt, places: Sequence[Place]) -> list[Ran]:
    """What the provider itself makes of the package, where it or a stand-in is installed."""
    inputs, references = attempt.evaluation.sample_inputs, attempt.evaluation.reference_outputs
    samples = Samples(
        inputs,
        references,
        task=job.source.task,
        text=f"{len(inputs)} samples",
        judged_db=attempt.evaluation.sqnr_db,
        boxes=job.boxes,
    )
    target = job.target
    return run_everywhere(path, target.provider, target.verification, samples, places, progress=job.progress)


def _placement(
    job: Job, path: Path, attempt: Attempt, ran: Sequence[Ran]
) -> tuple[Placement, Provider | None, list[Finding]]:
    """Where each node runs: as the provider says, here or in its sandbox, or as planned where it is not to be had."""
    provider, expected = job.target.provider, attempt.plan.nodes
    gates = strict(job.target.gates, job.gates)
    absent = unavailable(provider)
    failed = next((one.check for one in ran if one.failed), None)
    found = placement_of(path, provider, ran, here=absent is None, expected=expected, gates=gates)
    if found is not None:
        return found, provider if absent is None and failed is None else None, []
    if absent is not None:
        why, remedy = absent.what, absent.remedy
    else:
        assert failed is not None, "a provider that is here and has not failed tells its placement"
        why, remedy = failed.text, failed.remedy
    text = f"{provider.name} is not available here, so the placement is what the profile promises: {why}"
    nodes = planned_placement(attempt.shaped, attempt.plan)
    planned = Placement(nodes, tuple(gate_findings(nodes, provider.name, expected, {}, gates)))
    warning = Finding(severity="warning", text=text, remedy=remedy)
    return planned, None, [warning, *unchecked(job.gates, nodes)]
