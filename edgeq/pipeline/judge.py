"""What one precision is worth: accuracy on data that calibration has not seen, size, and the contract."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from edgeq.graph import saved_bytes
from edgeq.pipeline.job import Job
from edgeq.qtypes import QuantPlan, Scheme
from edgeq.report import Contract, Size
from edgeq.request import Limits, output_sqnr_db
from edgeq.runtime import Optimization
from edgeq.stages.run.accuracy import Evaluation, evaluate, evaluate_custom, evaluate_pairs, metric_drop
from edgeq.stages.run.labels import load_labels

__all__ = ["SOUND_SQNR_DB", "Attempt", "attempt"]

SOUND_SQNR_DB = 10.0
"""Below this a precision is not handed over without being asked for: a tenth of the signal is noise."""


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


def attempt(job: Job, scheme: Scheme, limits: Limits) -> Attempt:
    """Carry out one precision and judge it."""
    shaped, chosen, model = job.quantize(scheme)
    size = Size(quantized_bytes=saved_bytes(model), float_bytes=job.float_bytes)
    evaluation = evaluate_model(job, model)
    return Attempt(scheme, shaped, chosen, model, evaluation, size, limits.judge(evaluation, size))


def evaluate_model(job: Job, model: ir.Model) -> Evaluation:
    """Accuracy on data that calibration has not seen, in the arithmetic that the target has."""
    reference, held_out = job.prepared.model, job.feeds[1]
    optimization: Optimization = "all" if job.target.verification.accuracy == "provider" else "none"
    evaluation = None
    if job.data.pairs is not None:
        queries = job.feed(job.data.pairs, text_field="query")
        documents = job.feed(job.data.pairs, text_field="document")
        source = f"{len(queries)} pairs of {Path(job.data.pairs).name}"
        evaluation = evaluate_pairs(
            reference, model, queries, documents, source=source, optimization=optimization, progress=job.progress
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
            source=text,
            optimization=optimization,
            labels=judged,
            progress=job.progress,
        )
        evaluation = (
            general if evaluation is None else replace(evaluation, metrics=(*evaluation.metrics, *general.metrics))
        )
    if job.data.metric is not None:
        own = evaluate_custom(reference, model, job.data.metric, optimization=optimization)
        evaluation = replace(evaluation, metrics=(own, *evaluation.metrics), primary=own.name, drop=metric_drop(own))
    return evaluation
