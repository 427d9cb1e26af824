"""What one precision is worth: accuracy on data that calibration has not seen, size, and the contract."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from edgeq.box_metrics import AGREEMENT
from edgeq.errors import NothingToQuantizeError
from edgeq.float16 import with_rounding
from edgeq.formats import NodeFormat
from edgeq.front import Front
from edgeq.graph import save_model
from edgeq.pipeline.job import Job
from edgeq.qtypes import QuantPlan, Scheme
from edgeq.report import Contract, Size
from edgeq.request import Limits, box_agreement, output_sqnr_db, shortfall
from edgeq.runtime import Optimization, unavailable
from edgeq.stages.run.accuracy import Evaluation, evaluate, evaluate_custom, evaluate_pairs, metric_drop
from edgeq.stages.run.latency import Timing, compare_latency
from edgeq.target import Provider

__all__ = ["SOUND_SQNR_DB", "Attempt", "Impossible", "Verdict", "arithmetic", "attempt", "evaluate_model"]

SOUND_SQNR_DB = 10.0
"""Below this a precision is not handed over without being asked for: a tenth of the signal is noise."""

SOUND_AGREEMENT = 50.0
"""The same of boxes, in percent: below this most of them are other ones."""


@dataclass(frozen=True)
class Verdict:
    """What one precision is worth; ``mixed`` counts the nodes that have another format.

    ``latency_ms`` is None where it was not measured, ``speedup`` is over the float model, by CPU time. ``effort``
    is the one that it was made with.
    """

    scheme: Scheme
    evaluation: Evaluation
    size: Size
    contract: Contract | None
    mixed: int = 0
    latency_ms: float | None = None
    speedup: float | None = None
    effort: int = 0

    @property
    def price(self) -> float:
        """Time as a part of the float model's, multiplied by size as a part of it: a hundredth of the one is worth a
        hundredth of the other. Without a measured time it is the size alone.
        """
        return self.size.quantized_bytes / self.size.float_bytes / (self.speedup or 1.0)

    @property
    def precision(self) -> str:
        """What to call it."""
        return f"{self.scheme.name} mixed" if self.mixed else self.scheme.name

    @property
    def met(self) -> bool:
        return self.contract is None or self.contract.met

    @property
    def acceptable(self) -> bool:
        """The contract is met; where it says nothing of accuracy, at least more of the signal than of noise is left."""
        clauses = self.contract.clauses if self.contract is not None else ()
        if not self.met or any(clause.option in ("--max-drop", "--min-sqnr") for clause in clauses):
            return self.met
        boxes = box_agreement(self.evaluation)
        if boxes is not None:
            return boxes >= SOUND_AGREEMENT
        sqnr_db = output_sqnr_db(self.evaluation)
        return sqnr_db is None or sqnr_db >= SOUND_SQNR_DB

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Less is better: acceptable ones first, then by how far off the contract, then by what is lost."""
        return not self.acceptable, shortfall(self.contract), self.evaluation.drop

    @property
    def cost(self) -> str:
        """Size, and time where that was measured, in words."""
        part = "" if self.speedup is None else f" in {1 / self.speedup:.2f} of the float model's time"
        return f"{self.size.quantized_bytes / 1e6:.2f} MB{part}"

    @property
    def lost(self) -> str:
        """In words, for a precision that was not taken."""
        sqnr_db = output_sqnr_db(self.evaluation)
        if self.evaluation.primary == AGREEMENT:
            return f"its {AGREEMENT} is {100 - self.evaluation.drop:.4g} %"
        text = f"it loses {self.evaluation.drop:.4g} points of {self.evaluation.primary}"
        return text if sqnr_db is None else f"{text}, with an SQNR of {sqnr_db:.1f} dB"


@dataclass(frozen=True)
class Impossible:
    """A precision that leaves this model as it is, and why; ``error`` where that was found by trying."""

    scheme: Scheme
    lost: str
    error: NothingToQuantizeError | None = None

    @property
    def precision(self) -> str:
        return self.scheme.name


@dataclass(frozen=True)
class Attempt:
    """One precision carried out: its models as they are packaged, and what they are worth.

    ``inner`` is what ``Job.quantize`` returned, without what is embedded around it.
    """

    verdict: Verdict
    shaped: ir.Model
    plan: QuantPlan
    model: ir.Model
    inner: tuple[ir.Model, QuantPlan, ir.Model]
    front: Front | None = None

    @property
    def scheme(self) -> Scheme:
        return self.verdict.scheme

    @property
    def precision(self) -> str:
        return self.verdict.precision

    def with_front(self, front: Front) -> Attempt:
        """The same, with the choices that it was taken from."""
        return replace(self, front=front)

    @property
    def evaluation(self) -> Evaluation:
        return self.verdict.evaluation


