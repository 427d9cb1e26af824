"""High-bias absorption: move what a channel never falls below out of the activation, into the next bias.

    W2 relu(W1 x + b1) + b2 = W2 relu(W1 x + b1 - c) + (b2 + W2 c)    where  W1 x + b1 >= c >= 0

Nagel et al. 2019, arXiv 1906.04721, section 4.1.3. The paper takes ``c`` from the
statistics of batch normalization, ``max(0, beta - 3 gamma)``; here it is the least value that calibration
saw, so that nothing changes for what it saw. Equalization makes such biases, where it raises small channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import onnx_ir as ir

from edgeq.graph import constant_array
from edgeq.qtypes import TensorStats
from edgeq.stages.equalize.alternative import Alternative, set_constant
from edgeq.stages.equalize.pairs import Pair

__all__ = ["absorb_bias", "absorption"]

LEAST = 0.02
"""Absorbing less than this share of the tensor's range changes no scale worth the trial."""


def absorption(model: ir.Model, pair: Pair, stats: Mapping[str, TensorStats]) -> Alternative | None:
    """The rewrite for one pair, or None where no channel stays far enough above zero, or padding would show."""
    seen = stats.get(pair.hidden)
    by_name = {str(node.name): node for node in model.graph}
    if seen is None or seen.channel_lo is None or seen.channel_hi is None or seen.channel_axis != pair.axis:
        return None
    if len(seen.channel_lo) != pair.channels or not _exact(by_name, pair):
        return None
    amount = np.maximum(seen.channel_lo, 0.0)
    # Below the bound of a Clip nothing shows; a channel that reaches it would be cut lower.
    amount = np.where(seen.channel_hi * 1.1 >= pair.bound, 0.0, amount)
    if amount.max(initial=0.0) < LEAST * max(seen.hi, 1e-30):
        return None
    apply = partial(absorb_bias, pair=pair, amount=amount)
    return Alternative(pair.hidden, "high-bias absorption", apply, exact=False)


def absorb_bias(model: ir.Model, pair: Pair, amount: np.ndarray) -> None:
    """Take ``amount`` ``[C]`` off the head's bias and add what it was worth to the tail's, in place."""
    by_name = {str(node.name): node for node in model.graph}
    head, tail = by_name[pair.head], by_name[pair.tail]
    _add(model, head, -amount)
    weight = constant_array(tail.inputs[1])
    assert weight is not None
    if tail.op_type == "Conv":
        groups = tail.attributes.get_int("group", 1)
        split = weight.astype(np.float64).reshape(groups, -1, weight.shape[1], int(np.prod(weight.shape[2:])))
        worth = (split.sum(axis=3) * amount.reshape(groups, 1, -1)).sum(axis=2).ravel()
    else:
        worth = amount @ (weight.T if tail.attributes.get_int("transB", 0) else weight).astype(np.float64)
    _add(model, tail, worth)


def _exact(by_name: Mapping[str, ir.Node], pair: Pair) -> bool:
    """Whether the shift passes: one Relu or Clip and no more between two layers with biases, and no padding behind."""
    head, tail = by_name[pair.head], by_name[pair.tail]
    path = [by_name[name].op_type for name in pair.path]
    pads = tail.attributes.get_ints("pads", ()) if "pads" in tail.attributes else ()
    automatic = tail.attributes.get_string("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")
    unpadded = not any(pads) and not automatic
    return path in (["Relu"], ["Clip"]) and "MatMul" not in (head.op_type, tail.op_type) and unpadded and _plain(tail)


def _plain(node: ir.Node) -> bool:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    array = constant_array(bias)
    return bias is None or (array is not None and array.ndim == 1 and node.attributes.get_float("beta", 1.0) == 1.0)


def _add(model: ir.Model, node: ir.Node, added: np.ndarray) -> None:
    held = constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
    set_constant(model, node, 2, added if held is None else held.astype(np.float64) + added)
