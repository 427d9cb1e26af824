"""float16 graphs: legal by ONNX's checker, close to float32 on ONNX Runtime, float32 at the border and on islands."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_models import parse, quantized, samples, weights

from edgeq.float16 import half_form, half_scale, lost, to_float32, to_half
from edgeq.graph import to_bytes
from edgeq.metrics import sqnr_db
from edgeq.runtime import run_model
from edgeq.stages.tune.half import to_float16


def halved(model: ir.Model, *islands: str) -> ir.Model:
    """The float16 form, checked: every type is consistent, as ONNX infers it."""
    half = to_float16(model.clone(), dict.fromkeys(islands, "told to"))
    proto = onnx.load_from_string(to_bytes(half))
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    onnx.checker.check_model(proto)
    return half


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def closeness(model: ir.Model, half: ir.Model) -> float:
    found = []
    for sample in samples(model):
        exact, rounded = run_model(model, sample), run_model(half, sample)
        assert {name: array.dtype for name, array in exact.items()} == {n: a.dtype for n, a in rounded.items()}
        found += [sqnr_db(exact[name], rounded[name]) for name in exact]
    return min(found)


NETWORK = (
    "g (float[1,3,8,8] x) => (float y) { a = Conv<pads=[1,1,1,1]>(x, w, b) c = Relu(a) d = Add(c, c) y = Tanh(d) }"
)


def network() -> ir.Model:
    return parse(NETWORK, w=weights(4, 3, 3, 3), b=weights(4))


def test_a_network_becomes_float16_between_two_casts() -> None:
    model = network()
    half = halved(model)
    assert ops(half) == ["Cast", "Conv", "Relu", "Add", "Tanh", "Cast"]
    assert {value.dtype for value in half.graph.initializers.values()} == {ir.DataType.FLOAT16}
    assert set(half.graph.initializers) == {"w", "b"}
    assert [v.dtype for v in (*half.graph.inputs, *half.graph.outputs)] == [ir.DataType.FLOAT] * 2
    assert [v.name for v in half.graph.outputs] == ["y"]
    assert 55 < closeness(model, half) < 100


def test_an_island_is_cast_once_whoever_reads_it() -> None:
    half = halved(network(), "c")
    assert ops(half) == ["Cast", "Conv", "Cast", "Relu", "Cast", "Add", "Tanh", "Cast"]
    (relu,) = (node for node in half.graph if node.op_type == "Relu")
    assert relu.outputs[0].dtype == ir.DataType.FLOAT


def test_a_weight_that_both_read_is_stored_in_both_types() -> None:
    model = parse("g (float[2,4] x) => (float y) { a = MatMul(x, w) y = MatMul(a, w) }", w=weights(4, 4))
    half = halved(model, "a")
    assert sorted(v.dtype.name for v in half.graph.initializers.values()) == ["FLOAT", "FLOAT16"]
    assert half.graph.initializers["w"].dtype == ir.DataType.FLOAT
    assert closeness(model, half) > 55


def test_no_cast_follows_a_cast() -> None:
    text = "g (int64[2,4] i, float[2,4] x) => (float y, float z) { m = Cast<to=1>(i) y = Mul(m, x) z = Add(m, x) }"
    half = halved(parse(text), "z")
    for node in half.graph:
        source = node.inputs[0].producer() if node.op_type == "Cast" else None
        assert source is None or source.op_type != "Cast", f"{node.name} casts what was cast"
    assert closeness(parse(text), half) > 55


def test_an_output_that_is_read_too_keeps_its_name() -> None:
    model = parse("g (float[2,4] x) => (float y, float z) { y = Tanh(x) z = Exp(y) }")
    half = halved(model)
    assert [v.name for v in half.graph.outputs] == ["y", "z"]
    assert closeness(model, half) > 55


def test_scales_of_resize_and_boxes_stay_float32() -> None:
    text = 'g (float[1,2,4,4] x) => (float y) { a = Relu(x) y = Resize<mode="linear">(a, "", s) }'
    scales = np.array([1, 1, 2, 2], np.float32)
    half = halved(parse(text.replace('""', ""), s=scales))
    assert half.graph.initializers["s"].dtype == ir.DataType.FLOAT
    text = (
        "g (float[1,6,4] b, float[1,1,6] c) => (int64[n,3] y) { s = Sigmoid(c) y = NonMaxSuppression(b, s, m, t, t) }"
    )
    half = halved(parse(text, m=np.array([3]), t=np.array([0.3], np.float32)))
    assert ops(half) == ["Cast", "Sigmoid", "Cast", "NonMaxSuppression"]


def test_subgraphs_stay_float32_and_read_casts() -> None:
    text = """g (bool c, float[4] x) => (float y) { a = Exp(x)
        b = If(c) <then_branch = t () => (float[4] p) { p = Add(a, k) },
                   else_branch = e () => (float[4] q) { q = Neg(a) }>
        y = Tanh(b) }"""
    model = parse(text, k=weights(4))
    half = halved(model)
    assert half.graph.initializers["k"].dtype == ir.DataType.FLOAT
    assert ops(half) == ["Cast", "Exp", "Cast", "If", "Cast", "Tanh", "Cast"]
    assert closeness(model, half) > 55


def test_types_that_attributes_set_follow() -> None:
    model = parse(
        "g (float[2,3] x) => (float y) { s = Shape(x) z = ConstantOfShape<value = float[1] {2.5}>(s) y = Add(x, z) }"
    )
    assert closeness(model, halved(model)) > 55


def test_masks_become_finite_and_hide_as_well() -> None:
    mask = np.where(np.eye(4) > 0, 0, np.finfo(np.float32).min).astype(np.float32)
    model = parse("g (float[4,4] x) => (float y) { a = Add(x, m) b = Add(a, m) y = Softmax(b) }", m=mask)
    for sample in samples(model):
        sample = {"x": sample["x"] - 40}
        found = run_model(halved(model), sample)["y"]
        np.testing.assert_allclose(found, run_model(model, sample)["y"], atol=1e-3)


@pytest.mark.parametrize(
    ("value", "consumers", "kept"),
    [
        (1e5, (), 65504),
        (-1e5, (), -65504),
        (3.4e38, (), 32752),
        (3.4e38, ("Clip",), 65504),
        (-3.4e38, ("Add", "Clip"), -32752),
        (np.inf, (), np.inf),
        (2049, (), 2048),
        (2051, (), 2052),
        (1e-9, (), 0),
    ],
)
def test_numbers_beyond_float16(value: float, consumers: tuple[str, ...], kept: float) -> None:
    assert float(to_half(np.float32([value]), frozenset(consumers))[0]) == kept


def test_what_is_lost_is_told_of_the_largest_or_of_each() -> None:
    assert lost(np.float32([1.0, 1e-9])) < 1e-3
    assert lost(np.float32([1.0, 1e-9]), each=True) == 1.0
    assert lost(np.float32([1e-5]), each=True) < 0.01 < lost(np.float32([1e-12]), each=True)
    assert lost(np.float32([-3.4e38, 0])) == 0.0
    assert lost(np.float32([1e6])) > 0.9


def test_scales_are_exact_in_float16() -> None:
    scale = half_scale(np.float32([1e-9, 1e-4, 0.0123456, 3.0]))
    np.testing.assert_array_equal(scale, scale.astype(np.float16).astype(np.float32))
    assert scale[0] == 2.0**-14
    np.testing.assert_allclose(scale[1:], [1e-4, 0.0123456, 3.0], rtol=2**-11)


def test_operators_say_why_they_have_no_float16_form() -> None:
    model = parse(
        "g (float[4] x, float s) => (float y, float z, float w) "
        "{ y = Range(s, s, s) z = RandomNormalLike(x) w = toy.Custom(x) }"
    )
    reasons = [half_form(node, 21) for node in model.graph]
    assert reasons[0] == "ONNX has no Range in float16"
    assert "sets its type" in str(reasons[1])
    assert "outside ONNX" in str(reasons[2])


def test_widening_gives_back_a_float32_graph_with_the_same_numbers() -> None:
    half = halved(network())
    wide = half.clone()
    assert to_float32(wide)
    assert not to_float32(wide)
    assert not any(v.dtype == ir.DataType.FLOAT16 for node in wide.graph for v in node.outputs)
    np.testing.assert_array_equal(
        wide.graph.initializers["w"].const_value.numpy(),
        half.graph.initializers["w"].const_value.numpy().astype(np.float32),
    )
    assert closeness(half, wide) > 55


@pytest.mark.parametrize("scheme", ["w8", "w4"])
def test_weights_that_stay_behind_q_dq_have_float16_scales(scheme: str) -> None:
    model = parse("g (float[2,64] x) => (float y) { a = MatMul(x, w) y = Abs(a) }", w=weights(64, 8))
    chain = quantized(model, "linux-x64", scheme)
    half = halved(chain.model)
    (restore,) = (node for node in half.graph if node.op_type == "DequantizeLinear")
    assert restore.inputs[1].dtype == restore.outputs[0].dtype == ir.DataType.FLOAT16
    assert closeness(chain.model, half) > 50


def test_integer_activations_and_biases_stay_exact_between_casts() -> None:
    model = parse(NETWORK, w=weights(4, 3, 3, 3), b=weights(4))
    chain = quantized(model)
    half = halved(chain.model)
    for node in half.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.inputs[0].producer() is not None:
            assert node.inputs[1].dtype == ir.DataType.FLOAT
