"""Candidates for one layer, with everything before it quantized: a corrected bias, and a weight rounded anew.

Sequential bias correction: ``b_c += E[y_float,c - y_quantized,c]`` (Nagel et al. 2019, arXiv 1906.04721, section
4.2: empirical bias correction, in topological order). Rounding in closed form is in ``rounding``; the bias then
takes what the rounded weight changes of the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.affine import fake_quantize
from edgeq.blocks import Block, extract, restrict_plan
from edgeq.graph import constant_array
from edgeq.qtypes import IntType, QuantPlan
from edgeq.revise import BiasHome, bias_home, weight_of, with_bias, with_weight
from edgeq.stages.refine.borders import Borders
from edgeq.stages.refine.judge import Insert
from edgeq.stages.refine.rounding import Moments, observe, refusal, round_layer
from edgeq.stages.refine.runs import Runner, in_order, open_runner
from edgeq.target import TargetProfile

__all__ = ["Candidate", "layer_candidates"]


@dataclass(frozen=True)
class Candidate:
    """A plan to be tried, and what it does."""

    method: str
    plan: QuantPlan


@dataclass(frozen=True)
class _Seen:
    """A layer on the fit samples: moments of its inputs, and by how much the means of its outputs are off."""

    moments: Moments | None
    shift: np.ndarray | None


def layer_candidates(
    model: ir.Model,
    plan: QuantPlan,
    block: Block,
    node: str,
    borders: Borders,
    samples: Sequence[int],
    *,
    target: TargetProfile,
    insert: Insert,
) -> list[Candidate]:
    """What to try for the layer ``node`` of ``block``, under a plan that is settled for all before it."""
    layer = next(n for n in model.graph if n.name == node)
    weight, home = weight_of(plan, model, node), bias_home(plan, model, node)
    if weight is None:
        return []
    stored = model.graph.initializers.get(weight.tensor)
    rounded = refusal(layer) is None and stored is not None and len(stored.uses()) == 1
    if not rounded and home is None:
        return []
    seen = _observe(model, plan, block, layer, home, borders, samples, insert, moments=rounded)
    found = []
    if home is not None and seen.shift is not None:
        corrected = (home.array.astype(np.float64) + seen.shift).astype(np.float32)
        found.append(
            Candidate("sequential bias correction", with_bias(plan, model, node, corrected, mode=target.bias.mode))
        )
    if seen.moments is not None:
        found.extend(_rounded(model, plan, layer, home, seen.moments, target))
    return found


def _rounded(
    model: ir.Model,
    plan: QuantPlan,
    layer: ir.Node,
    home: BiasHome | None,
    moments: Moments,
    target: TargetProfile,
) -> list[Candidate]:
    name = str(layer.name)
    weight = weight_of(plan, model, name)
    assert weight is not None
    assert weight.qparams is not None
    array = constant_array(layer.inputs[1])
    assert array is not None
    held = fake_quantize(plan.weights.get(weight.tensor, array), weight.qparams)
    eight = weight.qparams.spec.dtype == IntType(8, True) and not plan.scheme.weight_only
    # Where floats are float16, so are the scales of weights, and a searched one would not be.
    free = target.floats.type == "float32"
    found: list[Candidate] = []
    damping: float | None = None
    for method, scales in (("rounding", False), *((("rounding and scales", True),) if free else ())):
        if found and damping is None:
            break  # no rounding pays, whatever the scales
        result = round_layer(
            layer,
            array,
            weight.qparams,
            moments,
            scales=scales,
            bias=home is not None,
            held=held,
            pair_limit=target.weights.pair_limit if eight else None,
            damping=damping,
        )
        damping = result.damping
        changed = with_weight(plan, model, name, result.qparams, result.weight)
        if home is not None and result.shift is not None:
            floating = _float_bias(model, home)
            bias = (floating + result.shift).astype(np.float32)
            changed = with_bias(changed, model, name, bias, mode=target.bias.mode)
        found.append(Candidate(f"{method}, bias corrected" if home is not None else method, changed))
    return found


def _float_bias(model: ir.Model, home: BiasHome) -> np.ndarray:
    """The bias of the float model, ``[channels]``: zeros where there is none."""
    holder = next(n for n in model.graph if n.name == home.holder)
    if home.holder == home.tap or holder.op_type == "Add":
        array = constant_array(model.graph.initializers.get(home.tensor))
    else:
        array = constant_array(holder.inputs[2]) if len(holder.inputs) > 2 else None
    return np.zeros(home.array.shape) if array is None else array.ravel().astype(np.float64)


def _observe(
    model: ir.Model,
    plan: QuantPlan,
    block: Block,
    layer: ir.Node,
    home: BiasHome | None,
    borders: Borders,
    samples: Sequence[int],
    insert: Insert,
    *,
    moments: bool,
) -> _Seen:
    """Run the block up to the layer, float and quantized, on every sample."""
    assert layer.inputs[0] is not None
    data, end = str(layer.inputs[0].name), home.tap if home is not None else str(layer.outputs[0].name)
    part = extract(model, block.inputs, [end])
    stored = insert(part, restrict_plan(plan, part))
    # A layer that finds its range itself reads the tensor as it is; its integers are no numbers to fit.
    ranged = str(layer.name) in plan.dynamic
    data_q, end_q = data if ranged else _stands_for(stored, str(layer.name), data), _written(stored, home, end, plan)
    _output(part, (data, end))
    _output(stored, (data_q, end_q))
    gathered: Moments | None = None
    means: list[np.ndarray] = []
    with open_runner(part) as floating, open_runner(stored) as quantized:

        def both(sample: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
            f = _run(floating, borders.get("float", block.inputs, sample), data, end)
            q = _run(quantized, borders.get("quantized", block.inputs, sample), data_q, end_q)
            x_float, y_float, x_quantized, y_quantized = (borders.counted(sample, array) for array in (*f, *q))
            return x_float, y_float, x_quantized, y_quantized

        for x_float, y_float, x_quantized, y_quantized in in_order(both, samples):
            if moments:
                gathered = observe(layer, x_float, x_quantized, gathered)
            if home is not None:
                means.append(_mean_difference(y_float, y_quantized, home.axis))
    shift = None
    if home is not None:
        shift = np.mean(means, axis=0)
        if shift.shape != home.array.shape or not np.isfinite(shift).all():
            shift = None
    return _Seen(gathered, shift)


def _mean_difference(wanted: np.ndarray, found: np.ndarray, axis: int) -> np.ndarray:
    """float64 ``[channels]``: the mean over all other axes of what is missing."""
    difference = wanted.astype(np.float64) - found
    axis %= difference.ndim
    return np.asarray(difference.mean(axis=tuple(i for i in range(difference.ndim) if i != axis)))


def _stands_for(stored: ir.Model, node: str, data: str) -> str:
    """What the layer reads in the quantized graph."""
    for layer in stored.graph:
        if layer.name == node and layer.inputs[0] is not None:
            return str(layer.inputs[0].name)
    return data


def _written(stored: ir.Model, home: BiasHome | None, end: str, plan: QuantPlan) -> str:
    """What the layer writes in the quantized graph, before it is rounded."""
    for node in stored.graph:
        if home is not None and home.holder not in plan.dynamic and node.name == home.holder:
            return str(node.outputs[0].name)
    return end


def _output(model: ir.Model, names: Sequence[str]) -> None:
    """Let ``model`` put out these tensors alone, those that it computes."""
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    model.graph.outputs.clear()
    model.graph.outputs.extend(dict.fromkeys(values[name] for name in names if name in values))


def _run(runner: Runner, feeds: dict[str, np.ndarray], *names: str) -> tuple[np.ndarray, np.ndarray]:
    found = {**feeds, **dict(zip(runner.outputs, runner.run(feeds), strict=True))}
    first, second = names
    return found[first], found[second]
