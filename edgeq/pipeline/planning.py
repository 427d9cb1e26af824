"""Every decision about a model, as far as the job's effort goes: from statistics, then by measuring block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import onnx_ir as ir

from edgeq.graph import check_float
from edgeq.padding import counted, mask_of
from edgeq.pipeline.equalizing import equalize_model
from edgeq.qtypes import NodeForecast, NodeFormat, QuantPlan, Scheme, TensorStats
from edgeq.runtime import open_session, session_options
from edgeq.stages.calibrate.peaks import observe_peaks
from edgeq.stages.choose import (
    Layout,
    UnequalJoin,
    choose_plan,
    find_islands,
    find_unequal_joins,
    forecast_floats,
    integer_joins,
    joined_parts,
)
from edgeq.stages.equalize import smooth
from edgeq.stages.insert import insert_qdq
from edgeq.stages.refine import refine

if TYPE_CHECKING:
    from edgeq.pipeline.job import Job

__all__ = ["plan_model", "runnable"]

_MOST_SAMPLES = 128
_MOST_BYTES = 1 << 29
"""What the samples for measuring may take in memory; fewer are used where one is large."""

_CHECK = 4
"""Every fourth sample is a check sample, which nothing is fitted to."""

_WIDER = {ir.DataType.INT2: ir.DataType.INT4, ir.DataType.UINT2: ir.DataType.UINT4}

Planned = tuple[ir.Model, QuantPlan]
Formats = Mapping[str, NodeFormat]
Sample = Mapping[str, np.ndarray]


def plan_model(job: Job, scheme: Scheme, formats: Formats | None) -> Planned:
    """See ``Job.plan``.

    What an effort adds is taken only if it brings the outputs on check samples closer to the float model's.
    """
    check_float(job.source.model)
    _ = job.wrapping  # what cannot be embedded is said before the data is read
    shaped = job.shaped(scheme)
    layout = job.layout(shaped, scheme, formats)
    joins = _unequal_joins(job, shaped, layout)
    if joins:
        formats = {**{join.node: join.format for join in joins}, **(formats or {})}
        layout = job.layout(shaped, scheme, formats)
    stats = job.statistics(shaped, layout)
    model, chosen = _planned(job, scheme, formats, shaped, layout, stats)
    return model, replace(chosen, notes=(*(join.describe() for join in joins), *chosen.notes))


def _planned(
    job: Job,
    scheme: Scheme,
    formats: Formats | None,
    shaped: ir.Model,
    layout: Layout,
    stats: Mapping[str, TensorStats],
) -> Planned:
    plain = _from_statistics(job, scheme, formats, shaped, layout, stats)
    if job.target.floats.type != "float32":
        return _with_islands(job, *plain)
    samples = _samples(job, scheme) if job.effort else []
    if not samples or not plain[1].quantized:
        return plain
    model, chosen = _equalized(job, scheme, formats, (shaped, layout), plain, samples) if job.smoothing else plain
    refined = refine(
        model,
        chosen,
        samples,
        target=job.target,
        insert=runnable,
        effort=job.effort,
        seed=job.data.seed or 0,
        cache=job.cache,
        progress=job.progress,
    )
    return model, refined.plan


def _unequal_joins(job: Job, shaped: ir.Model, layout: Layout) -> tuple[UnequalJoin, ...]:
    """Concat nodes that need more than the scheme's bits; those with a format of their own are decided already."""
    batches, joins = job.feeds[0], integer_joins(shaped, layout)
    if batches is None or not joins:
        return ()
    parts = {str(value.name) for join in joins for value in joined_parts(join)}
    return find_unequal_joins(joins, layout, observe_peaks(shaped, batches, wanted=parts), job.target)


def _from_statistics(
    job: Job,
    scheme: Scheme,
    formats: Formats | None,
    shaped: ir.Model,
    layout: Layout,
    stats: Mapping[str, TensorStats],
) -> Planned:
    """Ranges, closed-form bias correction, and smoothing where a formula predicts a gain: effort 0."""
    before: dict[str, NodeForecast] = {}
    notes: tuple[str, ...] = ()
    if job.smoothing and stats:
        smoothed, done = smooth(shaped, stats, integer=layout.integer, produced=layout.produced, scheme=scheme)
        if done:
            before = job.forecast(shaped, layout)
            shaped, layout = smoothed, job.layout(smoothed, scheme, formats)
            stats, notes = job.statistics(shaped, layout), tuple(step.describe() for step in done)
    return shaped, _remembering(replace(_chosen(job, shaped, layout, stats), notes=notes), before)


