"""Two models against each other on devices: several processes, half of which load them in the other order."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from edgeq import __version__
from edgeq.compare_report import ComparedDevice, CompareReport
from edgeq.comparison import Difference, Measure, Session, compare_sessions
from edgeq.device_latency import deciding_measure, summarize_runs
from edgeq.device_report import DeviceInfo
from edgeq.devices import Arrays, Device, Entry, Job, Outcome
from edgeq.devices.protocol import ModelRun
from edgeq.errors import EdgeqError, ValidationError
from edgeq.metrics import top_k_agreement
from edgeq.output import atomic_file
from edgeq.pipeline.contenders import Contender, Fed, describe, feed, open_contender
from edgeq.progress import Progress, Silent
from edgeq.report import Metric
from edgeq.stages.package import render_compare_html
from edgeq.stages.run.closeness import closeness_metrics, compare_outputs
from edgeq.stages.run.node_timing import named_after

__all__ = ["Effort", "compare", "compare_on", "write_comparison"]

_A, _B = "A", "B"


@dataclass(frozen=True)
class Effort:
    """How much is measured: ``sessions`` processes, in each of which both models run for ``seconds``.

    ``by`` is the measure that decides, None for the one that is disturbed least.
    """

    sessions: int = 8
    seconds: float = 1.0
    threads: int = 1
    cores: str = "all"
    min_difference: float = 0.02
    by: Measure | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    timeout_s: float = 600.0


def compare(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    devices: Sequence[Device],
    effort: Effort | None = None,
    *,
    trust_provider: bool = False,
    progress: Progress | None = None,
) -> CompareReport:
    """Run two bundles or ``.onnx`` files in turn on each device, and say whether B is faster or slower than A.

    A device that fails is part of the report, with its error.

    Raises:
        ConfigError: not a bundle or a model, or their inputs differ.
        ModelError: an ``.onnx`` file does not load.
        ValidationError: a bundle was changed, or its provider is not to be trusted.
    """
    effort = effort or Effort()
    with tempfile.TemporaryDirectory(prefix="edgeq-") as folder:
        ours, theirs = (
            open_contender(path, Path(folder) / name, trust_provider=trust_provider)
            for name, path in ((_A, a), (_B, b))
        )
        fed = feed(ours, theirs, effort.sizes)
        return CompareReport(
            edgeq=__version__,
            a=describe(ours),
            b=describe(theirs),
            results=tuple(compare_on(device, ours, theirs, fed, effort, progress or Silent()) for device in devices),
        )


def write_comparison(folder: Path, report: CompareReport) -> None:
    """Write ``compare.json`` and ``compare.html`` into ``folder``, which is made if it is missing."""
    with atomic_file(folder / "compare.json") as file:
        file.write_bytes(report.to_json())
    with atomic_file(folder / "compare.html") as file:
        file.write_text(render_compare_html(report), encoding="utf-8")


def compare_on(
    device: Device, a: Contender, b: Contender, fed: Fed, effort: Effort, progress: Progress
) -> ComparedDevice:
    """Both on one device, in turn; what fails there is in the result."""
    progress.start(f"comparing on {device.spelling}", effort.sessions)
    try:
        # Emulated times say nothing: one process gives the outputs.
        emulated = device.describe().emulated
        outcomes = []
        for number in range(1 if emulated else effort.sessions):
            outcomes.append(device.run(replace(_job(a, b, fed, effort, number), measure=not emulated)))
            progress.advance()
    except EdgeqError as error:
        return ComparedDevice(device=_info(device), error=error.what, remedy=error.remedy, exit_code=error.exit_code)
    finally:
        progress.finish()
    return _judged(outcomes, a, b, fed, effort)


def _job(a: Contender, b: Contender, fed: Fed, effort: Effort, number: int) -> Job:
    """One session. The outputs of all batches are wanted once, and so are the times of the nodes."""
    entries = [Entry(name, one.bundle, one.bundle.manifest.main) for name, one in ((_A, a), (_B, b))]
    first = number == 0
    return Job(
        entries=tuple(entries if _a_first(number) else reversed(entries)),
        feeds=tuple(fed.inputs if first else fed.inputs[:1]),
        threads=effort.threads,
        cores=effort.cores,
        seconds=effort.seconds,
        profile=first,
        timeout_s=effort.timeout_s,
    )


def _a_first(number: int) -> bool:
    return number % 2 == 0


def _info(device: Device) -> DeviceInfo:
    try:
        return device.describe()
    except EdgeqError:
        return DeviceInfo(spelling=device.spelling, kind=device.spelling.partition(":")[0])  # type: ignore[arg-type]


def _judged(outcomes: Sequence[Outcome], a: Contender, b: Contender, fed: Fed, effort: Effort) -> ComparedDevice:
    runs = [{run.name: run for run in outcome.runs} for outcome in outcomes]
    first, last = outcomes[0], outcomes[-1]
    differences = tuple(
        found for measure in ("wall", "cpu") if (found := _difference(outcomes, measure, effort)) is not None
    )
    decided_by: Measure | None = None
    why = "emulated: its times say nothing of the real device"
    if differences:
        decided_by, why = deciding_measure(
            [found.measure for found in differences],
            threads=first.threads,
            providers=[run.provider for run in first.runs],
            asked=effort.by,
        )
    references, notes = fed.references, list(dict.fromkeys(note for outcome in outcomes for note in outcome.notes))
    if references is None:
        notes.append(f"accuracy is not compared: {_without_references(a, b)}")
    answers = [runs[0][name].outputs for name in (_A, _B)]
    metrics = [_metrics(references, answer, fed) if references else () for answer in answers]
    return ComparedDevice(
        device=first.info,
        runtime=first.runtime,
        threads=first.threads,
        core_mask=first.core_mask,
        a=summarize_runs([run[_A] for run in runs], emulated=first.info.emulated),
        b=summarize_runs([run[_B] for run in runs], emulated=first.info.emulated),
        differences=differences,
        decided_by=decided_by,
        why=why,
        metrics_a=metrics[0],
        metrics_b=metrics[1],
        agreement=_metrics(answers[0], answers[1], fed),
        nodes_a=named_after(runs[0][_A].nodes, a.bundle.model),
        nodes_b=named_after(runs[0][_B].nodes, b.bundle.model),
        before=first.before,
        after=last.after,
        notes=tuple(notes),
    )


def _difference(outcomes: Sequence[Outcome], measure: Measure, effort: Effort) -> Difference | None:
    sessions = []
    for number, outcome in enumerate(outcomes):
        runs = {run.name: run for run in outcome.runs}
        times = [_times(runs[name], measure) for name in (_A, _B)]
        if not all(times):
            return None
        sessions.append(Session(times[0], times[1], a_first=_a_first(number)))
    return compare_sessions(sessions, measure=measure, min_difference=effort.min_difference)


def _times(run: ModelRun, measure: Measure) -> tuple[float, ...]:
    return run.wall_ms if measure == "wall" else run.cpu_ms


def _without_references(a: Contender, b: Contender) -> str:
    if a.bundle.manifest.samples is None and b.bundle.manifest.samples is None:
        return "neither model brings samples with the float model's answers"
    return "the bundles hold different samples"


def _metrics(references: Sequence[Arrays], answers: Sequence[Arrays], fed: Fed) -> tuple[Metric, ...]:
    """How close ``answers`` come to ``references``; empty where their outputs are not alike."""
    if not answers:
        return ()
    shared = [{name: array for name, array in batch.items() if name in answers[0]} for batch in references]
    if not shared[0]:
        return ()
    try:
        found = closeness_metrics(compare_outputs(fed.inputs, shared, answers, fed.boxes), source=fed.text)
    except ValidationError:
        return ()
    logits = _logits(shared, fed.task)
    if logits is None:
        return tuple(found)
    reference, answer = (np.concatenate([batch[logits] for batch in side]) for side in (shared, answers))
    value = round(100 * top_k_agreement(reference, answer), 3)
    top = Metric(name="top-1 agreement", value=value, unit="%", samples=len(reference), source=fed.text)
    return (top, *found)


def _logits(outputs: Sequence[Arrays], task: str | None) -> str | None:
    if not (task or "").endswith("classification"):
        return None
    return next((name for name, array in outputs[0].items() if array.ndim == 2 and array.shape[1] > 1), None)
