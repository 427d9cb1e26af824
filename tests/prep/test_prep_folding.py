"""Folding into weights: BatchNormalization, affine operators, pads, transposed weights."""

from __future__ import annotations

import numpy as np
import pytest
from prep_models import apply, build, ints, normal, ops, positive, scalar

from edgeq.graph import constant_array
from edgeq.stages.prep.fold_affine import FoldAffine
from edgeq.stages.prep.fold_batch_norm import FoldBatchNorm
from edgeq.stages.prep.fold_pads import FoldPads
from edgeq.stages.prep.transpose_weights import TransposeWeights


def norm(channels: int) -> dict[str, np.ndarray]:
    return {"g": positive(channels), "b": normal(channels), "m": normal(channels), "v": positive(channels)}


BN = "BatchNormalization(c, g, b, m, v)"
IMAGE = "float[2,4,9,9] x => float[n,k,h,w2] y"

LAYERS = {
    "conv": (IMAGE, "c = Conv(x, w)", {"w": normal(6, 4, 3, 3)}, 6),
    "conv bias": (IMAGE, "c = Conv(x, w, d)", {"w": normal(6, 4, 3, 3), "d": normal(6)}, 6),
    "depthwise": (IMAGE, "c = Conv<group=4>(x, w, d)", {"w": normal(4, 1, 3, 3), "d": normal(4)}, 4),
    "transposed": (IMAGE, "c = ConvTranspose(x, w)", {"w": normal(4, 6, 3, 3)}, 6),
    "transposed groups": (
        IMAGE,
        "c = ConvTranspose<group=2, strides=[2,2]>(x, w, d)",
        {"w": normal(4, 3, 3, 3), "d": normal(6)},
        6,
    ),
    "gemm": ("float[2,5] x => float[n,k] y", "c = Gemm(x, w)", {"w": normal(5, 3)}, 3),
    "gemm alpha beta": (
        "float[2,5] x => float[n,k] y",
        "c = Gemm<transB=1, alpha=0.5, beta=2.0>(x, w, d)",
        {"w": normal(3, 5), "d": normal(1, 3)},
        3,
    ),
    "conv1d": ("float[2,4,9] x => float[n,k,l] y", "c = Conv(x, w)", {"w": normal(6, 4, 3)}, 6),
}


@pytest.mark.parametrize("case", LAYERS.values(), ids=LAYERS)
def test_batch_norm_goes_into_the_layer(case):
    signature, layer, constants, channels = case
    model = build(signature, f"{layer} y = {BN}", **constants, **norm(channels))
    assert apply(FoldBatchNorm(), model)
    assert "BatchNormalization" not in ops(model)


def test_batch_norm_takes_the_affine_before_it():
    body = "a = Mul(x, s) c = Add(a, o) y = " + BN
    model = build(IMAGE, body, s=normal(4, 1, 1), o=normal(1, 4, 1, 1), **norm(4))
    assert apply(FoldBatchNorm(), model)
    assert ops(model) == {"BatchNormalization": 1}


def test_batch_norm_keeps_an_affine_that_widens_its_input():
    model = build("float[2,1,9,9] x => float[n,k,h,w2] y", "c = Mul(x, s) y = " + BN, s=normal(4, 1, 1), **norm(4))
    assert not apply(FoldBatchNorm(), model)


@pytest.mark.parametrize(
    ("body", "signature"),
    [
        (f"c = Conv(x, w) y = {BN} z = Relu(c)", f"{IMAGE}, float[n,k,h,w2] z"),
        (f"c = Conv(x, w) y = {BN}", f"{IMAGE}, float[n,k,h,w2] c"),
        ("c = Conv(x, w) y, rm, rv = BatchNormalization<training_mode=1>(c, g, b, m, v)", IMAGE),
        ("w2 = Abs(x2) c = Conv(x, w2) y = " + BN, "float[2,4,9,9] x, float[6,4,3,3] x2 => float[n,k,h,w2] y"),
        ("g2 = Abs(x2) c = Conv(x, w) y = BatchNormalization(c, g2, b, m, v)", f"float[6] x2, {IMAGE}"),
        ("c = Relu(x) y = BatchNormalization(c, g4, b4, m4, v4)", IMAGE),
    ],
    ids=["second consumer", "graph output", "training", "computed weight", "computed scale", "no layer before"],
)
def test_batch_norm_stays(body, signature):
    four = {f"{key}4": array for key, array in norm(4).items()}
    model = build(signature, body, w=normal(6, 4, 3, 3), **norm(6), **four)
    if "training_mode" in body:
        assert not FoldBatchNorm()(model).modified
    else:
        assert not apply(FoldBatchNorm(), model)
    assert ops(model)["BatchNormalization"] == 1


