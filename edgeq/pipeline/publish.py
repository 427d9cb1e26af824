"""From an attempt to a bundle on disk, measured as it lies there, and its report."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgeq import __version__
from edgeq.bundle import Calibration, Manifest
from edgeq.errors import ProviderError
from edgeq.graph import save_model
from edgeq.machine import describe_machine
from edgeq.pipeline.job import Job
from edgeq.pipeline.judge import Attempt
from edgeq.recipe import Preprocess
from edgeq.report import Finding, LatencyComparison, Metric, PlanRow, Report, plan_row
from edgeq.request import library_versions, output_sqnr_db, planned_placement
from edgeq.runtime import check_available
from edgeq.stages.package import write_bundle, write_report
from edgeq.stages.run.accuracy import evaluate
from edgeq.stages.run.blame import layer_errors
from edgeq.stages.run.latency import compare_latency
from edgeq.stages.run.memory import measure_memory
from edgeq.stages.run.placement import Placement, read_placement
from edgeq.stages.tune import opset_note
from edgeq.target import Provider

__all__ = ["publish"]


def publish(job: Job, folder: Path, attempt: Attempt, rejected: Sequence[Attempt] = ()) -> Report:
    """Write the bundle into ``folder``, measure it there, and write its report."""
    manifest = write_bundle(
        folder,
        model=attempt.model,
        manifest=_manifest(job, attempt),
        sample_inputs=attempt.evaluation.sample_inputs,
        reference_outputs=attempt.evaluation.reference_outputs,
        sqnr_db=attempt.evaluation.sqnr_db,
        labels=job.source.labels,
    )
    report = _report(job, folder / "model.onnx", attempt, rejected, manifest.plan)
    write_report(folder, report, manifest)
    return report


def _manifest(job: Job, attempt: Attempt) -> Manifest:
    used = job.feeds[0] if not attempt.scheme.weight_only else None
    return Manifest(
        edgeq=__version__,
        name=job.source.name,
        target=job.target.name,
        precision=attempt.scheme.name,
        provider=job.target.provider,
        task=job.source.task,
        preprocess=_preprocess(job),
        calibration=None
        if used is None
        else Calibration(
            description=used.description, fingerprint=used.fingerprint, count=len(used), licence=used.licence
        ),
        parity=job.source.parity,
        size=attempt.size,
        plan=tuple(plan_row(decision) for decision in attempt.plan),
        provenance=dict(job.source.provenance),
        licences=job.source.licences,
        versions=library_versions(),
        notes=_notes(job, attempt),
    )


def _preprocess(job: Job) -> Preprocess | None:
    """What the data went through, which a recipe may say better than the source; it is what the app must do, too."""
    fed = (feed.preprocess for feed in job.feeds if feed is not None)
    return next((preprocess for preprocess in fed if preprocess is not None), job.source.preprocess)


def _notes(job: Job, attempt: Attempt) -> tuple[str, ...]:
    """What was not verified here, and what the graph could not be given, in words."""
    opset = opset_note(attempt.shaped, job.target, attempt.scheme)
    return (f"{job.target.name}: {job.target.verification.note}.", *((f"{opset}.",) if opset else ()))


def _report(job: Job, path: Path, attempt: Attempt, rejected: Sequence[Attempt], plan: tuple[PlanRow, ...]) -> Report:
    """Measure the packaged model as it lies on disk."""
    inputs = attempt.evaluation.sample_inputs[0]
    placement, provider, findings = _placement(job, path, attempt)
    latency = memory = float_memory = None
    if job.measure:
        with tempfile.TemporaryDirectory(prefix="edgeq-") as folder:
            reference = Path(folder) / "float.onnx"
            save_model(job.prepared.model, reference)
            job.progress.start("measuring latency and memory", None)
            if job.target.verification.latency_here:
                latency = compare_latency(path, reference, inputs, provider=provider, seconds=job.seconds)
            # An emulator's memory says nothing of the chip's.
            if job.target.verification.accuracy == "provider":
                memory = measure_memory(path, inputs, provider=provider)
                float_memory = measure_memory(reference, inputs)
            job.progress.finish()
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
        precision=attempt.scheme.name,
        task=job.source.task,
        machine=describe_machine(),
        parity=job.source.parity,
        metrics=(*attempt.evaluation.metrics, *_provider_metrics(job, path, attempt, provider)),
        primary=attempt.evaluation.primary,
        drop=attempt.evaluation.drop,
        latency=latency,
        memory=memory,
        float_memory=float_memory,
        size=attempt.size,
        placement=placement.nodes,
        blame=blame,
        plan=plan,
        contract=attempt.contract,
        findings=(
            *placement.findings,
            *findings,
            *_speed_findings(latency),
            *_choice_findings(attempt, rejected),
            *_data_findings(job, attempt),
        ),
        notes=_notes(job, attempt),
    )


def _placement(job: Job, path: Path, attempt: Attempt) -> tuple[Placement, Provider | None, list[Finding]]:
    """Where each node runs: as the provider says, or as planned where it is not to be had."""
    provider = job.target.provider
    try:
        check_available(provider)
    except ProviderError as error:
        text = f"{provider.name} is not available here, so the placement is what the profile promises"
        finding = Finding(severity="warning", text=f"{text}: {error.what}", remedy=error.remedy)
        return Placement(planned_placement(attempt.shaped, attempt.plan), ()), None, [finding]
    return read_placement(path, provider, expected=attempt.plan.nodes), provider, []


def _provider_metrics(job: Job, path: Path, attempt: Attempt, provider: Provider | None) -> Sequence[Metric]:
    """Where accuracy was judged by the specification's arithmetic: how close the provider itself comes."""
    if job.target.verification.accuracy == "provider" or provider is None:
        return ()
    found = evaluate(
        job.prepared.model,
        path,
        attempt.evaluation.sample_inputs,
        task=None,
        source=f"{len(attempt.evaluation.sample_inputs)} samples on {provider.name}",
        provider=provider,
        progress=job.progress,
    )
    return [msgspec.structs.replace(m, name=f"{m.name} on {provider.name}") for m in found.metrics]


