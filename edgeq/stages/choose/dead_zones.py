"""Values that their readers do not tell apart need no levels of their own."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

__all__ = ["live_range"]


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
