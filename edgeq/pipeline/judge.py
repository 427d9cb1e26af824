"""What one precision is worth: accuracy on data that calibration has not seen, size, and the contract."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from edgeq.errors import NothingToQuantizeError
from edgeq.float16 import with_rounding
from edgeq.formats import NodeFormat
from edgeq.front import Front
from edgeq.graph import constant_array, save_model
from edgeq.pipeline.job import Job
from edgeq.pipeline.mixing import can_mix, faster_mix, mix, pick
from edgeq.qtypes import QuantPlan, Scheme
from edgeq.report import Contract, Size
from edgeq.request import Limits, output_sqnr_db, shortfall
from edgeq.runtime import Optimization, unavailable
from edgeq.stages.run.accuracy import Evaluation, evaluate, evaluate_custom, evaluate_pairs, metric_drop
from edgeq.stages.run.labels import load_labels
from edgeq.stages.run.latency import Timing, compare_latency
from edgeq.target import Provider

__all__ = ["SOUND_SQNR_DB", "Attempt", "Impossible", "Verdict", "arithmetic", "attempt", "best_attempt"]

SOUND_SQNR_DB = 10.0
"""Below this a precision is not handed over without being asked for: a tenth of the signal is noise."""

_MOSTLY = 0.5
"""The least share of the weights that ranges found at run time must reach, or the precision is mostly float."""

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Verdict:
    """What one precision is worth; ``mixed`` counts the nodes that have another format.

    ``latency_ms`` is None where it was not measured, ``speedup`` is over the float model, by CPU time.
    """

    scheme: Scheme
    evaluation: Evaluation
    size: Size
    contract: Contract | None
    mixed: int = 0
    latency_ms: float | None = None
    speedup: float | None = None

    @property
    def precision(self) -> str:
        """What to call it."""
        return f"{self.scheme.name} mixed" if self.mixed else self.scheme.name

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


def best_attempt(job: Job, limits: Limits) -> tuple[Attempt, list[Verdict | Impossible]]:
    """The first precision of the job that is acceptable, or the best there is; and what the others were worth.

    Of the others only the verdicts are kept, not the models; they come in the order in which they were tried.
    Ranges found at run time are tried where most weights are in products that have them.
    Where a precision breaks the contract, mixes of it with floats or wider integers come before the next one;
    without a contract, before the first that leaves activations float. What is slower than the float model is mixed
    with floats where that is faster.

    Raises:
        ConfigError: a limit cannot be judged for this target, or there is no such point to pick.
        NothingToQuantizeError: that is so in every precision.
    """
    limits.check(job.target, measure=job.measure)
    if limits.pick is not None:
        return pick(job, limits, attempt), []
    best: Attempt | None = None
    rejected: list[Verdict | Impossible] = []
    nothing: NothingToQuantizeError | None = None
    to_mix: Attempt | None = None
    doubtful = {scheme: _mostly_float(job, scheme) for scheme in job.schemes if scheme.dynamic and not job.precision}
    rejected.extend(Impossible(scheme, why) for scheme, why in doubtful.items() if why)
    schemes = [scheme for scheme in job.schemes if not doubtful.get(scheme)]
    for number, scheme in enumerate(schemes):
        found: Attempt | None
        try:
            found = attempt(job, scheme, limits)
        except NothingToQuantizeError as error:
            rejected.append(Impossible(scheme, error.what))
            nothing = nothing or error
            continue
        if to_mix is None and can_mix(job, scheme):
            to_mix = found
        if best is None or found.verdict.rank < best.verdict.rank:
            best, found = found, best
        if found is not None:
            rejected.append(found.verdict)
            found = None  # its models go before the next ones are made
        later = schemes[number + 1 :]
        last = all(other.static_bits is None for other in later)
        ranged_next = bool(later) and later[0].dynamic  # it costs one attempt, a mix several
        if not best.verdict.acceptable and to_mix is not None and (limits.contract or last) and not ranged_next:
            best, to_mix = _mixed(job, limits, best, to_mix, rejected), None
        if best.verdict.acceptable:
            break
    if best is None:
        assert nothing is not None, "a profile has at least one precision"
        raise nothing
    slow = best.verdict.speedup is not None and best.verdict.speedup < 1
    if slow and not best.verdict.mixed and can_mix(job, best.scheme):
        best = faster_mix(job, best, limits, attempt)
    return best, sorted(rejected, key=lambda verdict: job.schemes.index(verdict.scheme))


def _mostly_float(job: Job, scheme: Scheme) -> str | None:
    """Why ranges found at run time would leave most of the model float; None where they would not."""
    shaped = job.shaped(scheme)
    ranged = job.layout(shaped, scheme).dynamic
    sizes: dict[bool, int] = {True: 0, False: 0}
    for node in shaped.graph:
        weight = constant_array(node.inputs[1]) if node.op_type in _PRODUCTS and len(node.inputs) > 1 else None
        if weight is not None:
            sizes[str(node.name) in ranged] += weight.size
    share = sizes[True] / max(sum(sizes.values()), 1)
    why = f"only {share:.0%} of the weights are in products whose activations can be ranged at run time"
    return why if share < _MOSTLY else None


def _mixed(job: Job, limits: Limits, best: Attempt, to_mix: Attempt, rejected: list[Verdict | Impossible]) -> Attempt:
    """The better of the best so far and a mix; the other one's verdict goes to ``rejected``."""
    found = mix(job, to_mix, limits, attempt)
    if not found.verdict.mixed:
        return found if best is to_mix else replace(best, front=found.front)
    worse, better = sorted((best, found), key=lambda one: one.verdict.rank, reverse=True)
    rejected.append(worse.verdict)
    return better if better.front is not None else replace(better, front=found.front)


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
    verdict = Verdict(scheme, evaluation, size, contract, len(formats or {}), latency_ms, speedup)
    return Attempt(verdict, shaped, chosen, model, inner)


def _speed(
    job: Job, scheme: Scheme, limits: Limits, file: Path, evaluation: Evaluation
) -> tuple[float | None, float | None]:
    """Median latency in ms and the speed-up over the float model, where this machine tells of the target."""
    asked = limits.max_latency_ms is not None
    if not job.measure or not job.target.verification.latency_here or not (asked or can_mix(job, scheme)):
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
    reference, held_out = job.reference, job.held_out
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