def _data_findings(job: Job, attempt: Attempt) -> list[Finding]:
    """What a careful engineer would say of the data."""
    findings = []
    if notes := attempt.plan.notes:
        text = f"{len(notes)} activations were smoothed before quantization, such as: {notes[0]}"
        findings.append(Finding(severity="info", text=text))
    used, held_out = job.feeds
    if used is not None and not attempt.scheme.weight_only and len(used.rows) < 32:
        text = f"only {len(used.rows)} calibration samples: ranges may miss what your data holds"
        findings.append(Finding(severity="info", text=text, remedy="give --calibration 100 or more of your own"))
    if held_out is not None and len(held_out.rows) < 32:
        text = f"accuracy was measured on only {len(held_out.rows)} samples: take its figures as rough"
        findings.append(Finding(severity="info", text=text, remedy="give --evaluation 100 or more of your own"))
    if held_out is None and job.data.pairs is None:
        text = "accuracy was measured on example inputs, which are not real data"
        findings.append(Finding(severity="warning", text=text, remedy="give --calibration or --evaluation data"))
    return findings


def _speed_findings(latency: LatencyComparison | None) -> list[Finding]:
    """A package that is slower than what it was made from is not what anybody wanted."""
    if latency is None or latency.cpu_speedup is None or latency.cpu_speedup >= 1:
        return []
    text = f"the package takes {1 / latency.cpu_speedup:.2f} times the float model's CPU time on this machine"
    remedy = "look at the placement for nodes that run in float; very small models gain nothing from 8 bits"
    return [Finding(severity="warning", text=text, remedy=remedy)]


def _choice_findings(attempt: Attempt, rejected: Sequence[Attempt]) -> list[Finding]:
    """Which precisions were tried and not taken, and whether the one that was taken is worth having."""
    findings = []
    for other in rejected:
        lost = f"{other.evaluation.drop:.4g} points of {other.evaluation.primary}"
        sqnr_db = output_sqnr_db(other.evaluation)
        text = f"{other.scheme.name} was tried and not taken: it loses {lost}"
        text += "" if sqnr_db is None else f", with an SQNR of {sqnr_db:.1f} dB"
        findings.append(Finding(severity="info", text=text))
    if attempt.contract is None and not attempt.acceptable:
        text = f"the outputs keep an SQNR of only {output_sqnr_db(attempt.evaluation):.1f} dB: do not ship this"
        remedy = "try another --precision, or give calibration data like what the model will see"
        findings.append(Finding(severity="error", text=text, remedy=remedy))
    return findings
