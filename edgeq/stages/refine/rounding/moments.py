"""Second moments of what a layer multiplies its weight by, gathered sample by sample.

Conv, ConvTranspose, Gemm and MatMul are one product here: ``output = matrix @ rows``, with the weight as
``[G, M, K]`` (groups, output channels of a group, products per output) and, for each group, a row of ``K`` inputs
for every output position (im2col). A depthwise Conv has ``G`` channels of ``K = kernel size``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.graph import constant_array

__all__ = ["Half", "Moments", "observe", "refusal", "restore_weight", "weight_matrix"]

_CHUNK = 1 << 22
"""Rows are gathered in chunks of about this many numbers (32 MB in float64)."""

_CONVOLUTIONS = ("Conv", "ConvTranspose")


@dataclass(frozen=True)
class Half:
    """Means over the rows of some samples, float64: ``E[x_q x_q^T]``, ``E[x_f x_q^T]``, ``E[x_f]``, ``E[x_q]``."""

    gram: np.ndarray
    cross: np.ndarray
    mean_f: np.ndarray
    mean_q: np.ndarray


@dataclass
class Moments:
    """Sums over rows, float64: ``x_f`` from the float model, ``x_q`` as the quantized model feeds it.

    ``gram_sum`` ``[2, G, K, K]`` of ``x_q x_q^T``, ``cross_sum`` ``[2, G, K, K]`` of ``x_f x_q^T``, ``float_sum`` and
    ``quantized_sum`` ``[2, G, K]``, ``counts`` int64 ``[2]``: even and odd samples apart, so that what is fitted to
    the ones can be judged on the others. ``samples`` counts the calls of ``observe``.
    """

    gram_sum: np.ndarray
    cross_sum: np.ndarray
    float_sum: np.ndarray
    quantized_sum: np.ndarray
    counts: np.ndarray
    samples: int = 0

    @classmethod
    def empty(cls, groups: int, size: int) -> Moments:
        matrix, vector = (2, groups, size, size), (2, groups, size)
        return cls(np.zeros(matrix), np.zeros(matrix), np.zeros(vector), np.zeros(vector), np.zeros(2, np.int64))

    @property
    def count(self) -> int:
        """The number of rows."""
        return int(self.counts.sum())

    @property
    def gram(self) -> np.ndarray:
        """``E[x_q x_q^T]``, float64 ``[G, K, K]``."""
        return self.gram_sum.sum(axis=0) / max(self.count, 1)

    @property
    def cross(self) -> np.ndarray:
        """``E[x_f x_q^T]``, float64 ``[G, K, K]``."""
        return self.cross_sum.sum(axis=0) / max(self.count, 1)

    @property
    def mean_f(self) -> np.ndarray:
        """``E[x_f]``, float64 ``[G, K]``."""
        return self.float_sum.sum(axis=0) / max(self.count, 1)

    @property
    def mean_q(self) -> np.ndarray:
        """``E[x_q]``, float64 ``[G, K]``."""
        return self.quantized_sum.sum(axis=0) / max(self.count, 1)

    def half(self, which: int) -> Half:
        """The means over even (0) or odd (1) samples."""
        count = max(int(self.counts[which]), 1)
        sums = (self.gram_sum, self.cross_sum, self.float_sum, self.quantized_sum)
        return Half(*(each[which] / count for each in sums))

    def add(self, x_float: np.ndarray, x_quantized: np.ndarray) -> None:
        """Count rows ``[G, R, K]`` of both, which belong to the sample that is next to be finished."""
        half = self.samples % 2
        quantized = x_quantized.astype(np.float64)
        gram = quantized.swapaxes(1, 2) @ quantized
        total = quantized.sum(axis=1)
        self.gram_sum[half] += gram
        self.quantized_sum[half] += total
        if x_float is x_quantized:
            self.cross_sum[half] += gram
            self.float_sum[half] += total
        else:
            floats = x_float.astype(np.float64)
            self.cross_sum[half] += floats.swapaxes(1, 2) @ quantized
            self.float_sum[half] += floats.sum(axis=1)
        self.counts[half] += x_float.shape[1]


def refusal(node: ir.Node) -> str | None:
    """Why the layer is no product of a constant matrix with rows of its input; None if it is one."""
    weight = constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
    if node.op_type not in (*_CONVOLUTIONS, "Gemm", "MatMul") or node.domain not in ("", "ai.onnx"):
        return f"{node.op_type} multiplies no weight"
    if weight is None:
        return "both operands are activations"
    if node.op_type == "MatMul" and weight.ndim != 2:
        return f"its weight has {weight.ndim} dimensions, not two"
    if node.op_type == "Gemm":
        if node.attributes.get_int("transA", 0):
            return "it transposes its data"
        if node.attributes.get_float("alpha", 1.0) != 1.0 or node.attributes.get_float("beta", 1.0) != 1.0:
            return "it scales its product or bias by alpha or beta"
    if node.op_type == "ConvTranspose":
        padding = node.attributes.get_string("auto_pad", "NOTSET")
        if padding not in ("NOTSET", "VALID") or "output_shape" in node.attributes:
            return "its padding follows from the shape of its output"
    return None


def weight_matrix(node: ir.Node, weight: np.ndarray) -> np.ndarray:
    """The weight as ``[G, M, K]``, same dtype: ``output = matrix @ rows`` for each group.

    Conv ``[M, C/g, ...]``, ConvTranspose ``[C, M/g, ...]``, Gemm ``[K, N]`` (``[N, K]`` with transB), MatMul
    ``[K, N]``. K counts input channels first, then positions of the kernel.
    """
    groups = node.attributes.get_int("group", 1)
    if node.op_type == "Conv":
        return weight.reshape(groups, weight.shape[0] // groups, -1)
    if node.op_type == "ConvTranspose":
        inputs, outputs = weight.shape[0] // groups, weight.shape[1]
        parted = weight.reshape(groups, inputs, outputs, -1)
        return parted.swapaxes(1, 2).reshape(groups, outputs, -1)
    if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1:
        return weight[None]
    return weight.T[None]


def restore_weight(node: ir.Node, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """What ``weight_matrix`` made of a weight of ``shape``, as that weight again."""
    if node.op_type == "Conv":
        return matrix.reshape(shape)
    if node.op_type == "ConvTranspose":
        groups, outputs = matrix.shape[:2]
        return matrix.reshape(groups, outputs, shape[0] // groups, -1).swapaxes(1, 2).reshape(shape)
    if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1:
        return matrix[0]
    return matrix[0].T


def observe(
    node: ir.Node,
    x_float: np.ndarray,
    x_quantized: np.ndarray,
    moments: Moments | None = None,
    *,
    rows: int | None = None,
) -> Moments:
    """Count one sample's input of ``node``: as the float model has it, and as the quantized model has it.

    Both have the shape of the node's input 0. Of a sample with more output positions than ``rows`` a random
    share is taken, the same for the same history; by default ``max(256, 4 K)``, so that 16 samples give
    64 rows for each column. ``moments`` is added to in place and returned. Passing one array twice saves half
    of the work.

    Raises:
        ValueError: the node is none of those that ``refusal`` accepts, or the arrays differ in shape.
    """
    reason = refusal(node)
    if reason is not None:
        raise ValueError(f"{node.op_type} {node.name!r} has no moments: {reason}")
    if x_float.shape != x_quantized.shape:
        raise ValueError(f"{node.name!r}: float {x_float.shape} and quantized {x_quantized.shape} inputs differ")
    weight = constant_array(node.inputs[1])
    assert weight is not None
    groups, _, size = weight_matrix(node, weight).shape
    moments = Moments.empty(groups, size) if moments is None else moments
    sampler = _Rows(node, weight.shape, x_float.shape)
    limit = max(256, 4 * size) if rows is None else rows
    chosen = np.arange(sampler.count)
    if sampler.count > limit:
        chosen = np.sort(np.random.default_rng(moments.samples).choice(sampler.count, limit, replace=False))
    step = max(1, _CHUNK // (groups * size))
    for start in range(0, len(chosen), step):
        part = chosen[start : start + step]
        floats = sampler.take(x_float, part)
        moments.add(floats, floats if x_quantized is x_float else sampler.take(x_quantized, part))
    moments.samples += 1
    return moments


class _Rows:
    """The rows of one input shape: ``take`` gathers those of some output positions, ``[G, R, K]``."""

    def __init__(self, node: ir.Node, weight: tuple[int, ...], data: tuple[int, ...]) -> None:
        self.groups = node.attributes.get_int("group", 1) if node.op_type in _CONVOLUTIONS else 1
        self.spatial: tuple[_Axis, ...] = ()
        self.images = 1
        if node.op_type in _CONVOLUTIONS:
            self.images = data[0]
            self.spatial = _axes(node, weight[2:], data[2:])
            self.count = self.images * int(np.prod([axis.outputs for axis in self.spatial]))
        else:
            self.count = int(np.prod(data[:-1]))

    def take(self, x: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        if not self.spatial:
            return x.reshape(-1, x.shape[-1])[chosen][None]
        positions = np.unravel_index(chosen, (self.images, *(axis.outputs for axis in self.spatial)))
        taps = np.zeros((len(chosen), 1), np.int64)
        valid = np.ones((len(chosen), 1), bool)
        for axis, at in zip(self.spatial, positions[1:], strict=True):
            index, inside = axis.taps(at)
            taps = (taps[:, :, None] * axis.inputs + index[:, None, :]).reshape(len(chosen), -1)
            valid = (valid[:, :, None] & inside[:, None, :]).reshape(len(chosen), -1)
        flat = x.reshape(*x.shape[:2], -1)
        found = flat[positions[0][:, None], :, taps]  # [R, taps, C]
        found = np.where(valid[:, :, None], found, np.float32(0))
        rows = found.reshape(len(chosen), taps.shape[1], self.groups, -1)
        return rows.transpose(2, 0, 3, 1).reshape(self.groups, len(chosen), -1)


@dataclass(frozen=True)
class _Axis:
    """One spatial axis of a convolution: which inputs an output reads."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    dilation: int
    before: int
    transposed: bool

    def taps(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The input that each tap of outputs ``at`` ``[R]`` reads, clipped, and whether there is one: ``[R, k]``."""
        taps = np.arange(self.kernel)[None, :] * self.dilation
        if self.transposed:
            reach = at[:, None] + self.before - taps
            index, whole = reach // self.stride, reach % self.stride == 0
        else:
            index, whole = at[:, None] * self.stride + taps - self.before, np.True_
        inside = whole & (index >= 0) & (index < self.inputs)
        return np.clip(index, 0, self.inputs - 1), inside


def _axes(node: ir.Node, kernel: tuple[int, ...], data: tuple[int, ...]) -> tuple[_Axis, ...]:
    rank = len(kernel)
    strides = node.attributes.get_ints("strides", [1] * rank)
    dilations = node.attributes.get_ints("dilations", [1] * rank)
    pads = node.attributes.get_ints("pads", [0] * 2 * rank)
    extra = node.attributes.get_ints("output_padding", [0] * rank)
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    transposed = node.op_type == "ConvTranspose"
    axes = []
    for i, (size, taps) in enumerate(zip(data, kernel, strict=True)):
        reach = dilations[i] * (taps - 1) + 1
        before, after = (pads[i], pads[rank + i]) if automatic == "NOTSET" else (0, 0)
        if automatic.startswith("SAME"):
            missing = max((-(-size // strides[i]) - 1) * strides[i] + reach - size, 0)
            before = missing // 2 if automatic == "SAME_UPPER" else missing - missing // 2
            after = missing - before
        if transposed:
            outputs = (size - 1) * strides[i] + reach + extra[i] - before - after
        else:
            outputs = (size + before + after - reach) // strides[i] + 1
        axes.append(_Axis(size, outputs, taps, strides[i], dilations[i], before, transposed))
    return tuple(axes)
