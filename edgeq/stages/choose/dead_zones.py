"""Values that their readers do not tell apart need no levels of their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgeq.graph import constant_array
from edgeq.qtypes import QParams

__all__ = ["cut_by_clip", "live_range"]


def live_range(value: ir.Value) -> tuple[float, float]:
    """The interval outside of which nothing that reads ``value`` depends on it; infinite where something does.

    HardSigmoid is 0 below ``-beta / alpha`` and 1 above ``(1 - beta) / alpha``. A product with it
    is 0 below as well, so hard swish needs no level below -3 (Howard et al. 2019, arXiv 1905.02244,
    section 5.2).
    """
    uses = [node for node, _ in value.uses()]
    gates = [node for node in uses if node.op_type == "HardSigmoid" and node.domain == ""]
    if not gates or value.is_graph_output():
        return -np.inf, np.inf
    low, high = np.inf, -np.inf
    for gate in gates:
        alpha, beta = gate.attributes.get_float("alpha", 0.2), gate.attributes.get_float("beta", 0.5)
        if not alpha > 0:
            return -np.inf, np.inf
        low, high = min(low, -beta / alpha), max(high, (1 - beta) / alpha)
    opened = {gate.outputs[0] for gate in gates}
    for node in uses:
        if node in gates:
            continue
        if node.op_type != "Mul" or opened.isdisjoint(node.inputs):
            return -np.inf, np.inf
        high = np.inf
    return low, high


def cut_by_clip(clip: ir.Node, qparams: QParams) -> QParams:
    """The scale of a tensor that ``clip`` gives, narrowed until its integers lie within the bounds.

    Rounding the zero point moves both ends by up to half a step; one that is outside keeps the Clip, and
    with it the kernel before, in float (measured, ONNX Runtime 1.32: the Clip is dropped if the range of
    the integers lies within its bounds).
    """
    bounds = [constant_array(value) for value in (*clip.inputs[1:], None, None)[:2]]
    zero, scale = int(qparams.zero_point), float(qparams.scale)
    lowest, highest = qparams.spec.qmin - zero, qparams.spec.qmax - zero
    for bound, end in zip(bounds, (lowest, highest), strict=True):
        if bound is not None and end and 0 < float(bound) / end < scale * (1 - 1e-6):
            scale = float(np.nextafter(np.float32(float(bound) / end), np.float32(0)))
    return replace(qparams, scale=np.asarray(scale, np.float32)) if scale < float(qparams.scale) else qparams