def test_batch_norm_without_a_finite_scale_stays():
    constants = norm(6) | {"v": np.zeros(6, np.float32)}
    body = "c = Conv(x, w) y = BatchNormalization<epsilon=0.0>(c, g, b, m, v)"
    model = build(IMAGE, body, w=normal(6, 4, 3, 3), **constants)
    assert not FoldBatchNorm()(model).modified


def test_batch_norm_leaves_a_shared_weight_to_its_other_reader():
    body = f"c = Conv(x, w) d = Conv(x, w) e = {BN} y = Add(d, e)"
    weight = normal(6, 4, 3, 3)
    model = build(IMAGE, body, w=weight, **norm(6))
    assert apply(FoldBatchNorm(), model)
    first, second = (node for node in model.graph if node.op_type == "Conv")
    assert first.inputs[1] is not second.inputs[1]
    np.testing.assert_array_equal(constant_array(second.inputs[1]), weight)


AFFINE = {
    "mul": "y = Mul(c, s)",
    "mul constant first": "y = Mul(s, c)",
    "add": "y = Add(s, c)",
    "sub": "y = Sub(c, s)",
    "constant minus": "y = Sub(s, c)",
    "div": "y = Div(c, s)",
    "scalar": "y = Mul(c, t)",
    "chain": "e = Mul(c, s) f = Add(e, s) y = Div(f, t)",
}


@pytest.mark.parametrize("body", AFFINE.values(), ids=AFFINE)
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_affine_goes_into_conv(body, bias):
    layer = "c = Conv(x, w, d)" if bias else "c = Conv(x, w)"
    model = build(IMAGE, f"{layer} {body}", w=normal(6, 4, 3, 3), d=normal(6), s=positive(1, 6, 1, 1), t=scalar(2.5))
    assert apply(FoldAffine(), model)
    assert ops(model) == {"Conv": 1}


def test_affine_goes_into_gemm():
    body = "c = Gemm<beta=0.5>(x, w, d) e = Mul(c, s) y = Add(e, s)"
    model = build("float[2,5] x => float[n,k] y", body, w=normal(5, 3), d=normal(3), s=normal(3))
    assert apply(FoldAffine(), model)
    assert ops(model) == {"Gemm": 1}


@pytest.mark.parametrize("order", ["Add(c, d)", "Add(d, c)"])
def test_scale_goes_into_matmul_and_its_add_stays(order):
    body = f"c = MatMul(x, w) e = {order} f = Mul(e, s) y = Add(f, d)"
    model = build("float[b,7,5] x => float[b,7,k] y", body, w=normal(5, 3), d=normal(3), s=normal(3))
    assert apply(FoldAffine(), model)
    assert ops(model) == {"MatMul": 1, "Add": 1}


@pytest.mark.parametrize(
    ("body", "signature"),
    [
        ("c = Conv(x, w) y = Mul(c, p)", IMAGE),
        ("c = Conv(x, w) y = Mul(c, r5)", "float[2,4,9,9] x => float[a,b,c2,d2,e2] y"),
        ("c = Conv(x, w) y = Div(s, c)", IMAGE),
        ("c = Conv(x, w) y = Mul(c, s) z = Relu(c)", f"{IMAGE}, float[n,k,h,w2] z"),
        ("c = Conv(x, w) y = Mul(c, s)", f"{IMAGE}, float[n,k,h,w2] c"),
        ("c = Conv(x, w) y = Mul(c, c)", IMAGE),
        ("c = Conv(x, w1) y = Mul(c, s)", IMAGE),
        ("c = MatMul(x, q) y = Add(c, p)", IMAGE),
        ("c = MatMul(x, q) y = Mul(c, s)", IMAGE),
    ],
    ids=[
        "varies in space",
        "adds a dimension",
        "constant over layer",
        "second consumer",
        "graph output",
        "two activations",
        "one channel made six",
        "bias of a MatMul",
        "wrong axis of a MatMul",
    ],
)
def test_affine_stays(body, signature):
    constants = {"s": positive(1, 6, 1, 1), "p": normal(7), "r5": normal(1, 1, 6, 1, 1), "q": normal(9, 7)}
    if "MatMul" in body:
        constants["s"] = positive(1, 4, 1, 1)
    model = build(signature, body, w=normal(6, 4, 3, 3), w1=normal(1, 4, 3, 3), **constants)
    before = ops(model)
    assert not apply(FoldAffine(), model)
    assert ops(model) == before


def test_affine_that_would_overflow_stays():
    big = np.full((1, 6, 1, 1), 3e38, np.float32)
    model = build(IMAGE, "c = Conv(x, w) y = Mul(c, s)", w=np.full((6, 4, 3, 3), 10, np.float32), s=big)
    assert not FoldAffine()(model).modified


