"""Quantized models to break: one small graph as edgeq writes it, and changes that each violate one rule."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
from small_models import parse, quantized, weights

from edgeq.graph import set_initializer
from edgeq.target import Fixed, TargetProfile, load_target


def conv_chain(target: str | TargetProfile = "linux-x64", scheme: str = "w8a8") -> ir.Model:
    """Conv, Relu, MaxPool, Conv, Softmax: a kernel, what it absorbs, data that moves, a fixed range."""
    model = parse(
        "g (float[1,4,8,8] x) => (float[1,8,4,4] y) { c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c) "
        "m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) d = Conv<pads=[1,1,1,1]>(m, v, b) s = Softmax<axis=1>(d) "
        "y = Conv(s, u) }",
        w=weights(8, 4, 3, 3),
        v=weights(8, 8, 3, 3, seed=1),
        u=weights(8, 8, 1, 1, seed=2),
        b=weights(8, seed=3),
    )
    return quantized(model, target, scheme).model


def product(target: str | TargetProfile = "linux-x64", scheme: str = "w8a8", rows: int = 64) -> ir.Model:
    """A MatMul with a bias behind it, at rank 3."""
    text = f"g (float[1,16,{rows}] x) => (float[1,16,32] y) {{ p = MatMul(x, w) y = Add(p, b) }}"
    return quantized(parse(text, w=weights(rows, 32), b=weights(32)), target, scheme).model


def node(model: ir.Model, op_type: str, index: int = 0) -> ir.Node:
    return [n for n in model.graph if n.op_type == op_type][index]


def behind(model: ir.Model, op_type: str, index: int = 0) -> ir.Node:
    """The QuantizeLinear behind an operator."""
    return next(n for n, _ in node(model, op_type, index).outputs[0].uses() if n.op_type == "QuantizeLinear")


def before(model: ir.Model, op_type: str, position: int, index: int = 0) -> ir.Node:
    """The DequantizeLinear in front of an operator's input."""
    value = node(model, op_type, index).inputs[position]
    assert value is not None
    producer = value.producer()
    assert producer is not None
    return producer


def give(model: ir.Model, at: ir.Node, position: int, array: np.ndarray) -> None:
    """Another constant for one input of one node alone."""
    name = f"changed_{at.name}_{position}"
    at.replace_input_with(position, set_initializer(model, name, array))


def constant(at: ir.Node, position: int) -> np.ndarray:
    value = at.inputs[position]
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def requantized(model: ir.Model, op_type: str, index: int = 0, factor: float = 1.0, zero: Any = None) -> ir.Model:
    """``model`` with another scale or zero point behind an operator, in Q and DQ alike."""
    first = behind(model, op_type, index)
    for part in (first, next(user for user, _ in first.outputs[0].uses())):
        give(model, part, 1, np.float32(constant(part, 1) * np.float32(factor)))
        if zero is not None:
            give(model, part, 2, zero)
    return model


def changed(name: str = "linux-x64", **tables: dict[str, Any]) -> TargetProfile:
    """A profile with some keys of some tables replaced, such as ``graph={"shapes": "static"}``."""
    profile = load_target(name)
    parts = {key: msgspec.structs.replace(getattr(profile, key), **values) for key, values in tables.items()}
    return msgspec.structs.replace(profile, **parts)


def with_fixed(op: str, lo: float, hi: float) -> TargetProfile:
    return msgspec.structs.replace(load_target("linux-x64"), fixed=(Fixed(op=op, lo=lo, hi=hi, source="a test"),))


def with_capability(op: str, kind: str, **keys: Any) -> TargetProfile:
    """linux-x64 with changed keys in all capabilities of one operator and kind."""
    profile = load_target("linux-x64")
    capability = tuple(
        msgspec.structs.replace(c, **keys) if op in c.ops and c.kind == kind else c for c in profile.capability
    )
    return msgspec.structs.replace(profile, capability=capability)
