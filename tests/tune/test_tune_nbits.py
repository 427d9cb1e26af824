"""MatMulNBits and GatherBlockQuantized compute what dequantized weights do: ONNX Runtime's kernels are the oracle."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from small_models import parse, quantized, weights

import edgeq
from edgeq.affine import dequantize, pack, quantize
from edgeq.checks.lint import lint
from edgeq.graph import load_model
from edgeq.metrics import sqnr_db
from edgeq.qtypes import Decision, IntType, PerBlock, QParams, QuantPlan, Scheme, TensorSpec
from edgeq.runtime import run_model
from edgeq.stages.choose.weights import weight_qparams
from edgeq.stages.insert import insert_qdq
from edgeq.stages.tune.half import to_float16
from edgeq.stages.tune.nbits import use_nbits
from edgeq.target import TargetProfile, load_target


def shifted(qparams: QParams, seed: int = 0) -> QParams:
    """The same scales with zero points off the middle."""
    dtype = qparams.spec.dtype
    moved = qparams.zero_point.astype(np.int16) + np.random.default_rng(seed).integers(-1, 1, qparams.scale.shape)
    return QParams(qparams.scale, np.clip(moved, dtype.qmin, dtype.qmax).astype(dtype.dtype), qparams.spec)


def stored(model: ir.Model, name: str, node: str, qparams: QParams) -> ir.Model:
    plan = QuantPlan("toy", Scheme(4, None, 32), (Decision(name, "weight", (node,), "told to", qparams),))
    return insert_qdq(model, plan)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize(("block", "rows"), [(16, 64), (32, 100), (256, 70)])
def test_matmul_equals_the_product_with_dequantized_weights(
    bits: int, signed: bool, offset: bool, block: int, rows: int
) -> None:
    array = weights(rows, 24, seed=bits)
    model = parse(f"g (float[2,3,{rows}] x) => (float y) {{ y = MatMul(x, w) }}", w=array)
    qparams = weight_qparams(array, TensorSpec(IntType(bits, signed), True, PerBlock(0, block)))
    qparams = shifted(qparams) if offset else qparams
    fused = use_nbits(stored(model, "w", "y", qparams), 1)
    assert [node.op_type for node in fused.graph] == ["MatMulNBits"]
    assert fused.graph[0].name == "y"
    assert len(fused.graph[0].inputs) == (4 if offset else 3)
    fused.ir_version = 10
    x = weights(2, 3, rows, seed=9)
    exact = x.astype(np.float64) @ dequantize(quantize(array, qparams), qparams)
    assert sqnr_db(exact, run_model(fused, {"x": x})["y"]) > 120
    half = to_float16(fused, {})
    assert half.graph.initializers[str(half.graph[1].inputs[2].name)].dtype == ir.DataType.FLOAT16
    assert sqnr_db(exact, run_model(half, {"x": x})["y"]) > 60


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("offset", [False, True])
def test_gather_equals_rows_of_the_dequantized_table(bits: int, offset: bool) -> None:
    table = weights(40, 96)
    model = parse("g (int64[2,3] i) => (float y) { y = Gather(t, i) }", t=table)
    qparams = weight_qparams(table, TensorSpec(IntType(bits, True), True, PerBlock(1, 32)))
    qparams = shifted(qparams) if offset else qparams
    fused = use_nbits(stored(model, "t", "y", qparams), 0)
    assert [node.op_type for node in fused.graph] == ["GatherBlockQuantized"]
    rows = np.array([[0, 39, 7], [7, 1, 2]])
    found = run_model(fused, {"i": rows})["y"]
    np.testing.assert_array_equal(found, dequantize(quantize(table, qparams), qparams)[rows])


def test_levels_are_packed_the_first_in_the_lowest_bits() -> None:
    assert pack(np.uint8([1, 2, 3]), 4).tolist() == [0x21, 0x03]
    assert pack(np.uint8([1, 2, 3, 0, 1]), 2).tolist() == [0b00111001, 1]
    assert pack(np.uint8([7, 200]), 8).tolist() == [7, 200]


@pytest.fixture(scope="module")
def gpu() -> TargetProfile:
    return load_target("web-gpu")


def test_a_weight_only_package_holds_no_q_dq(gpu: TargetProfile) -> None:
    text = "g (int64[2,5] i) => (float y) { e = Gather(t, i) a = MatMul(e, w) b = Gelu(a) y = MatMul(b, v) }"
    model = parse(text, t=weights(1000, 64), w=weights(64, 96), v=weights(96, 64))
    chain = quantized(model, gpu, "w8")
    kinds = [node.op_type for node in chain.model.graph]
    assert kinds == ["GatherBlockQuantized", "MatMulNBits", "Gelu", "MatMulNBits", "Cast"]
    exact = run_model(model, chain.feed[0])["y"]
    assert sqnr_db(exact, chain.run(chain.feed[0])["y"]) > 35
    assert chain.plan.nodes["a"].kind == "integer"


def test_scales_lose_nothing_to_being_stored_in_float16(gpu: TargetProfile) -> None:
    model = parse("g (float[2,64] x) => (float y) { y = MatMul(x, w) }", w=weights(64, 32))
    (decision,) = quantized(model, gpu, "w4").plan.decisions
    assert decision.qparams is not None
    np.testing.assert_array_equal(decision.qparams.scale, decision.qparams.scale.astype(np.float16).astype(np.float32))


def test_rows_that_no_block_divides_stay_a_float_table(gpu: TargetProfile) -> None:
    model = parse("g (int64[2] i) => (float y) { y = Gather(t, i) }", t=weights(1000, 40))
    chain = quantized(model, gpu, "w8")
    assert not chain.plan.quantized
    assert "blocks" in chain.plan.nodes["y"].why


def test_a_block_that_the_kernel_does_not_take_leaves_the_layer_float(gpu: TargetProfile) -> None:
    model = parse("g (float[2,64] x) => (float y) { y = MatMul(x, w) }", w=weights(64, 32))
    chain = quantized(model, gpu, "w4_b16")
    assert not chain.plan.quantized
    assert "blocks of 16" in chain.plan.nodes["y"].why


def test_the_accuracy_level_is_the_profiles(gpu: TargetProfile) -> None:
    profile = msgspec.structs.replace(gpu, weights=msgspec.structs.replace(gpu.weights, accuracy_level=4))
    model = parse("g (float[2,64] x) => (float y) { y = MatMul(x, w) }", w=weights(64, 32))
    fused = next(n for n in quantized(model, profile, "w4").model.graph if n.op_type == "MatMulNBits")
    assert fused.attributes.get_int("accuracy_level") == 4


@pytest.mark.parametrize("precision", ["w4", "w8"])
def test_a_product_between_relu_and_another_product_is_no_float_one_on_the_cpu(precision: str, tmp_path: Path) -> None:
    """ONNX Runtime leaves T5's feed-forward layers alone where they are written as DequantizeLinear and MatMul."""
    model = parse(
        "g (float[1,6,64] x) => (float[1,6,64] y) { a = MatMul(x, v) r = Relu(a) b = MatMul(r, w) y = Add(b, x) }",
        v=weights(64, 64),
        w=weights(64, 64, seed=1),
    )
    feeds = [{"x": weights(1, 6, 64, seed=seed, scale=1.0)} for seed in range(4)]
    exported = edgeq.export(
        model,
        target="linux-x64",
        precision=precision,
        calibration=feeds,
        effort=0,
        measure=False,
        output=tmp_path / "package",
    )
    kernels = {place.node: place.runs_as for place in exported.report.placement}
    written = {str(node.name): node.op_type for node in load_model(exported.bundle.model).graph}
    products = [name for name, op in kernels.items() if op == "MatMulNBits"]
    assert len(products) == 2, kernels
    assert sorted(written[name] for name in products) == ["MatMul", "MatMulNBits"]
    assert exported.report.agreement == 1
    broken = lint(load_model(exported.bundle.model), load_target("linux-x64"))
    assert not [violation for violation in broken if violation.severity == "error"]
