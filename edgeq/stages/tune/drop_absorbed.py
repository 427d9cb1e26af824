"""Leave out each Relu and Clip that the QuantizeLinear behind it makes superfluous."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.graph import constant_array
from edgeq.qtypes import IntType

__all__ = ["drop_absorbed"]


def drop_absorbed(model: ir.Model) -> None:
    """Remove, in place, what only a QuantizeLinear reads whose integers end where it cuts: no result changes.

    Providers that match ``DequantizeLinear -> Conv -> QuantizeLinear`` see nothing between them.
    """
    for quantizer in list(model.graph):
        value = quantizer.inputs[0] if quantizer.op_type == "QuantizeLinear" else None
        node = value.producer() if value is not None else None
        if value is None or node is None or node.op_type not in ("Relu", "Clip"):
            continue
        if len(value.uses()) == 1 and not value.is_graph_output() and _cuts_as_much(quantizer, node):
            quantizer.replace_input_with(0, node.inputs[0])
            model.graph.remove(node, safe=True)


def _cuts_as_much(quantizer: ir.Node, node: ir.Node) -> bool:
    """Whether rounding and saturating gives the same integers with and without ``node`` before it."""
    scale, zero = (constant_array(value) for value in quantizer.inputs[1:3])
    assert scale is not None
    assert zero is not None
    bounds = [constant_array(value) for value in (*node.inputs[1:], None, None)[:2]]
    if any(bound is None and value is not None for bound, value in zip(bounds, node.inputs[1:], strict=False)):
        return False
    low, high = (None, None) if node.op_type == "Relu" else bounds
    if node.op_type == "Relu":
        low = np.zeros(())
    dtype = IntType.parse(ir.DataType.from_numpy(zero.dtype).name.lower())
    # What lies beyond a bound becomes the last integer either way, if the bound itself rounds to it.
    lowest = low is None or (np.rint(low / scale) + zero.astype(np.float64) <= dtype.qmin).all()
    highest = high is None or (np.rint(high / scale) + zero.astype(np.float64) >= dtype.qmax).all()
    return bool(lowest and highest)