def _equalized(
    job: Job,
    scheme: Scheme,
    formats: Formats | None,
    start: tuple[ir.Model, Layout],
    plain: Planned,
    samples: Sequence[Sample],
) -> Planned:
    """``plain``, or the float model rewritten where that helps: what comes closer to the float outputs."""
    shaped, layout = start
    found = equalize_model(
        shaped,
        samples,
        find=lambda model: job.layout(model, scheme, formats),
        plan=lambda model, layout, stats: _chosen(job, model, layout, stats),
        progress=job.progress,
    )
    model, chosen = plain
    if found.notes:
        layout_there = job.layout(found.model, scheme, formats)
        there = _chosen(job, found.model, layout_there, job.statistics(found.model, layout_there))
        there = _remembering(replace(there, notes=found.notes), job.forecast(shaped, layout))
        checks = samples[_CHECK - 1 :: _CHECK]
        errors = _errors(shaped, [runnable(*plain), runnable(found.model, there)], checks)
        if errors[1] < errors[0]:
            model, chosen = found.model, there
    return model, replace(chosen, trials=found.trials)


def _chosen(job: Job, model: ir.Model, layout: Layout, stats: Mapping[str, TensorStats]) -> QuantPlan:
    return choose_plan(
        model, layout, stats, job.target, range_method=job.range_method, bias_correction=job.bias_correction
    )


def _samples(job: Job, scheme: Scheme) -> list[Sample]:
    """Calibration samples to measure on, evenly spread; none where there is no data."""
    feed = job.feeds[0]
    if feed is None:
        return []
    most = min(len(feed), _MOST_SAMPLES if scheme.weight_bits >= 8 else 2 * _MOST_SAMPLES)
    wanted = {position * len(feed) // most for position in range(most)}
    samples: list[Sample] = []
    held = 0
    for position, batch in enumerate(feed):
        if position in wanted and held < _MOST_BYTES:
            samples.append(dict(batch))
            held += sum(array.nbytes for array in batch.values())
    return samples


def runnable(model: ir.Model, plan: QuantPlan) -> ir.Model:
    """The plan carried out, to be run here: ONNX Runtime dequantizes no 2-bit integers, so they take 4 bits each."""
    quantized = insert_qdq(model, plan)
    for value in quantized.graph.initializers.values():
        if value.dtype in _WIDER and value.const_value is not None:
            wider = _WIDER[value.dtype]
            value.const_value = ir.tensor(value.const_value.numpy().astype(wider.numpy()), dtype=wider, name=value.name)
            value.dtype = wider
    return quantized


def _errors(reference: ir.Model, models: Sequence[ir.Model], samples: Sequence[Sample]) -> list[float]:
    """For each model the noise of its outputs relative to the signal, the mean over outputs, by the specification.

    What is computed for padding does not count.
    """
    plain = session_options(optimization="none")
    sums: list[dict[str, list[float]]] = [{} for _ in models]
    with ExitStack() as stack:
        run = [stack.enter_context(open_session(model, plain)) for model in (reference, *models)]
        names = [output.name for output in run[0].get_outputs()]
        for sample in samples:
            wanted, *found = (session.run(names, dict(sample)) for session in run)
            mask = mask_of(sample)
            for error, outputs in zip(sums, found, strict=True):
                for name, *pair in zip(names, wanted, outputs, strict=True):
                    if pair[0].dtype.kind == "f":
                        want, got = (counted(array, mask) for array in pair)
                        signal, noise = error.setdefault(name, [0.0, 0.0])
                        wide = want.astype(np.float64)
                        error[name] = [signal + np.square(wide).sum(), noise + np.square(wide - got).sum()]
    return [float(np.mean([noise / max(signal, 1e-30) for signal, noise in e.values()] or [0.0])) for e in sums]


def _with_islands(job: Job, shaped: ir.Model, chosen: QuantPlan) -> Planned:
    """The plan, and which nodes stay float32: from a few samples, of whatever data there is."""
    batches = job.feeds[0] if job.feeds[0] is not None else [job.source.example_inputs]
    islands = find_islands(shaped, observe_peaks(shaped, batches), job.target)
    return shaped, replace(chosen, islands=islands, nodes=forecast_floats(chosen.nodes, islands))


def _remembering(plan: QuantPlan, before: Mapping[str, NodeForecast]) -> QuantPlan:
    """A rewrite may put a Mul in front of a node, which then runs otherwise than the profile alone had promised."""
    nodes = {}
    for name, node in plan.nodes.items():
        promised = before.get(name)
        changed = promised is not None and node.foreseen is None and promised.kind != node.kind
        nodes[name] = msgspec.structs.replace(node, foreseen=promised.kind) if promised and changed else node
    return replace(plan, nodes=nodes)
