"""A legal graph passes; the same graph with one rule broken by hand is refused, naming the node."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from small_models import parse, quantized, weights

from edgeq.errors import ModelError
from edgeq.graph import set_initializer
from edgeq.stages.insert import verify_qdq


@pytest.fixture
def legal() -> ir.Model:
    model = parse(
        "g (float[1,3,8,8] x) => (float[1,4,4,4] y) { a = Conv(x, w, b) r = Relu(a) y = Conv(r, w2) }",
        w=weights(4, 3, 3, 3),
        b=weights(4),
        w2=weights(4, 4, 3, 3),
    )
    return quantized(model).model


def test_a_legal_graph_passes(legal: ir.Model) -> None:
    verify_qdq(legal)


def replace(name: str, array: np.ndarray) -> Callable[[ir.Model], None]:
    return lambda model: set_initializer(model, name, array) and None


def compute_the_scale(model: ir.Model) -> None:
    node = model.graph.node("x_QuantizeLinear")
    identity = ir.node("Identity", [node.inputs[1]], name="copy")
    model.graph.insert_before(node, [identity])
    node.replace_input_with(1, identity.outputs[0])


def quantize_a_constant(model: ir.Model) -> None:
    node = model.graph.node("x_QuantizeLinear")
    node.replace_input_with(0, set_initializer(model, "constant", weights(1, 3, 8, 8)))


def repeat_the_pair(model: ir.Model) -> None:
    restore = model.graph.node("r_DequantizeLinear")
    again = ir.node("QuantizeLinear", [restore.outputs[0], *restore.inputs[1:]], name="again")
    model.graph.insert_after(restore, [again])


BREAKS = {
    "zero scale": (replace("x_scale", np.float32(0)), "x_QuantizeLinear", "a scale is not a positive, normal number"),
    "negative scale": (replace("x_scale", np.float32(-1)), "x_QuantizeLinear", "not a positive, normal number"),
    "infinite scale": (replace("x_scale", np.float32("inf")), "x_QuantizeLinear", "not a positive, normal number"),
    "NaN": (
        replace("w_scale", np.array([1, 1, 1, np.nan], np.float32)),
        "w_DequantizeLinear",
        "not a positive, normal",
    ),
    "subnormal": (replace("x_scale", np.float32(1e-40)), "x_QuantizeLinear", "not a positive, normal number"),
    "float64 scale": (replace("x_scale", np.float64(0.1)), "x_QuantizeLinear", "its scale is float64, not float32"),
    "computed scale": (compute_the_scale, "x_QuantizeLinear", "its scale is not a constant"),
    "shapes": (
        replace("w_zero_point", np.zeros(3, np.int8)),
        "w_DequantizeLinear",
        r"scale \(4,\) and zero point \(3,\) differ in shape",
    ),
    "constant": (quantize_a_constant, "x_QuantizeLinear", "it quantizes a constant at run time"),
    "repeated": (repeat_the_pair, "again", "it repeats the quantization of the tensor that it reads"),
    "bias scale": (
        replace("b_scale", np.full(4, 0.1, np.float32)),
        "a",
        r"the bias scale is not input scale \* weight scale",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_each_rule_is_checked(legal: ir.Model, name: str) -> None:
    break_it, where, message = BREAKS[name]
    break_it(legal)
    with pytest.raises(ModelError, match=f"the quantized graph is illegal: .*{message}") as caught:
        verify_qdq(legal)
    assert caught.value.where == where


def test_a_bias_has_no_zero_point(legal: ir.Model) -> None:
    node = legal.graph.node("b_DequantizeLinear")
    node.resize_inputs(3)
    node.replace_input_with(2, set_initializer(legal, "b_zero_point", np.array([0, 0, 1, 0], np.int32)))
    with pytest.raises(ModelError, match="an int32 tensor has a zero point other than 0") as caught:
        verify_qdq(legal)
    assert caught.value.where == "b_DequantizeLinear"
    set_initializer(legal, "b_zero_point", np.zeros(4, np.int32))
    verify_qdq(legal)


def test_a_second_pair_with_other_parameters_is_legal(legal: ir.Model) -> None:
    """Concat and Add read tensors at other scales than they write."""
    restore = legal.graph.node("r_DequantizeLinear")
    scale = set_initializer(legal, "other_scale", np.float32(0.5))
    again = ir.node("QuantizeLinear", [restore.outputs[0], scale, restore.inputs[2]], name="again")
    legal.graph.insert_after(restore, [again])
    verify_qdq(legal)


def test_a_float_bias_is_legal(legal: ir.Model) -> None:
    legal.graph.node("a").replace_input_with(2, set_initializer(legal, "float_bias", weights(4)))
    verify_qdq(legal)
