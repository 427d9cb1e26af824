"""Biases: int32 at the scale ``input scale * weight scale``, guarded against overflow, and corrected."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.affine import legal_scale
from edgeq.qtypes import Decision, IntType, PerAxis, PerTensor, QParams, TensorSpec
from edgeq.roles import channel_axis

__all__ = ["bias_decision", "bias_name", "corrected_bias"]

_INT32 = 2**31 - 1


def bias_decision(
    node: ir.Node,
    bias: ir.Value | None,
    array: np.ndarray | None,
    data: QParams,
    weight: QParams,
    mode: str,
) -> tuple[QParams, Decision | None]:
    """How the bias of ``node`` is stored, and the weight's parameters after the overflow guard.

    ``array`` is the bias to store, float32 ``[channels]`` (None: there is none). A bias that does not
    fit into int32 at ``data.scale * weight.scale`` raises the weight scale of its channel:
    ``s_w >= |b| / (s_x (2^31 - 1))``.
    """
    if array is None:
        if bias is None:
            return weight, None
        reason = "the bias is computed at run time"
        return weight, Decision(str(bias.name), "bias", (str(node.name),), "constant bias", skip_reason=reason)
    name = bias_name(node, bias)
    if mode == "float" or array.ndim != 1:
        reason = "the target keeps biases in float" if mode == "float" else "it is not one number per channel"
        return weight, Decision(name, "bias", (str(node.name),), "float bias", skip_reason=reason)
    step = data.scale.astype(np.float64)
    needed = np.abs(array.astype(np.float64)) / (step * _INT32)
    if weight.scale.ndim == 0:
        needed = needed.max()
    rule = "int32 at input scale x weight scale"
    if (needed > weight.scale).any():
        scale = np.maximum(weight.scale, legal_scale(needed * 1.0001, weight.spec)).astype(np.float32)
        weight = QParams(scale, weight.zero_point, weight.spec)
        rule += "; weight scale raised, or the bias would overflow"
    # The product is taken in float32, as the consumer of the graph takes it to check the bias scale.
    scale = np.maximum(data.scale * weight.scale, np.finfo(np.float32).tiny).astype(np.float32)
    spec = TensorSpec(IntType(32, True), True, PerTensor() if scale.ndim == 0 else PerAxis(0))
    qparams = QParams(scale, np.zeros(scale.shape, np.int32), spec)
    return weight, Decision(name, "bias", (str(node.name),), rule, qparams)


def bias_name(node: ir.Node, bias: ir.Value | None) -> str:
    """The bias of its own that ``node`` gets: one initializer may have served several nodes."""
    return str(bias.name) if bias is not None and len(bias.uses()) == 1 else f"{node.name}/bias"


def corrected_bias(node: ir.Node, error: np.ndarray, mean: np.ndarray, bias: np.ndarray | None) -> np.ndarray | None:
    """``b_c - E[(Q(W) - W) x]_c`` for Conv and Gemm, float32 ``[channels]``; None where it is not known.

    ``error`` is ``Q(W) - W``; ``mean`` the mean of each input channel, ``[C]``. For Conv the mean is
    taken as the same at every position, which padding violates at the border only (Nagel et al.
    2019, arXiv 1906.04721, equation 13).
    """
    if node.op_type == "Conv":
        groups = node.attributes.get_int("group", 1)
        kernel = error.reshape(*error.shape[:2], -1).sum(axis=2)  # [M, C/g]
        if kernel.shape[1] * groups != len(mean):
            return None
        per_group = mean.reshape(groups, -1)  # [g, C/g]
        shift = (kernel.reshape(groups, -1, kernel.shape[1]) * per_group[:, None, :]).sum(axis=2).ravel()
    elif node.op_type == "Gemm" and error.shape[1 - (channel_axis(node, 2) or 0)] == len(mean):
        # With transA axis 1 of the input counts rows, not the channels that the mean is of.
        if node.attributes.get_int("transA", 0):
            return None
        if node.attributes.get_float("alpha", 1.0) != 1.0 or node.attributes.get_float("beta", 1.0) != 1.0:
            return None
        shift = mean @ (error.T if node.attributes.get_int("transB", 0) else error)
    else:
        return None
    base = np.zeros(shift.shape) if bias is None else bias.astype(np.float64)
    if base.shape != shift.shape:
        return None
    return (base - shift).astype(np.float32)
