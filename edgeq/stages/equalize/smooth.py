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
from functools import partial

import numpy as np
import onnx_ir as ir

from edgeq.qtypes import Scheme, TensorStats
from edgeq.stages.equalize.alternative import Alternative
from edgeq.stages.equalize.groups import LinearGroup, change_channels, find_groups, group_rows, product_error

__all__ = ["Smoothing", "has_channels", "smooth", "smoothings"]

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
    model, done = model.clone(), []
    for group in find_groups(model, integer):
        seen = stats.get(group.tensor)
        if seen is None or not has_channels(model, group, seen) or (group.norm is None and group.tensor in produced):
            continue
        strength, gain, scale = _best(seen, group_rows(model, group), scheme)
        if strength == 0:
            continue
        change_channels(model, group, scale)
        done.append(Smoothing(group.tensor, strength, round(10 * float(np.log10(gain)), 2), group.norm is not None))
    return model, tuple(done)


def smoothings(
    model: ir.Model, group: LinearGroup, seen: TensorStats, x: np.ndarray, scheme: Scheme, *, most: int = 2
) -> list[Alternative]:
    """The strengths with the least error of the products on ``x`` ``[R, K]``, to be measured; 0 is none of them."""
    rows = group_rows(model, group)
    scales = [(strength, _scale(seen, rows, strength)) for strength in STRENGTHS]
    scales.sort(key=lambda pair: product_error(x, rows, scheme, pair[1]))
    added = int(group.norm is None)
    return [
        Alternative(
            group.tensor,
            f"SmoothQuant, strength {strength}",
            partial(change_channels, group=group, scale=scale),
            added,
            structural=bool(added),
        )
        for strength, scale in scales[:most]
    ]


def has_channels(model: ir.Model, group: LinearGroup, seen: TensorStats) -> bool:
    """Whether the extrema are those of the last axis: a Conv may read the same tensor, and they be those of axis 1."""
    reader = next(node for node in model.graph if node.name == group.readers[0])
    value = reader.inputs[0]
    known = seen.channel_lo is not None and seen.channel_hi is not None and value is not None
    return known and value.shape is not None and seen.channel_axis == len(value.shape) - 1  # type: ignore[union-attr]


def _scale(seen: TensorStats, rows: np.ndarray, strength: float) -> np.ndarray:
    """Equation 4, with a geometric mean of 1: ``[K]``."""
    assert seen.channel_lo is not None
    assert seen.channel_hi is not None
    largest = np.maximum(np.maximum(-seen.channel_lo, seen.channel_hi), 1e-5)
    weights = np.maximum(np.abs(rows).max(axis=1), 1e-5)
    scale = largest**strength / weights ** (1 - strength)
    return scale / np.exp(np.log(scale).mean())


def _best(seen: TensorStats, rows: np.ndarray, scheme: Scheme) -> tuple[float, float, np.ndarray]:
    """The strength with the least predicted error, its gain over doing nothing, and its scale ``[K]``."""
    assert seen.channel_lo is not None
    assert seen.channel_hi is not None
    plain = np.ones(len(seen.channel_lo))
    before = _predicted_error(seen, rows, plain, scheme)
    best = (0.0, 1.0, plain)
    for strength in STRENGTHS:
        scale = _scale(seen, rows, strength)
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
