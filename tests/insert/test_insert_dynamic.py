"""Activations whose range is found at run time: the numbers against numpy, and what stands in the graph."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from small_models import Chain, parse, quantized, weights

from edgeq.affine import dequantize, quantize
from edgeq.qtypes import Decision
from edgeq.revise import with_bias
from edgeq.runtime import run_model
from edgeq.stages.insert import insert_qdq

GEMM = "g (float[6,32] x) => (float[6,16] y) { y = Gemm<transB=1>(x, t, b) }"
MATMUL = "g (float[2,6,32] x) => (float[2,6,16] y) { m = MatMul(x, k) y = Add(m, b) }"
CONSTANTS = {"t": weights(16, 32, seed=1), "k": weights(32, 16, seed=2), "b": weights(16, seed=3)}


def chain(text: str, target: str = "linux-x64", scheme: str = "w8a8_dynamic", **more: object) -> Chain:
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {name: array for name, array in {**CONSTANTS, **more}.items() if name in words}
    return quantized(parse(text, **used), target, scheme)


def ranged(x: np.ndarray) -> np.ndarray:
    """What DynamicQuantizeLinear-11 makes of ``x``, dequantized: uint8 over the range that holds zero."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = np.float32((np.float32(high) - np.float32(low)) / np.float32(255))
    zero = np.clip(np.rint(-np.float32(low) / scale), 0, 255)
    levels = np.clip(np.rint(x / scale) + zero, 0, 255)
    return ((levels - zero) * scale).astype(np.float32)


def weight(made: Chain, name: str) -> np.ndarray:
    decision: Decision = next(d for d in made.plan if d.tensor == name and d.role == "weight")
    assert decision.qparams is not None
    array = made.plan.weights.get(name, CONSTANTS[name])
    return dequantize(quantize(array, decision.qparams), decision.qparams)


@pytest.mark.parametrize("optimization", ["none", "all"])
@pytest.mark.parametrize("target", ["linux-x64", "linux-x64@avx2", "android", "web"])
@pytest.mark.parametrize(("text", "name"), [(GEMM, "t"), (MATMUL, "k")])
def test_the_numbers_are_those_of_the_definition(text: str, name: str, target: str, optimization: str) -> None:
    made = chain(text, target)
    matrix = weight(made, name)
    for sample in made.feed:
        right = ranged(sample["x"]) @ (matrix.T if name == "t" else matrix) + CONSTANTS["b"]
        np.testing.assert_allclose(made.run(sample, optimization)["y"], right, rtol=0, atol=1e-5 * np.abs(right).max())


def test_a_plan_without_data_says_what_it_does() -> None:
    made = chain(MATMUL)
    activation = next(d for d in made.plan if d.role == "activation")
    assert (activation.tensor, activation.consumers) == ("x", ("m",))
    assert activation.skip_reason == "its range is found at run time"
    assert made.plan.dynamic == {"m"}
    assert made.plan.nodes["m"].kind == "integer"
    assert not made.layout.calibrated
    assert made.layout.observed == ("x",)
    assert made.layout.channel_axes(made.shaped) == {"x": 2}


def test_a_corrected_bias_is_the_one_that_is_added() -> None:
    made = chain(GEMM)
    shifted = CONSTANTS["b"] + np.float32(3)
    plan = with_bias(made.plan, made.shaped, "y", shifted, mode="int32")
    for sample in made.feed:
        right = made.run(sample)["y"] + 3
        found = run_model(insert_qdq(made.shaped, plan), sample, optimization="none")["y"]
        np.testing.assert_allclose(found, right, rtol=0, atol=1e-5)


def test_pairs_of_weights_do_not_saturate_where_products_are_added_in_16_bits() -> None:
    heavy = np.full((32, 16), 0.5, np.float32)
    made = chain("g (float[4,32] x) => (float[4,16] y) { y = MatMul(x, heavy) }", "linux-x64@avx2", heavy=heavy)
    stored = next(v for name, v in made.model.graph.initializers.items() if name.startswith("heavy_quantized"))
    levels = stored.const_value.numpy().astype(int)  # type: ignore[union-attr]
    assert (levels[0::2] + levels[1::2]).max() <= 128


def test_readers_share_one_range_and_one_stored_weight() -> None:
    text = "g (float[4,32] x) => (float y, float z) { y = MatMul(x, k) h = Relu(x) z = MatMul(h, k) }"
    made = chain(text)
    ops = Counter(node.op_type for node in made.model.graph)
    assert ops["DynamicQuantizeLinear"] == 2
    assert ops["MatMulInteger"] == 2
    assert sum(v.const_value.nbytes for v in made.model.graph.initializers.values() if v.shape == [32, 16]) == 512  # type: ignore[union-attr]
    again = chain("g (float[4,32] x) => (float y, float z) { y = MatMul(x, k) z = MatMul(x, k) }")
    assert Counter(node.op_type for node in again.model.graph)["DynamicQuantizeLinear"] == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g (float[4,8] x) => (float y) { y = Relu(x) }", "no integer kernel for Relu in w8a8_dynamic"),
        ("g (float[4,4] x) => (float y) { y = MatMul(x, x) }", "both operands are activations"),
        ("g (float[6,32] x) => (float y) { y = Gemm<transB=1, alpha=2.0>(x, t, b) }", "alpha or beta"),
        ("g (float[32,6] x) => (float y) { y = Gemm<transA=1, transB=1>(x, t, b) }", "is transposed"),
    ],
)
def test_what_stays_float_says_why(text: str, reason: str) -> None:
    made = chain(text)
    assert not made.layout.integer
    assert reason in made.layout.reasons["y"]
