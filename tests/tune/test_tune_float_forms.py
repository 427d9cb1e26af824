"""Rewrites of the float graph keep its outputs, bit for bit where the arithmetic is the same."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from small_models import parse, quantized, samples, weights

from edgeq.qtypes import Scheme
from edgeq.runtime import run_model
from edgeq.stages.run.placement import read_placement
from edgeq.stages.tune import finish, shape_float
from edgeq.stages.tune.float_forms import FINITE_MASK
from edgeq.target import TargetProfile, load_target

W8A8, W4 = Scheme.parse("w8a8"), Scheme.parse("w4")


@pytest.fixture(scope="module")
def cpu() -> TargetProfile:
    return load_target("linux-x64")


def with_graph(target: TargetProfile, **changes: object) -> TargetProfile:
    return msgspec.structs.replace(target, graph=msgspec.structs.replace(target.graph, **changes))


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def same_outputs(before: ir.Model, after: ir.Model, tolerance: float = 1e-6) -> None:
    assert [v.name for v in after.graph.outputs] == [v.name for v in before.graph.outputs]
    for sample in samples(before):
        old, new = run_model(before, sample), run_model(after, sample)
        for name, array in old.items():
            np.testing.assert_allclose(new[name], array, rtol=tolerance, atol=tolerance)


# -- guarded bias

RANKS = {2: "float[4,64]", 3: "float[2,4,64]", 4: "float[1,2,4,64]"}
BIASES = {"N": (16,), "1xN": (1, 16), "1x1xN": (1, 1, 16)}


def linear(rank: int, bias: np.ndarray, *, swapped: bool = False) -> ir.Model:
    add = "Add(b, h)" if swapped else "Add(h, b)"
    text = f"g ({RANKS[rank]} x) => (float y) {{ h = MatMul(x, w) k = {add} y = MatMul(k, v) }}"
    model = parse(text, w=weights(64, 16), b=bias, v=weights(16, 8))
    for value in model.graph.outputs:
        value.shape = ir.Shape([*(int(d) for d in RANKS[rank][6:-1].split(",")[:-1]), 8])
    return model


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("shape", BIASES.values(), ids=BIASES)
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("scheme", [W8A8, W4], ids=lambda s: s.name)
def test_a_guarded_bias_keeps_outputs_and_fuses(
    cpu: TargetProfile, scheme: Scheme, rank: int, shape: tuple[int, ...], swapped: bool
) -> None:
    model = linear(rank, weights(*shape, seed=1), swapped=swapped)
    shaped = shape_float(model, cpu, scheme)
    same_outputs(model, shaped)
    if len(shape) > rank:
        assert ops(shaped) == ops(model)  # [1, 1, N] lifts a product of rank 2: left alone
        return
    placed = {n.node: n.runs_as for n in read_placement(quantized(model, cpu, scheme.name).model).nodes}
    assert "Gemm" not in placed.values()
    assert placed["h"] == ("MatMulNBits" if scheme is W4 else "QGemm" if rank == 2 else "QLinearMatMul")


def test_forms_by_rank(cpu: TargetProfile) -> None:
    flat = weights(16)
    assert ops(shape_float(linear(2, flat), cpu, W8A8)) == ["Gemm", "MatMul"]
    assert ops(shape_float(linear(2, flat), cpu, W4)) == ["MatMul", "Sub", "MatMul"]
    high = shape_float(linear(4, flat), cpu, W8A8)
    assert ops(high) == ["MatMul", "Add", "MatMul"]
    (bias,) = (v for v in high.graph.node("k").inputs if v.producer() is None)
    assert tuple(bias.shape) == (1, 1, 1, 16)


@pytest.mark.parametrize(
    "bias", [np.float32(2), weights(1), weights(4, 1), weights(4, 16)], ids=["scalar", "one", "per row", "full"]
)
@pytest.mark.parametrize("scheme", [W8A8, W4], ids=lambda s: s.name)
def test_what_is_no_bias_per_column_is_left_alone(cpu: TargetProfile, scheme: Scheme, bias: np.ndarray) -> None:
    model = linear(2, bias)
    shaped = shape_float(model, cpu, scheme)
    assert ops(shaped) == ops(model)
    same_outputs(model, shaped, 0)


def test_a_scalar_added_to_a_single_column(cpu: TargetProfile) -> None:
    model = parse(
        "g (float[4,8] x) => (float[4,1] y) { h = MatMul(x, w) y = Add(h, b) }", w=weights(8, 1), b=np.float32(2)
    )
    same_outputs(model, shape_float(model, cpu, W8A8))


@pytest.mark.parametrize(
    "body",
    [
        "h = MatMul(x, w) k = Add(h, b) y = Add(k, h)",  # the product has another reader
        "h = MatMul(x, w) y = Add(h, h)",
        "h = MatMul(x, w) y = Mul(h, b)",
        "k = Relu(b) h = MatMul(x, w) y = Add(h, k)",  # computed
    ],
)
def test_other_patterns_are_left_alone(cpu: TargetProfile, body: str) -> None:
    constants = {"w": weights(8, 8)} | ({"b": weights(8)} if "b" in body.replace("MatMul", "") else {})
    model = parse(f"g (float[4,8] x) => (float[4,8] y) {{ {body} }}", **constants)
    assert ops(shape_float(model, cpu, W8A8)) == ops(model)


def test_a_product_that_is_an_output_keeps_its_name(cpu: TargetProfile) -> None:
    model = parse(
        "g (float[4,8] x) => (float[4,8] h, float[4,8] y) { h = MatMul(x, w) y = Add(h, b) }",
        w=weights(8, 8),
        b=weights(8),
    )
    same_outputs(model, shape_float(model, cpu, W8A8), 0)


def test_the_model_is_left_as_it_was(cpu: TargetProfile) -> None:
    model = linear(2, weights(16))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    shape_float(model, with_graph(cpu, masks="finite"), W4)
    shape_float(model, cpu, W8A8)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_as_is_leaves_linear_layers(cpu: TargetProfile) -> None:
    model = linear(2, weights(16))
    assert ops(shape_float(model, with_graph(cpu, linear="as-is"), W8A8)) == ops(model)


# -- Gemm to MatMul for weight-only


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias", [None, (8,), (1, 8), (4, 8), (4, 1), ()], ids=str)
def test_gemm_becomes_matmul(cpu: TargetProfile, trans_b: int, bias: tuple[int, ...] | None) -> None:
    constants = {"w": weights(8, 64) if trans_b else weights(64, 8)}
    if bias is not None:
        constants["b"] = np.asarray(weights(*bias, seed=1))
    third = ", b" if bias is not None else ""
    model = parse(f"g (float[4,64] x) => (float[4,8] y) {{ y = Gemm<transB={trans_b}>(x, w{third}) }}", **constants)
    shaped = shape_float(model, cpu, W4)
    assert ops(shaped)[0] == "MatMul"
    assert "Gemm" not in ops(shaped)
    same_outputs(model, shaped)
    assert ops(shape_float(model, cpu, W8A8)) == ["Gemm"]


@pytest.mark.parametrize("attribute", ["alpha=0.5", "beta=0.5", "transA=1"])
def test_a_scaled_gemm_is_left_alone(cpu: TargetProfile, attribute: str) -> None:
    model = parse(
        f"g (float[64,64] x) => (float[64,8] y) {{ y = Gemm<{attribute}>(x, w, b) }}", w=weights(64, 8), b=weights(8)
    )
    shaped = shape_float(model, cpu, W4)
    assert ops(shaped) == ["Gemm"]
    same_outputs(model, shaped, 0)


def test_two_layers_may_share_one_weight_and_one_bias(cpu: TargetProfile) -> None:
    model = parse(
        "g (float[4,64] x) => (float[4,64] y) { h = Gemm<transB=1>(x, w, b) y = Gemm(h, w, b) }",
        w=weights(64, 64),
        b=weights(64),
    )
    for scheme in (W4, W8A8):
        same_outputs(model, shape_float(model, cpu, scheme), 1e-5)


# -- masks


def test_masks_become_finite_where_the_target_asks_for_it(cpu: TargetProfile) -> None:
    lowest = np.finfo(np.float32).min
    text = """g (bool[1,1,4,4] keep, float[1,1,4,4] x) => (float[1,1,4,4] y) {
        mask = Where(keep, none, low) s = Add(x, mask) y = Softmax<axis=-1>(s) }"""
    model = parse(text, none=np.float32(0), low=np.array([lowest], np.float32))
    kept = shape_float(model, cpu, W8A8)
    assert kept.graph.initializers["low"].const_value.numpy()[0] == lowest
    finite = shape_float(model, with_graph(cpu, masks="finite"), W8A8)
    assert finite.graph.initializers["low"].const_value.numpy()[0] == FINITE_MASK
    assert model.graph.initializers["low"].const_value.numpy()[0] == lowest
    sample = {"x": weights(1, 1, 4, 4), "keep": np.tri(4, dtype=bool)[None, None]}
    np.testing.assert_allclose(run_model(finite, sample)["y"], run_model(model, sample)["y"], atol=1e-20)


@pytest.mark.parametrize("low", [np.finfo(np.float32).min, -np.inf])
@pytest.mark.parametrize("body", ["y = Clip(x, low)", "y = Max(x, low)", "y = Pad(x, pads, low)"])
def test_a_bound_is_no_mask(cpu: TargetProfile, body: str, low: float) -> None:
    constants = {"low": np.float32(low)} | ({"pads": np.array([1, 1], np.int64)} if "pads" in body else {})
    model = parse(f"g (float[4] x) => (float[N] y) {{ {body} }}", **constants)
    shaped = shape_float(model, with_graph(cpu, masks="finite"), W8A8)
    sample = {"x": np.array([-1e6, -60, 0, 5], np.float32)}
    np.testing.assert_array_equal(run_model(shaped, sample)["y"], run_model(model, sample)["y"])


@pytest.mark.parametrize(
    "body",
    [
        "m = Where(keep, x, low) y = ReduceMax<keepdims=0>(m, axis)",
        "m = Where(keep, x, low) y = Identity(m)",
        "m = Where(keep, x, low) s = Softmax<axis=-1>(m) r = Relu(m) y = Sub(s, r)",
    ],
)
def test_a_mask_that_something_else_sees_stays_what_it_is(cpu: TargetProfile, body: str) -> None:
    """Masked max pooling of numbers below -50 would find the mask to be the largest."""
    model = parse(
        f"g (bool[4,1] keep, float[4,8] x) => (float y) {{ {body} }}",
        low=np.float32(np.finfo(np.float32).min),
        axis=np.array([0], np.int64),
    )
    sample = {"x": weights(4, 8) - 100, "keep": np.array([[True], [True], [False], [False]])}
    shaped = shape_float(model, with_graph(cpu, masks="finite"), W8A8)
    np.testing.assert_array_equal(run_model(shaped, sample)["y"], run_model(model, sample)["y"])


# -- finish


@pytest.mark.parametrize(
    ("scheme", "opset", "ir_version"), [("w8a8", 21, 10), ("w8", 21, 10), ("w4", 21, 10), ("w2", 25, 13)]
)
def test_finish_stamps_what_the_types_need(cpu: TargetProfile, scheme: str, opset: int, ir_version: int) -> None:
    chain = quantized(linear(2, weights(16)), cpu, scheme)
    assert chain.model.opset_imports[""] == opset
    assert chain.model.ir_version == ir_version
    assert chain.model.producer_name == "edgeq"
    for optimization in ("none", "all"):  # ONNX Runtime loads it either way
        assert np.isfinite(chain.run(chain.feed[0], optimization)["y"]).all()


def test_a_newer_opset_is_kept(cpu: TargetProfile) -> None:
    model = parse("g (float[4] x) => (float[4] y) { y = Relu(x) }", opset=25)
    finished = finish(model, cpu, W8A8)
    assert finished.opset_imports[""] == 25
    assert finished.ir_version >= 13
    assert run_model(finished, {"x": weights(4)})["y"].shape == (4,)


def test_other_domains_keep_their_version(cpu: TargetProfile) -> None:
    model = parse("g (float[4] x) => (float[4] y) { y = Relu(x) }")
    assert finish(model, cpu, W8A8).opset_imports["com.microsoft"] == 1
