"""SmoothQuant: move outlier channels of activations into the weights that read them.

    y = x W = (x / s) (s W),    s_j = max|x_j|^a / max|W_j|^(1 - a)

Xiao et al. 2022, arXiv 2211.10438, equation 4. The strength ``a`` is searched for each group of
matrix products that read one tensor, and 0 (leave it alone) is among the candidates. The division
goes into a LayerNormalization where the group is its only reader, and costs nothing there;
elsewhere a float Mul is put in front of the group.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.graph import Names, constant_array, set_initializer
from edgeq.qtypes import Scheme, TensorStats

__all__ = ["Smoothing", "smooth"]

STRENGTHS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)

MIN_GAIN = 2.0
"""A group is smoothed only if its predicted error falls by this factor (3 dB): a Mul is not free."""


@dataclass(frozen=True)
class Smoothing:
    """What was done for one tensor: strength, predicted gain in dB, and whether it costs a Mul."""

    tensor: str
    strength: float
    gain_db: float
    folded: bool

    def describe(self) -> str:
        """One line for the plan and the report."""
        place = "in the LayerNormalization" if self.folded else "by a Mul"
        gain = f"predicted gain {self.gain_db:.1f} dB"
        return f"{self.tensor} is smoothed {place} (SmoothQuant, strength {self.strength}, {gain})"


def smooth(
    model: ir.Model,
    stats: Mapping[str, TensorStats],
    *,
    integer: Container[str],
    produced: Container[str],
    scheme: Scheme,
) -> tuple[ir.Model, tuple[Smoothing, ...]]:
    """A copy of ``model`` that computes the same with smoother activations, and what was done.

    ``integer`` names the nodes that will run in integers, ``produced`` the tensors that leave an
    integer kernel: both as the layout of the model has them. ``stats`` need per-channel extrema;
    tensors without them are left alone, as are those that an integer kernel produces, unless a
    LayerNormalization takes the division.
    """
    model = model.clone()
    names, done = Names(model), []
    for value, group in _groups(model, integer):
        seen = stats.get(str(value.name))
        norm = _foldable_norm(value, group)
        if seen is None or seen.channel_lo is None or seen.channel_hi is None:
            continue
        # A Conv may read the same tensor, and the extrema then be those of its axis 1.
        if value.shape is None or seen.channel_axis != len(value.shape) - 1:
            continue
        if norm is None and str(value.name) in produced:
            continue
        strength, gain, scale = _best(seen, _rows(group), scheme)
        if strength == 0:
            continue
        if norm is not None:
            _divide_norm(model, norm, scale, names)
        else:
            _divide_by_mul(model, value, group, scale, names)
        for node in group:
            _multiply_weight(model, node, scale, names)
        done.append(Smoothing(str(value.name), strength, round(10 * float(np.log10(gain)), 2), norm is not None))
    return model, tuple(done)


def _groups(model: ir.Model, integer: Container[str]) -> list[tuple[ir.Value, list[ir.Node]]]:
    """Tensors and the integer matrix products with a constant weight that read them."""
    found: dict[str, tuple[ir.Value, list[ir.Node]]] = {}
    for node in model.graph:
        value = node.inputs[0] if node.inputs else None
        if node.op_type not in ("MatMul", "Gemm") or str(node.name) not in integer or value is None:
            continue
        weight = constant_array(node.inputs[1])
        if weight is None or weight.ndim != 2 or node.attributes.get_int("transA", 0) == 1:
            continue
        found.setdefault(str(value.name), (value, []))[1].append(node)
    return list(found.values())


def _rows(group: list[ir.Node]) -> np.ndarray:
    """All weights of the group side by side, float32 ``[K, N1 + N2 + ...]``."""
    return np.concatenate([_matrix(node) for node in group], axis=1)


def _matrix(node: ir.Node) -> np.ndarray:
    weight = constant_array(node.inputs[1])
    assert weight is not None
    return weight.T if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1 else weight


def _best(seen: TensorStats, rows: np.ndarray, scheme: Scheme) -> tuple[float, float, np.ndarray]:
    """The strength with the least predicted error, its gain over doing nothing, and its scale ``[K]``."""
    assert seen.channel_lo is not None
    assert seen.channel_hi is not None
    plain = np.ones(len(seen.channel_lo))
    before = _predicted_error(seen, rows, plain, scheme)
    largest = np.maximum(np.maximum(-seen.channel_lo, seen.channel_hi), 1e-5)
    weights = np.maximum(np.abs(rows).max(axis=1), 1e-5)
    best = (0.0, 1.0, plain)
    for strength in STRENGTHS:
        scale = largest**strength / weights ** (1 - strength)
        scale = scale / np.exp(np.log(scale).mean())
        gain = before / max(_predicted_error(seen, rows, scale, scheme), 1e-30)
        if gain > max(best[1], MIN_GAIN):
            best = (strength, gain, scale)
    return best


def _predicted_error(seen: TensorStats, rows: np.ndarray, scale: np.ndarray, scheme: Scheme) -> float:
    """Expected squared error of the products' outputs from rounding, up to a common factor.

    Activations round by ``dx^2 / 12`` per element and pass through ``sum_k (s_k W_kn)^2``; weights
    round by ``dw_n^2 / 12`` and are multiplied by ``E[(x_k / s_k)^2]``, taken as the tensor's mean
    square, shared among the channels as the squares of their largest values are.
    """
    assert seen.channel_lo is not None
    assert seen.channel_hi is not None
    smoothed = rows * scale[:, None]
    activation_levels = 2.0 ** (scheme.activation_bits or 8) - 1
    weight_levels = 2.0 ** (scheme.weight_bits - 1) - 1
    step = max((seen.channel_hi / scale).max(), 0.0) - min((seen.channel_lo / scale).min(), 0.0)
    from_activations = (step / activation_levels) ** 2 * np.square(smoothed).sum()
    weight_steps = np.abs(smoothed).max(axis=0) / weight_levels
    share = np.square(np.maximum(-seen.channel_lo, seen.channel_hi))
    mean_square = np.average(np.square(seen.histogram.centers), weights=_counts(seen)) * len(share)
    energy = mean_square * (share / np.square(scale)).sum() / max(share.sum(), 1e-30)
    return float(from_activations + np.square(weight_steps).sum() * energy)


def _counts(seen: TensorStats) -> np.ndarray:
    counts = seen.histogram.counts
    return counts.sum(axis=0) if counts.ndim == 2 else counts


def _foldable_norm(value: ir.Value, group: list[ir.Node]) -> ir.Node | None:
    """The LayerNormalization behind ``value`` if the group is its only reader."""
    producer = value.producer()
    if producer is None or producer.op_type != "LayerNormalization" or value.is_graph_output():
        return None
    constants = [operand for operand in producer.inputs[1:3] if operand is not None]
    if any(constant_array(operand) is None for operand in constants) or not constants:
        return None
    return producer if {user for user, _ in value.uses()} == set(group) else None


def _divide_norm(model: ir.Model, norm: ir.Node, scale: np.ndarray, names: Names) -> None:
    for position, operand in enumerate(norm.inputs[1:3], start=1):
        array = constant_array(operand)
        if operand is not None and array is not None:
            smoothed = (array / scale).astype(np.float32)
            norm.replace_input_with(position, set_initializer(model, names.fresh(f"{operand.name}_smoothed"), smoothed))


def _divide_by_mul(model: ir.Model, value: ir.Value, group: list[ir.Node], scale: np.ndarray, names: Names) -> None:
    factor = set_initializer(model, names.fresh(f"{value.name}_smoothing"), (1 / scale).astype(np.float32))
    mul = ir.node("Mul", [value, factor], name=f"{value.name}_smoothing")
    smoothed = mul.outputs[0]
    smoothed.name, smoothed.shape, smoothed.type = names.fresh(f"{value.name}_smoothed"), value.shape, value.type
    producer = value.producer()
    if producer is not None:
        model.graph.insert_after(producer, [mul])
    else:
        model.graph.insert_before(group[0], [mul])
    for node in group:
        node.replace_input_with(0, smoothed)


def _multiply_weight(model: ir.Model, node: ir.Node, scale: np.ndarray, names: Names) -> None:
    weight = node.inputs[1]
    array = constant_array(weight)
    assert weight is not None
    assert array is not None
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
    factor = scale[None, :] if transposed else scale[:, None]
    smoothed = (array * factor).astype(np.float32)
    node.replace_input_with(1, set_initializer(model, names.fresh(f"{weight.name}_smoothed"), smoothed))