def attempt(job: Job, scheme: Scheme, limits: Limits, formats: Mapping[str, NodeFormat] | None = None) -> Attempt:
    """Carry out one precision, with other ``formats`` for some nodes, and judge it."""
    inner = job.quantize(scheme, formats)
    shaped, chosen, model = job.package(*inner)
    with tempfile.TemporaryDirectory(prefix="edgeq-") as folder:
        file = Path(folder) / "model.onnx"
        save_model(model, file)
        written = sum(part.stat().st_size for part in Path(folder).iterdir())
        size = Size(quantized_bytes=written, float_bytes=job.float_bytes)
        evaluation = evaluate_model(job, _as_computed(job, model, file))
        latency_ms, speedup = _speed(job, scheme, limits, file, evaluation)
    contract = limits.judge(evaluation, size, latency_ms)
    verdict = Verdict(scheme, evaluation, size, contract, len(formats or {}), latency_ms, speedup, job.effort)
    return Attempt(verdict, shaped, chosen, model, inner)


def _speed(
    job: Job, scheme: Scheme, limits: Limits, file: Path, evaluation: Evaluation
) -> tuple[float | None, float | None]:
    """Median latency in ms and the speed-up over the float model, where this machine tells of the target."""
    asked = limits.max_latency_ms is not None
    choice = job.precision is None and (limits.contract or scheme.static_bits is not None)
    if not job.measure or not job.target.verification.latency_here or not (asked or choice):
        return None, None
    timing = Timing(seconds=job.seconds) if asked else Timing(seconds=min(job.seconds, 0.5), min_runs=5)
    inputs, provider = evaluation.sample_inputs[0], job.target.provider
    found = compare_latency(file, job.reference, inputs, provider=provider, timing=timing)
    return found.quantized.p50_ms, found.cpu_speedup


def _as_computed(job: Job, model: ir.Model, file: Path) -> Path:
    """The file to judge: where floats are float16 and other kernels judge, one that rounds as float16 does."""
    if job.target.floats.type == "float32" or arithmetic(job)[0] is not None:
        return file
    rounding = file.with_name("rounding.onnx")
    save_model(with_rounding(model), rounding)
    return rounding


def evaluate_model(job: Job, model: Path) -> Evaluation:
    """Accuracy on data that calibration has not seen, in the arithmetic that the target has.

    Where this machine's kernels are not the target's, it is the specification's: the graph without any
    fusion. ONNX Runtime's optimized kernels for the CPU compute 16-bit and blocked forms in ways of their
    own, which say nothing of an NPU.
    """
    reference, held_out = job.answers, job.held_out
    provider, optimization, how = arithmetic(job)
    evaluation = None
    if job.data.pairs is not None:
        queries = job.feed(job.data.pairs, text_field="query")
        documents = job.feed(job.data.pairs, text_field="document")
        source = f"{len(queries)} pairs of {Path(job.data.pairs).name}{how}"
        evaluation = evaluate_pairs(
            reference,
            model,
            queries,
            documents,
            source=source,
            provider=provider,
            optimization=optimization,
            progress=job.progress,
        )
    if evaluation is None or held_out is not None:
        samples = held_out if held_out is not None else [job.example]
        text = held_out.description if held_out is not None else "example inputs, which are not real data"
        general = evaluate(
            reference,
            model,
            samples,
            task=job.source.task,
            source=f"{text}{how}",
            provider=provider,
            optimization=optimization,
            labels=job.judged.classes,
            boxes=job.boxes,
            truths=job.judged.boxes,
            progress=job.progress,
        )
        evaluation = (
            general if evaluation is None else replace(evaluation, metrics=(*evaluation.metrics, *general.metrics))
        )
    if job.data.metric is not None:
        own = evaluate_custom(reference, model, job.data.metric, provider=provider, optimization=optimization)
        evaluation = replace(evaluation, metrics=(own, *evaluation.metrics), primary=own.name, drop=metric_drop(own))
    return evaluation


def arithmetic(job: Job) -> tuple[Provider | None, Optimization, str]:
    """With which kernels accuracy is measured: the provider's own if they run here, else the specification's.

    Returns:
        The provider (None: the CPU), the optimization, and what to say behind the name of the data.
    """
    if job.target.verification.accuracy == "provider" and unavailable(job.target.provider) is None:
        return job.target.provider, "all", ""
    return None, "none", ", by the specification's arithmetic"