PADS = ints(0, 0, 1, 2, 0, 0, 2, 1)


@pytest.mark.parametrize(
    ("body", "pads"),
    [
        ("p = Pad(x, pads) y = Conv(p, w)", [1, 2, 2, 1]),
        ("p = Pad(x, pads, zero) y = Conv<pads=[1,1,1,1]>(p, w)", [2, 3, 3, 2]),
        ("p = Pad(x, short, zero, axes) y = Conv(p, w)", [1, 2, 3, 4]),
        ('p = Pad(x, pads) y = Conv<auto_pad="VALID">(p, w)', [1, 2, 2, 1]),
        ("p = Pad(x, pads, low) y = MaxPool<kernel_shape=[3,3]>(p)", [1, 2, 2, 1]),
        ("p = Pad(x, pads) y = AveragePool<kernel_shape=[3,3]>(p)", [1, 2, 2, 1]),
        ("p = Pad(x, pads) y = AveragePool<kernel_shape=[4,4], pads=[1,1,1,1], count_include_pad=1>(p)", [2, 3, 3, 2]),
    ],
    ids=["conv", "conv with pads", "axes", "valid", "max pool", "average pool", "average pool with pads"],
)
def test_pad_is_folded(body, pads):
    constants = {"pads": PADS, "short": ints(1, 2, 3, 4), "axes": ints(-2, 3)}
    constants |= {"zero": scalar(0), "low": scalar(-np.inf), "w": normal(6, 4, 3, 3)}
    model = build(IMAGE, body, **constants)
    assert apply(FoldPads(), model)
    (node,) = model.graph
    assert list(node.attributes.get_ints("pads")) == pads


@pytest.mark.parametrize(
    "body",
    [
        "p = Pad(x, pads, one) y = Conv(p, w)",
        'p = Pad<mode="reflect">(x, pads) y = Conv(p, w)',
        "p = Pad(x, negative) y = Conv(p, w)",
        "p = Pad(x, channels) y = Conv(p, w5)",
        'p = Pad(x, pads) y = Conv<auto_pad="SAME_UPPER">(p, w)',
        "p = Pad(x, pads) q = Conv(p, w) r = Conv(p, w) y = Add(q, r)",
        "p = Pad(x, pads, zero) y = MaxPool<kernel_shape=[3,3]>(p)",
        "p = Pad(x, pads, low) y = MaxPool<kernel_shape=[2,2]>(p)",
        "p = Pad(x, pads) y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(p)",
        "p = Pad(x, pads) y = AveragePool<kernel_shape=[3,3], ceil_mode=1, strides=[2,2]>(p)",
    ],
    ids=[
        "value",
        "reflect",
        "negative",
        "channels",
        "same",
        "two readers",
        "zeros for max",
        "pad not below window",
        "pads that do not count",
        "ceil",
    ],
)
def test_pad_stays(body):
    constants = {"pads": PADS, "negative": ints(0, 0, -1, 1, 0, 0, 1, 1), "channels": ints(0, 1, 0, 0, 0, 0, 0, 0)}
    constants |= {"zero": scalar(0), "one": scalar(1), "low": scalar(-np.inf)}
    model = build(IMAGE, body, **constants, w=normal(6, 4, 3, 3), w5=normal(6, 5, 3, 3))
    assert not apply(FoldPads(), model)
    assert ops(model)["Pad"] == 1


def test_pad_that_is_an_output_stays():
    signature = "float[2,4,9,9] x => float[n,k,h,w2] y, float[n,k2,h2,w3] p"
    model = build(signature, "p = Pad(x, pads) y = Conv(p, w)", pads=PADS, w=normal(6, 4, 3, 3))
    assert not apply(FoldPads(), model)


def test_transposed_weight_is_stored_as_it_is_multiplied():
    weight = normal(3, 5)
    model = build("float[2,5] x => float[n,k] y", "y = Gemm<transB=1>(x, w, d)", w=weight, d=normal(3))
    assert apply(TransposeWeights(), model)
    (node,) = model.graph
    assert node.attributes.get_int("transB", 0) == 0
    np.testing.assert_array_equal(constant_array(node.inputs[1]), weight.T)


def test_shared_transposed_weight_is_copied():
    body = "a = Gemm<transB=1>(x, w) y = Gemm(a, w)"
    model = build("float[2,5] x => float[n,k] y", body, w=normal(3, 5))
    assert apply(TransposeWeights(), model)
    first, second = model.graph
    assert first.inputs[1] is not second.inputs[1]


def test_computed_transposed_weight_stays():
    model = build("float[2,5] x, float[3,5] w => float[n,k] y", "y = Gemm<transB=1>(x, w)")
    assert not apply(TransposeWeights(), model)
