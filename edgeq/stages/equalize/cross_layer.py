"""Cross-layer equalization: give the channels between two layers one range, and change nothing.

    y = W2 f(W1 x + b1) + b2 = (W2 S) f(S^-1 W1 x + S^-1 b1) + b2

for positive homogeneous ``f`` and a diagonal ``S > 0`` (Nagel et al. 2019, arXiv 1906.04721, section
4.1). Weights with one scale for the whole tensor gain most.

ReLU6 is not homogeneous: ``min(x / s, 6)`` is ``min(x, 6 s) / s``. Bounds of single channels would be a Min of
its own behind a kernel that had taken the Clip over (measured on EfficientNet-Lite0 with one power of two for
each weight: 1 dB better than what follows where it is better at all, never the 3 dB that a node must be
worth). So either the Clip stays, and only channels that do not reach the bound change their scale, as far as
they still do not reach it; or a Relu takes its place. Both are the same function for what calibration saw in
the channels that stay below the bound, and must win when measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from edgeq.graph import constant_array
from edgeq.qtypes import TensorStats
from edgeq.stages.equalize.alternative import Alternative, set_constant
from edgeq.stages.equalize.pairs import Pair, in_channels, multiply_in, multiply_out, out_channels

__all__ = ["cross_layer", "equalize_pairs", "weight_scales"]

STRENGTHS = (0.5, 1.0)
"""How far the ranges of activations, rather than those of weights, decide the scale: see ``_activation_scales``."""

ROUNDS = 20
"""The paper repeats over all pairs until it converges; a chain of three layers is there after a few rounds."""

MOST = 1024.0
"""No channel changes its scale by more: what is a million times smaller than its neighbours is dead."""

HEADROOM = 1.1
"""How far below the bound of a Clip a channel must stay to count as one that does not reach it."""


def cross_layer(model: ir.Model, chain: Sequence[Pair], stats: Mapping[str, TensorStats]) -> list[Alternative]:
    """Rewrites for layers in a row; ``stats`` tell of ``Pair.axes``, by channel.

    Without statistics of the channels, only chains without an upper bound are equalized, by their weights.
    """
    place = chain[0].hidden
    peaks = [_peaks(pair, pair.hidden, stats) for pair in chain]
    reached = [_peaks(pair, pair.bounded or pair.hidden, stats) for pair in chain]
    clipped = any(np.isfinite(pair.bound) for pair in chain)
    known = [peak for peak in peaks if peak is not None]
    found: list[Alternative] = []
    if clipped and (len(known) < len(chain) or any(peak is None for peak in reached)):
        return []
    for relu in (False, True) if clipped else (False,):
        bounds = [np.inf if relu else pair.bound for pair in chain]
        words = ", Relu for Clip" if relu else ""
        kinds = [("weights", weight_scales(model, chain, reached, bounds))]
        if len(known) == len(chain):
            kinds += [
                (
                    f"activations, strength {strength}",
                    _activation_scales(model, chain, known, (reached, bounds), strength),
                )
                for strength in (STRENGTHS[:1] if relu else STRENGTHS)
            ]
        for kind, scales in kinds:
            if all(np.allclose(scale, 1.0, rtol=0.02) for scale in scales):
                continue
            method = f"cross-layer equalization ({kind}){words}"
            apply = partial(equalize_pairs, chain=tuple(chain), scales=scales, relu=relu)
            found.append(Alternative(place, method, apply, structural=relu, exact=not clipped))
    return found


def weight_scales(
    model: ir.Model, chain: Sequence[Pair], peaks: Sequence[np.ndarray | None], bounds: Sequence[float]
) -> list[np.ndarray]:
    """``s = sqrt(r1 r2) / r2`` for each pair (section 4.1.2, equation 11), in rounds; float64 ``[C]`` each."""
    nodes, weights = _layers(model, chain)
    scales = [np.ones(pair.channels) for pair in chain]
    for _ in range(ROUNDS):
        largest = 0.0
        for number in range(len(chain)):
            first = out_channels(nodes[number], weights[number])
            second = in_channels(nodes[number + 1], weights[number + 1])
            alive = (first > 0) & (second > 0)
            step = np.where(alive, np.sqrt(first / np.where(alive, second, 1.0)), 1.0)
            step = _allowed(scales[number] * step, peaks[number], bounds[number]) / scales[number]
            _rescale(nodes, weights, number, step)
            scales[number] = scales[number] * step
            largest = max(largest, float(np.abs(np.log(step)).max(initial=0.0)))
        if largest < 1e-3:
            break
    return scales


def _activation_scales(
    model: ir.Model,
    chain: Sequence[Pair],
    peaks: Sequence[np.ndarray],
    limits: tuple[Sequence[np.ndarray | None], Sequence[float]],
    strength: float,
) -> list[np.ndarray]:
    """``s = peak^a / r2^(1 - a)``: the activations of the channels get one range (a = 1), or meet the weights.

    SmoothQuant's balance (arXiv 2211.10438, equation 4) between convolutions, where it costs nothing; Meller
    et al. 2019, arXiv 1902.01917, equalize activations in this way.
    """
    nodes, weights = _layers(model, chain)
    reached, bounds = limits
    scales = []
    for number in range(len(chain)):
        second = in_channels(nodes[number + 1], weights[number + 1])
        alive = (peaks[number] > 1e-6) & (second > 0)
        scale = np.where(alive, peaks[number] ** strength / np.where(alive, second, 1.0) ** (1 - strength), np.nan)
        middle = np.exp(np.log(scale[alive]).mean()) if alive.any() else 1.0
        if np.isfinite(bounds[number]) and alive.any():
            # Only relations count for rounding, but those to the bound decide whether it is reached.
            middle = float(np.max(scale[alive]))
        scale = np.where(alive, scale / middle, 1.0)
        scale = _allowed(scale, reached[number], bounds[number])
        _rescale(nodes, weights, number, scale)
        scales.append(scale)
    return scales


def equalize_pairs(model: ir.Model, chain: Sequence[Pair], scales: Sequence[np.ndarray], *, relu: bool = False) -> None:
    """Divide what each pair's head gives by its scale ``[C]`` and multiply the tail's weights, in place.

    With ``relu``, Clip nodes between them become Relu.
    """
    by_name = {str(node.name): node for node in model.graph}
    for pair, scale in zip(chain, scales, strict=True):
        head, tail = by_name[pair.head], by_name[pair.tail]
        set_constant(model, head, 1, multiply_out(head, _weight(head), 1 / scale))
        bias = constant_array(head.inputs[2]) if len(head.inputs) > 2 else None
        if bias is not None:
            set_constant(model, head, 2, bias / scale)
        for name in pair.adds:
            add = by_name[name]
            position = 0 if constant_array(add.inputs[0]) is not None else 1
            array = constant_array(add.inputs[position])
            assert array is not None
            set_constant(model, add, position, array / scale.reshape(array.shape if array.ndim < 3 else _view(array)))
        set_constant(model, tail, 1, multiply_in(tail, _weight(tail), scale))
        for name in pair.clips if relu else ():
            _replace_clip(model, by_name[name])


def _view(array: np.ndarray) -> tuple[int, ...]:
    return tuple(-1 if size > 1 else 1 for size in array.shape)


def _peaks(pair: Pair, tensor: str, stats: Mapping[str, TensorStats]) -> np.ndarray | None:
    """The largest magnitude of each channel of a tensor between the two layers, float64 ``[C]``."""
    seen = stats.get(tensor)
    if seen is None or seen.channel_lo is None or seen.channel_hi is None or len(seen.channel_lo) != pair.channels:
        return None
    return np.maximum(-seen.channel_lo, seen.channel_hi) if seen.channel_axis == pair.axis else None


def _allowed(scale: np.ndarray, peak: np.ndarray | None, bound: float) -> np.ndarray:
    """The scale within its limits: what stays below an upper bound must go on doing so, what reaches it is kept."""
    scale = np.clip(scale, 1 / MOST, MOST)
    if peak is None or not np.isfinite(bound):
        return scale
    return np.where(peak * HEADROOM >= bound, 1.0, np.maximum(scale, peak * HEADROOM / bound))


def _layers(model: ir.Model, chain: Sequence[Pair]) -> tuple[list[ir.Node], list[np.ndarray]]:
    by_name = {str(node.name): node for node in model.graph}
    nodes = [by_name[name] for name in (*(pair.head for pair in chain), chain[-1].tail)]
    return nodes, [_weight(node).astype(np.float64) for node in nodes]


def _rescale(nodes: list[ir.Node], weights: list[np.ndarray], number: int, scale: np.ndarray) -> None:
    weights[number] = multiply_out(nodes[number], weights[number], 1 / scale)
    weights[number + 1] = multiply_in(nodes[number + 1], weights[number + 1], scale)


def _weight(node: ir.Node) -> np.ndarray:
    array = constant_array(node.inputs[1])
    assert array is not None
    return array


def _replace_clip(model: ir.Model, clip: ir.Node) -> None:
    relu = ir.node("Relu", [clip.inputs[0]], name=clip.name)
    old, new = clip.outputs[0], relu.outputs[0]
    name, new.shape, new.type = old.name, old.shape, old.type
    ir.convenience.replace_nodes_and_values(model.graph, clip, [clip], [relu], [old], [new])
    new.name = name
