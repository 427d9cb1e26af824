"""What one precision is worth: accuracy on data that calibration has not seen, size, and the contract."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from edgeq.errors import NothingToQuantizeError
from edgeq.float16 import with_rounding
from edgeq.graph import save_model
from edgeq.pipeline.job import Job
from edgeq.qtypes import QuantPlan, Scheme
from edgeq.report import Contract, Size
from edgeq.request import Limits, output_sqnr_db, shortfall
from edgeq.runtime import Optimization, unavailable
from edgeq.stages.run.accuracy import Evaluation, evaluate, evaluate_custom, evaluate_pairs, metric_drop
from edgeq.stages.run.labels import load_labels
from edgeq.target import Provider

__all__ = ["SOUND_SQNR_DB", "Attempt", "Impossible", "Verdict", "arithmetic", "attempt", "best_attempt"]

SOUND_SQNR_DB = 10.0
"""Below this a precision is not handed over without being asked for: a tenth of the signal is noise."""


@dataclass(frozen=True)
class Verdict:
    """What one precision is worth."""

    scheme: Scheme
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

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Less is better: acceptable ones first, then by how far off the contract, then by what is lost."""
        return not self.acceptable, shortfall(self.contract), self.evaluation.drop

    @property
    def lost(self) -> str:
        """In words, for a precision that was not taken."""
        sqnr_db = output_sqnr_db(self.evaluation)
        text = f"it loses {self.evaluation.drop:.4g} points of {self.evaluation.primary}"
        return text if sqnr_db is None else f"{text}, with an SQNR of {sqnr_db:.1f} dB"


@dataclass(frozen=True)
class Impossible:
    """A precision that leaves this model as it is, and why."""

    scheme: Scheme
    lost: str


@dataclass(frozen=True)
class Attempt:
    """One precision carried out: its models, and what they are worth."""

    verdict: Verdict
    shaped: ir.Model
    plan: QuantPlan
    model: ir.Model

    @property
    def scheme(self) -> Scheme:
        return self.verdict.scheme

    @property
    def evaluation(self) -> Evaluation:
        return self.verdict.evaluation


def best_attempt(job: Job, limits: Limits) -> tuple[Attempt, list[Verdict | Impossible]]:
    """The first precision of the job that is acceptable, or the best there is; and what the others were worth.

    Of the others only the verdicts are kept, not the models; they come in the order in which they were tried.

    Raises:
        NothingToQuantizeError: that is so in every precision.
    """
    best: Attempt | None = None
    rejected: list[Verdict | Impossible] = []
    nothing: NothingToQuantizeError | None = None
    for scheme in job.schemes:
        found: Attempt | None
        try:
            found = attempt(job, scheme, limits)
        except NothingToQuantizeError as error:
            rejected.append(Impossible(scheme, error.what))
            nothing = nothing or error
            continue
        if best is None or found.verdict.rank < best.verdict.rank:
            best, found = found, best
        if found is not None:
            rejected.append(found.verdict)
            found = None  # its models go before the next ones are made
        if best.verdict.acceptable:
            break
    if best is None:
        assert nothing is not None, "a profile has at least one precision"
        raise nothing
    return best, sorted(rejected, key=lambda verdict: job.schemes.index(verdict.scheme))


def attempt(job: Job, scheme: Scheme, limits: Limits) -> Attempt:
    """Carry out one precision and judge it."""
    shaped, chosen, model = job.quantize(scheme)
    with tempfile.TemporaryDirectory(prefix="edgeq-") as folder:
        file = Path(folder) / "model.onnx"
        save_model(model, file)
        written = sum(part.stat().st_size for part in Path(folder).iterdir())
        size = Size(quantized_bytes=written, float_bytes=job.float_bytes)
        evaluation = evaluate_model(job, _as_computed(job, model, file))
    return Attempt(Verdict(scheme, evaluation, size, limits.judge(evaluation, size)), shaped, chosen, model)


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
    reference, held_out = job.prepared.model, job.feeds[1]
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
        judged = None
        if held_out is not None and job.data.labels is not None:
            judged = load_labels(job.data.labels, held_out.item_names)
        samples = held_out if held_out is not None else [job.source.example_inputs]
        text = held_out.description if held_out is not None else "example inputs, which are not real data"
        general = evaluate(
            reference,
            model,
            samples,
            task=job.source.task,
            source=f"{text}{how}",
            provider=provider,
            optimization=optimization,
            labels=judged,
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
