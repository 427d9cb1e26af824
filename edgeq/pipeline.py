"""The story on one page: export, prepare, calibrate, choose, insert, tune, judge, package, run.

Only this module imports stages; each stage knows only the modules at the package's root.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeq import __version__
from edgeq.bundle import Calibration, Manifest, read_bundle
from edgeq.errors import CalibrationError, ContractError, ProviderError
from edgeq.graph import TensorInfo, input_infos, save_model
from edgeq.job import (
    Data,
    Exported,
    Limits,
    broken_contract,
    library_versions,
    output_sqnr_db,
    parse_scheme,
    planned_placement,
)
from edgeq.machine import describe_machine
from edgeq.output import atomic_folder, check_free
from edgeq.progress import Progress, Silent
from edgeq.qtypes import QuantPlan, Scheme, TensorStats
from edgeq.recipe import Preprocess
from edgeq.report import Contract, Finding, Metric, Report, Size, plan_row
from edgeq.runtime import Optimization, check_available
from edgeq.source import Source
from edgeq.stages.calibrate.feeds import Feed, load_feed, split_feed
from edgeq.stages.calibrate.observe import calibrate
from edgeq.stages.choose import Layout, Smoothing, choose_plan, find_layout, smooth
from edgeq.stages.export import load_source
from edgeq.stages.insert import insert_qdq, verify_qdq
from edgeq.stages.package import write_bundle, write_report
from edgeq.stages.prep import Prepared, prepare
from edgeq.stages.run.accuracy import Evaluation, evaluate, evaluate_custom, evaluate_pairs, metric_drop
from edgeq.stages.run.blame import layer_errors
from edgeq.stages.run.labels import load_labels
from edgeq.stages.run.latency import compare_latency
from edgeq.stages.run.memory import measure_memory
from edgeq.stages.run.placement import Placement, read_placement
from edgeq.stages.run.validate import validate
from edgeq.stages.tune import finish, shape_float
from edgeq.target import Provider, TargetProfile, load_target

__all__ = ["SOUND_SQNR_DB", "Attempt", "Job", "export", "validate_bundle"]

SOUND_SQNR_DB = 10.0
"""Below this a precision is not handed over without being asked for: a tenth of the signal is noise."""


def export(job: Job, *, output: str | os.PathLike[str] | None, limits: Limits, overwrite: bool) -> Exported:
    """Try the job's precisions, cheapest first, until one meets the limits; write the best there is.

    Raises:
        ContractError: none met them; the best is left in ``<output>.not-met``.
        OutputError: ``output`` exists or cannot be written.
    """
    path = Path(output) if output is not None else Path(f"{job.source.name}-{job.target.name}")
    check_free(path, overwrite=overwrite)
    job.data.check()
    attempts: list[Attempt] = []
    for scheme in job.schemes:
        attempts.append(job.attempt(scheme, limits))
        if attempts[-1].acceptable:
            break
    best = min(attempts, key=lambda attempt: (not attempt.acceptable, not attempt.met, attempt.evaluation.drop))
    rejected = [attempt for attempt in attempts if attempt is not best]
    if not best.met:
        path, overwrite = path.with_name(f"{path.name}.not-met"), True
    with atomic_folder(path, overwrite=overwrite) as folder:
        report = job.write(folder, best, rejected)
    exported = Exported(read_bundle(path), report)
    if not best.met:
        raise ContractError(*broken_contract(report, path), exported)
    return exported


def validate_bundle(
    path: str | os.PathLike[str],
    *,
    reference: str | os.PathLike[str] | None,
    threads: int,
    tolerance_db: float,
    report_folder: str | os.PathLike[str] | None,
) -> Report:
    """Run a bundle on this machine; see ``edgeq.run``."""
    bundle = read_bundle(path)
    report = validate(bundle, reference=reference, threads=threads, tolerance_db=tolerance_db)
    if report_folder is not None:
        Path(report_folder).mkdir(parents=True, exist_ok=True)
        write_report(Path(report_folder), report, bundle.manifest)
    return report


@dataclass(frozen=True)
class Attempt:
    """One precision carried out and judged."""

    scheme: Scheme
    shaped: ir.Model
    plan: QuantPlan
    model: ir.Model
    evaluation: Evaluation
    size: Size
    contract: Contract | None

    @property
    def met(self) -> bool:
        return self.contract is None or self.contract.met

    @property
    def acceptable(self) -> bool:
        """The contract is met; where there is none, at least more of the signal than of noise is left."""
        if self.contract is not None:
            return self.contract.met
        sqnr_db = output_sqnr_db(self.evaluation)
        return sqnr_db is None or sqnr_db >= SOUND_SQNR_DB


@dataclass
class Job:
    """One source for one target: each stage runs once, when it is first needed.

    ``precision`` None tries the target's own precisions in order. ``fixed_dims`` fixes dynamic
    dimensions by name. ``cache`` is a folder where statistics are kept. ``measure`` False leaves
    out latency and memory.
    """

    origin: Any
    profile: str | os.PathLike[str]
    data: Data = field(default_factory=Data)
    precision: str | None = None
    range_method: str = "mse"
    bias_correction: bool = True
    smoothing: bool = True
    task: str | None = None
    example_inputs: Any = None
    fixed_dims: dict[str, int] = field(default_factory=dict)
    cache: Path | None = None
    measure: bool = True
    seconds: float = 3.0
    trust_remote_code: bool = False
    allow_pickle: bool = False
    progress: Progress = field(default_factory=Silent)

    # -- export and prep

    @cached_property
    def target(self) -> TargetProfile:
        return load_target(os.fspath(self.profile))

    @cached_property
    def schemes(self) -> tuple[Scheme, ...]:
        """What to try, in order: the user's precision, or the target's."""
        names = (self.precision,) if self.precision else self.target.precisions
        return tuple(parse_scheme(name, self.target) for name in names)

    @cached_property
    def source(self) -> Source:
        return load_source(
            self.origin,
            task=self.task,
            example_inputs=self.example_inputs,
            fixed_dims=self.fixed_dims,
            first_sample=self.first_sample if self.has_rereadable_data else None,
            trust_remote_code=self.trust_remote_code,
            allow_pickle=self.allow_pickle,
            progress=self.progress,
        )

    @cached_property
    def prepared(self) -> Prepared:
        return prepare(
            self.source.model,
            static=self.target.graph.shapes == "static",
            fixed_dims=self.fixed_dims,
            example_inputs=self.source.example_inputs,
            progress=self.progress,
        )

    # -- data

    @property
    def has_rereadable_data(self) -> bool:
        """Whether there is calibration data that does not end by being looked at, as a generator does."""
        return self.data.calibration is not None and not isinstance(self.data.calibration, Iterator)

    def first_sample(self, inputs: Sequence[TensorInfo], preprocess: Preprocess | None) -> dict[str, np.ndarray]:
        """One batch of the calibration data, as example inputs for a model that brings none."""
        fixed = inputs[0].shape[0] if inputs and inputs[0].shape else 1
        count = fixed if isinstance(fixed, int) else 1
        return next(
            iter(load_feed(self.data.calibration, inputs, preprocess=preprocess, count=count, seed=self.data.seed))
        )

    def feed(self, data: Any, *, text_field: str | None = None, limited: bool = False) -> Feed:
        """A feed for the prepared model; ``limited`` applies the user's count of calibration samples."""
        return load_feed(
            data,
            input_infos(self.prepared.model),
            preprocess=self.source.preprocess,
            count=self.data.count if limited else None,
            seed=self.data.seed,
            text_field=text_field,
        )

    @cached_property
    def feeds(self) -> tuple[Feed | None, Feed | None]:
        """Calibration and evaluation data, never the same samples; None where there is none."""
        given = self.data.calibration if self.data.calibration is not None else self.source.recipe
        everything = None if given is None else self.feed(given, limited=True)
        if self.data.evaluation is not None:
            return everything, self.feed(self.data.evaluation)
        if everything is None or self.data.pairs is not None:
            return everything, None
        return split_feed(everything)

    # -- calibrate and choose

    def shaped(self, scheme: Scheme) -> ir.Model:
        return shape_float(self.prepared.model, self.target, scheme)

    def layout(self, shaped: ir.Model, scheme: Scheme) -> Layout:
        return find_layout(shaped, self.target, scheme)

    def statistics(self, shaped: ir.Model, layout: Layout) -> dict[str, TensorStats]:
        if not layout.observed:
            return {}
        feed = self.feeds[0]
        if feed is None:
            raise CalibrationError(
                f"precision {layout.scheme.name} needs calibration data, and none was given",
                remedy="give --calibration a folder, file or recipe; weight-only precisions (w8, w4) need none",
            )
        axes = layout.channel_axes(shaped)
        return calibrate(shaped, feed, layout.observed, channel_axis=axes, cache=self.cache, progress=self.progress)

    def plan(self, scheme: Scheme) -> tuple[ir.Model, QuantPlan]:
        """The float graph in the target's form, and every decision about it."""
        shaped = self.shaped(scheme)
        layout = self.layout(shaped, scheme)
        stats = self.statistics(shaped, layout)
        done: tuple[Smoothing, ...] = ()
        if self.smoothing and stats:
            smoothed, done = smooth(shaped, layout, stats)
            if done:
                shaped, layout = smoothed, self.layout(smoothed, scheme)
                stats = self.statistics(shaped, layout)
        chosen = choose_plan(
            shaped,
            layout,
            stats,
            self.target,
            range_method=self.range_method,
            bias_correction=self.bias_correction,
        )
        return shaped, replace(chosen, notes=tuple(step.describe() for step in done))

    # -- insert, tune and judge

    def attempt(self, scheme: Scheme, limits: Limits) -> Attempt:
        """Carry out one precision and judge it."""
        shaped, chosen = self.plan(scheme)
        model = finish(insert_qdq(shaped, chosen), self.target, scheme)
        verify_qdq(model)
        with tempfile.TemporaryDirectory(prefix="edgeq-") as folder:
            size = Size(
                quantized_bytes=_saved_bytes(model, Path(folder) / "quantized"),
                float_bytes=_saved_bytes(self.prepared.model, Path(folder) / "float"),
            )
        evaluation = self.evaluate(model)
        contract = limits.judge(evaluation, size)
        return Attempt(scheme, shaped, chosen, model, evaluation, size, contract)

    def evaluate(self, model: ir.Model) -> Evaluation:
        """Accuracy on data that calibration has not seen, in the arithmetic that the target has."""
        reference, held_out = self.prepared.model, self.feeds[1]
        optimization: Optimization = "all" if self.target.verification.accuracy == "provider" else "none"
        evaluation = None
        if self.data.pairs is not None:
            queries = self.feed(self.data.pairs, text_field="query")
            documents = self.feed(self.data.pairs, text_field="document")
            source = f"{len(queries)} pairs of {Path(self.data.pairs).name}"
            evaluation = evaluate_pairs(
                reference, model, queries, documents, source=source, optimization=optimization, progress=self.progress
            )
        if evaluation is None or held_out is not None:
            judged = None
            if held_out is not None and self.data.labels is not None:
                judged = load_labels(self.data.labels, [held_out.sample_name(i) for i in range(len(held_out))])
            samples = held_out if held_out is not None else [self.source.example_inputs]
            text = held_out.description if held_out is not None else "example inputs, which are not real data"
            general = evaluate(
                reference,
                model,
                samples,
                task=self.source.task,
                source=text,
                optimization=optimization,
                labels=judged,
                progress=self.progress,
            )
            evaluation = (
                general if evaluation is None else replace(evaluation, metrics=(*evaluation.metrics, *general.metrics))
            )
        if self.data.metric is not None:
            own = evaluate_custom(reference, model, self.data.metric, optimization=optimization)
            evaluation = replace(
                evaluation, metrics=(own, *evaluation.metrics), primary=own.name, drop=metric_drop(own)
            )
        return evaluation

    # -- package and run

    def write(self, folder: Path, attempt: Attempt, rejected: Sequence[Attempt] = ()) -> Report:
        """Write the bundle into ``folder``, measure it there, and write its report."""
        manifest = write_bundle(
            folder,
            model=attempt.model,
            manifest=self.manifest(attempt),
            sample_inputs=attempt.evaluation.sample_inputs,
            reference_outputs=attempt.evaluation.reference_outputs,
            sqnr_db=attempt.evaluation.sqnr_db,
            labels=self.source.labels,
        )
        report = self.report(folder / "model.onnx", attempt, rejected)
        write_report(folder, report, manifest)
        return report

    def manifest(self, attempt: Attempt) -> Manifest:
        used = self.feeds[0] if not attempt.scheme.weight_only else None
        return Manifest(
            edgeq=__version__,
            name=self.source.name,
            target=self.target.name,
            precision=attempt.scheme.name,
            provider=self.target.provider,
            task=self.source.task,
            preprocess=self.source.preprocess,
            calibration=None
            if used is None
            else Calibration(
                description=used.description, fingerprint=used.fingerprint, count=len(used), licence=used.licence
            ),
            parity=self.source.parity,
            size=attempt.size,
            plan=tuple(plan_row(decision) for decision in attempt.plan),
            provenance=dict(self.source.provenance),
            licences=self.source.licences,
            versions=library_versions(),
            notes=self.notes,
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What was not verified here, in words, for the manifest and the report."""
        return (f"{self.target.name}: {self.target.verification.note}.",)

    def report(self, path: Path, attempt: Attempt, rejected: Sequence[Attempt]) -> Report:
        """Measure the packaged model as it lies on disk."""
        inputs = attempt.evaluation.sample_inputs[0]
        placement, provider, findings = self.placement(path, attempt)
        latency = memory = float_memory = None
        if self.measure:
            with tempfile.TemporaryDirectory(prefix="edgeq-") as folder:
                reference = Path(folder) / "float.onnx"
                save_model(self.prepared.model, reference)
                self.progress.start("measuring latency and memory", None)
                if self.target.verification.latency_here:
                    latency = compare_latency(path, reference, inputs, provider=provider, seconds=self.seconds)
                # An emulator's memory says nothing of the chip's.
                if self.target.verification.accuracy == "provider":
                    memory = measure_memory(path, inputs, provider=provider)
                    float_memory = measure_memory(reference, inputs)
                self.progress.finish()
        blame = layer_errors(
            attempt.shaped,
            attempt.model,
            attempt.plan.counterparts(attempt.shaped, attempt.model),
            attempt.evaluation.sample_inputs,
            progress=self.progress,
        )
        return Report(
            edgeq=__version__,
            name=self.source.name,
            target=self.target.name,
            precision=attempt.scheme.name,
            task=self.source.task,
            machine=describe_machine(),
            parity=self.source.parity,
            metrics=(*attempt.evaluation.metrics, *self.provider_metrics(path, attempt, provider)),
            primary=attempt.evaluation.primary,
            drop=attempt.evaluation.drop,
            latency=latency,
            memory=memory,
            float_memory=float_memory,
            size=attempt.size,
            placement=placement.nodes,
            blame=blame,
            plan=tuple(plan_row(decision) for decision in attempt.plan),
            contract=attempt.contract,
            findings=(
                *placement.findings,
                *findings,
                *_choice_findings(attempt, rejected),
                *self.data_findings(attempt),
            ),
            notes=self.notes,
        )

    def placement(self, path: Path, attempt: Attempt) -> tuple[Placement, Provider | None, list[Finding]]:
        """Where each node runs: as the provider says, or as planned where it is not to be had."""
        provider = self.target.provider
        try:
            check_available(provider)
        except ProviderError as error:
            text = f"{provider.name} is not available here, so the placement is what the profile promises"
            finding = Finding(severity="warning", text=f"{text}: {error.what}", remedy=error.remedy)
            return Placement(planned_placement(attempt.shaped, attempt.plan, provider), ()), None, [finding]
        return read_placement(path, provider, expected=attempt.plan.nodes), provider, []

    def provider_metrics(self, path: Path, attempt: Attempt, provider: Provider | None) -> Sequence[Metric]:
        """Where accuracy was judged by the specification's arithmetic: how close the provider itself comes."""
        if self.target.verification.accuracy == "provider" or provider is None:
            return ()
        found = evaluate(
            self.prepared.model,
            path,
            attempt.evaluation.sample_inputs,
            task=None,
            source=f"{len(attempt.evaluation.sample_inputs)} samples on {provider.name}",
            provider=provider,
            progress=self.progress,
        )
        return [_renamed(metric, f"{metric.name} on {provider.name}") for metric in found.metrics]

    def data_findings(self, attempt: Attempt) -> list[Finding]:
        """What a careful engineer would say of the data."""
        findings = []
        if notes := attempt.plan.notes:
            text = f"{len(notes)} activations were smoothed before quantization, such as: {notes[0]}"
            findings.append(Finding(severity="info", text=text))
        used, held_out = self.feeds
        if used is not None and not attempt.scheme.weight_only and len(used.rows) < 32:
            text = f"only {len(used.rows)} calibration samples: ranges may miss what your data holds"
            findings.append(Finding(severity="info", text=text, remedy="give --calibration 100 or more of your own"))
        if held_out is not None and len(held_out.rows) < 32:
            text = f"accuracy was measured on only {len(held_out.rows)} samples: take its figures as rough"
            findings.append(Finding(severity="info", text=text, remedy="give --evaluation 100 or more of your own"))
        if held_out is None and self.data.pairs is None:
            text = "accuracy was measured on example inputs, which are not real data"
            findings.append(Finding(severity="warning", text=text, remedy="give --calibration or --evaluation data"))
        return findings


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


def _saved_bytes(model: ir.Model, folder: Path) -> int:
    folder.mkdir()
    save_model(model, folder / "model.onnx")
    return sum(file.stat().st_size for file in folder.iterdir())


def _renamed(metric: Metric, name: str) -> Metric:
    import msgspec

    return msgspec.structs.replace(metric, name=name)
