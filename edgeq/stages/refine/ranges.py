"""Candidates for the ranges of activations, judged by what they do to the outputs of their block.

A search of each scale by coordinate descent, as AdaRound's and BRECQ's authors do by gradient (Li et al. 2021,
arXiv 2102.05426, section 4.2 learns them): the range that is best for a tensor alone is not the one that is best
for what is computed of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import onnx_ir as ir

from edgeq.affine import range_to_qparams
from edgeq.blocks import restrict_plan
from edgeq.graph import constant_array
from edgeq.qtypes import QParams, QuantPlan
from edgeq.stages.refine.borders import Borders
from edgeq.stages.refine.runs import Runner, in_order
from edgeq.target import TargetProfile

__all__ = ["extrema", "range_candidates", "searched"]

_MULTIPLES = (0.7, 0.8, 0.9, 0.95, 1.05, 1.1)


def searched(plan: QuantPlan, part: ir.Model, target: TargetProfile, settled: set[str]) -> list[str]:
    """The tensors of a block whose ranges are open, one for all that share a scale, in the order of the plan.

    Not those that a block before has settled, whose scale is a constant's, or whose range their producer fixes.
    """
    values = {str(value.name): value for node in part.graph for value in node.outputs}
    owners = {d.tensor for d in plan if d.role == "activation" and d.qparams is not None}
    found: dict[str, None] = {}
    for decision in restrict_plan(plan, part):
        if decision.role != "activation" or decision.qparams is None:
            continue
        owner = decision.shares or decision.tensor
        producer = values[owner].producer() if owner in values else None
        fixed = producer is not None and target.fixed_range(producer.op_type) is not None
        if owner in owners and owner not in settled and not fixed:
            found[owner] = None
    return list(found)


def range_candidates(
    qparams: QParams, seen: tuple[float, float] | None, producer: ir.Node | None, target: TargetProfile
) -> list[QParams]:
    """Multiples of the range as it is, and all that was ``seen``; each once, and none that changes the function.

    Where the ends of the integers do the work of a Relu or Clip, they must not reach beyond it.
    """
    low, high = qparams.real_range
    ranges = [(low * factor, high * factor) for factor in _MULTIPLES]
    if seen is not None:
        ranges.append(seen)
    found: dict[tuple[bytes, bytes], QParams] = {}
    held = (qparams.scale.tobytes(), qparams.zero_point.tobytes())
    for least, most in ranges:
        candidate = range_to_qparams(least, most, qparams.spec)
        key = (candidate.scale.tobytes(), candidate.zero_point.tobytes())
        reached = candidate.real_range
        if key == held or reached[1] - reached[0] < target.activations.min_range:
            continue
        if not _within_bounds(qparams, candidate, producer):
            continue
        found[key] = candidate
    return list(found.values())


def _within_bounds(held: QParams, candidate: QParams, producer: ir.Node | None) -> bool:
    """Whether a Clip or Relu stays as superfluous behind ``candidate`` as it is behind ``held``."""
    if producer is None or producer.op_type not in ("Clip", "Relu"):
        return True
    least: float | None = 0.0
    most: float | None = None
    if producer.op_type == "Clip":
        bounds = [constant_array(value) for value in (*producer.inputs[1:], None, None)[:2]]
        least, most = (None if bound is None else float(bound) for bound in bounds)
    (low, high), (new_low, new_high) = held.real_range, candidate.real_range
    if least is not None and _reaches(low, least) and not _reaches(new_low, least):
        return False
    return not (most is not None and _reaches(-high, -most) and not _reaches(-new_high, -most))


def _reaches(end: float, bound: float) -> bool:
    """Whether ``end`` is at or above ``bound``, but for the last bits of float32."""
    return end >= bound - 1e-6 * abs(bound)


def extrema(
    part: ir.Model, tensors: Sequence[str], inputs: Sequence[str], borders: Borders, samples: Sequence[int]
) -> dict[str, tuple[float, float]]:
    """The least and the largest value of each float tensor of the block, over the samples; zero is always within."""
    graph = part.clone()
    values = {str(value.name): value for node in graph.graph for value in node.outputs}
    computed = [name for name in tensors if name in values]
    graph.graph.outputs.clear()
    graph.graph.outputs.extend(values[name] for name in computed)
    found: dict[str, tuple[float, float]] = {}
    with ExitStack() as stack:
        runner = Runner(graph, stack) if computed else None

        def ends(sample: int) -> dict[str, tuple[float, float]]:
            arrays = borders.get("float", inputs, sample)
            if runner is not None:
                arrays.update(zip(runner.outputs, runner.run(arrays), strict=True))
            there = {name: borders.counted(sample, arrays[name]) for name in tensors if name in arrays}
            return {name: (float(a.min(initial=0)), float(a.max(initial=0))) for name, a in there.items()}

        for seen in in_order(ends, samples):
            for name, (low, high) in seen.items():
                least, most = found.get(name, (0.0, 0.0))
                found[name] = (min(least, low), max(most, high))
    return {name: both for name, both in found.items() if np.isfinite(both).all()}
