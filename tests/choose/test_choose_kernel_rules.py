"""Kernels that take Relu before rounding, add biases in float, and give floats: only what they read is quantized."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from small_models import Chain, parse, quantized, weights

from edgeq.graph import constant_array
from edgeq.metrics import sqnr_db
from edgeq.runtime import run_model
from edgeq.target import TargetProfile, load_target

CONV = "Conv<pads=[1,1,1,1]>"


def explicit(*, absorption: str = "kernel", output: str = "optional") -> TargetProfile:
    """The rules of a provider with explicit quantization, such as TensorRT: s8, zero point 0, float biases."""
    base = load_target("linux-x64")
    kept = tuple(c for c in base.capability if c.kind == "compute" or "MaxPool" in c.ops)
    replace = msgspec.structs.replace
    return replace(
        base,
        activations=replace(base.activations, types={"8": "int8"}, symmetric=True, absorption=absorption),
        bias=replace(base.bias, mode="float"),
        capability=tuple(replace(c, output=output) if c.kind == "compute" else c for c in kept),
    )


def network() -> Chain:
    text = f"""g (float[1,3,8,8] x) => (float y, float z) {{
        a = {CONV}(x, w, b) r = Relu(a) c = {CONV}(r, w2, b2) d = Clip(c, one, six) t = Tanh(d)
        e = {CONV}(t, w2) f = MaxPool<kernel_shape=[2,2]>(e) y = {CONV}(f, w2) z = Sigmoid(e) }}"""
    rng = np.random.default_rng(3)
    constants = {
        "w": weights(8, 3, 3, 3),
        "w2": weights(8, 8, 3, 3, seed=1),
        "b": weights(8),
        "b2": weights(8, seed=2) + 2,
        "one": np.float32(1),
        "six": np.float32(6),
    }
    feed = [{"x": (rng.standard_normal((1, 3, 8, 8)) + 0.5).astype(np.float32)} for _ in range(4)]
    return quantized(parse(text, **constants), explicit(), feed=feed)


def test_any_constant_bounds_are_absorbed_by_a_kernel_that_clips_before_rounding() -> None:
    assert dict(network().layout.absorbed) == {"r": "a", "d": "c"}


def test_only_what_an_integer_kernel_reads_is_quantized() -> None:
    """No Q behind ``d`` (Tanh reads it) nor ``y``; ``z`` reads the floats of ``e``, MaxPool its integers."""
    chain = network()
    assert dict(chain.layout.activations) == {"x": ("a",), "r": ("c",), "t": ("e",), "e": ("f",), "f": ("y",)}
    readers = {node.name: node.inputs[0].producer().op_type for node in chain.model.graph if node.name in "tz"}
    assert readers == {"t": "Clip", "z": "Conv"}
    assert chain.model.graph.outputs[0].producer().op_type == "Conv"


def test_a_required_output_is_quantized_whoever_reads_it() -> None:
    model = parse(f"g (float[1,3,8,8] x) => (float y) {{ a = {CONV}(x, w) y = Tanh(a) }}", w=weights(8, 3, 3, 3))
    assert set(quantized(model, explicit(output="required")).layout.activations) == {"x", "a"}
    assert set(quantized(model, explicit()).layout.activations) == {"x"}


def test_biases_stay_float_and_are_corrected() -> None:
    chain = network()
    assert {value.dtype.name for value in chain.model.graph.initializers.values()} <= {"INT8", "FLOAT", "INT64"}
    biases = {d.consumers[0]: d for d in chain.plan.skipped}
    assert {d.skip_reason for d in biases.values()} == {"the target keeps biases in float"}
    for node in chain.model.graph:
        if node.name in biases:
            bias = constant_array(node.inputs[2])
            expected = chain.plan.weights[biases[node.name].tensor]
            assert bias.dtype == np.float32
            np.testing.assert_array_equal(bias, expected)
    moved = chain.plan.weights["b"] - weights(8)
    assert 0 < np.abs(moved).max() < 0.05


def test_zero_points_are_zero_and_no_relu_is_left_out_of_the_numbers() -> None:
    chain = network()
    for decision in chain.plan.quantized:
        assert decision.qparams is not None
        assert not decision.qparams.zero_point.any()
        assert decision.qparams.spec.dtype.name == "int8"
    for sample in chain.feed:
        exact, out = run_model(chain.shaped, sample), chain.run(sample)
        for name in exact:
            assert sqnr_db(exact[name], out[name]) > 25, name


@pytest.mark.parametrize(("op", "scale"), [("Softmax", 1 / 128), ("Tanh", 1 / 128)])
def test_half_of_the_levels_span_a_fixed_range(op: str, scale: float) -> None:
    """With ``[0, 1)`` in 128 levels, or ``[-1, 1)`` in 256: both steps are 1/128."""
    target = load_target("android-npu")
    target = msgspec.structs.replace(
        target, activations=msgspec.structs.replace(target.activations, types={"8": "int8"}, symmetric=True)
    )
    model = parse(f"g (float[4,8] x) => (float y) {{ a = Gemm(x, m) b = {op}(a) y = Gemm(b, m) }}", m=weights(8, 8))
    chain = quantized(model, target)
    (found,) = (d.qparams for d in chain.plan if d.tensor == "b")
    assert float(found.scale) == pytest.approx(scale, rel=1e-6)


def test_scales_are_powers_of_two_where_the_target_knows_no_others() -> None:
    target = load_target("linux-x64")
    replace = msgspec.structs.replace
    target = replace(
        target,
        activations=replace(target.activations, types={"8": "int8"}, symmetric=True, scale="power-of-two"),
        weights=replace(target.weights, scale="power-of-two"),
    )
    model = parse(
        f"g (float[1,3,8,8] x) => (float y) {{ a = {CONV}(x, w, b) c = Add(a, k) y = {CONV}(c, w2, huge) }}",
        w=weights(8, 3, 3, 3),
        w2=weights(8, 8, 3, 3, scale=1e-6),
        b=weights(8),
        k=weights(8, 1, 1),
        huge=np.full(8, 1e5, np.float32),  # raises the weight's scale, or it would not fit into 32 bits
    )
    chain = quantized(model, target)
    assert len(chain.plan.quantized) == 9
    for decision in chain.plan.quantized:
        assert decision.qparams is not None
        assert (np.frexp(decision.qparams.scale)[0] == 0.5).all(), decision.tensor
    assert any("raised" in decision.rule for decision in chain.plan)
    for sample in chain.feed:
        np.testing.assert_allclose(chain.run(sample)["y"], run_model(model, sample)["y"], rtol=0.02)


def test_8_bit_weights_of_products_leave_a_bit_where_products_saturate() -> None:
    target = load_target("linux-x64")
    target = msgspec.structs.replace(target, weights=msgspec.structs.replace(target.weights, reduce_range=True))
    text = "g (float[4,32] x) => (float y) { a = Gemm(x, m, b) c = Mul(a, k) y = MatMul(c, m) }"
    constants = {"m": weights(32, 32), "b": weights(32), "k": weights(32, seed=2)}
    chain = quantized(parse(text, **constants), target)
    stored = {name: value.const_value.numpy() for name, value in chain.model.graph.initializers.items()}
    integers = [array for name, array in stored.items() if "m_quantized" in name]
    assert integers
    assert all(array.min() >= -64 and array.max() <= 63 for array in integers)
    assert np.ptp(stored["k_quantized"].astype(int)) > 127  # no product of sums: all levels are used
    stored = quantized(parse(text, **constants), target, "w8").model.graph.initializers
    blocks = [value.const_value.numpy() for name, value in stored.items() if "quantized" in name]
    assert all(np.abs(array.astype(int)).max() > 64 for array in blocks)  # weight-only: nothing saturates
