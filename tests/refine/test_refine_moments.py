"""Moments and weight matrices against ONNX Runtime's own products, operator by operator."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_models import parse, weights

from edgeq.runtime import run_model
from edgeq.stages.refine.rounding import Moments, bias_shift, observe, quadratic, refusal, restore_weight, weight_matrix

LAYERS = {
    "strides, pads, dilations, groups": (
        "Conv<strides=[2,1], pads=[1,0,2,1], dilations=[1,2], group=2>(x, w)",
        (2, 4, 9, 11),
        (6, 2, 3, 3),
    ),
    "depthwise": ("Conv<pads=[1,1,1,1], group=4>(x, w)", (2, 4, 6, 5), (4, 1, 3, 3)),
    "two outputs per channel": ("Conv<group=4>(x, w)", (1, 4, 6, 5), (8, 1, 3, 2)),
    "same, the odd pixel first": ('Conv<auto_pad="SAME_LOWER", strides=[2,2]>(x, w)', (1, 3, 8, 7), (5, 3, 3, 2)),
    "same, the odd pixel last": ('Conv<auto_pad="SAME_UPPER", strides=[2,3]>(x, w)', (1, 3, 8, 7), (5, 3, 3, 2)),
    "one dimension": ("Conv<pads=[2,0], strides=[2]>(x, w)", (2, 3, 20), (4, 3, 5)),
    "three dimensions": ("Conv<pads=[1,0,0,0,1,1]>(x, w)", (1, 2, 4, 5, 3), (3, 2, 2, 3, 2)),
    "transposed": (
        "ConvTranspose<strides=[2,3], pads=[1,0,0,1], dilations=[2,1], group=2, output_padding=[1,0]>(x, w)",
        (2, 4, 5, 4),
        (4, 3, 3, 3),
    ),
    "gemm": ("Gemm(x, w)", (7, 5), (5, 6)),
    "gemm, transposed": ("Gemm<transB=1>(x, w)", (7, 5), (6, 5)),
    "matmul": ("MatMul(x, w)", (2, 3, 7, 5), (5, 6)),
}


def layer(text: str, data: tuple[int, ...], weight: tuple[int, ...]) -> tuple[ir.Model, ir.Node, np.ndarray]:
    shape = ",".join(map(str, data))
    array = weights(*weight, seed=1)
    model = parse(f"g (float[{shape}] x) => (float y) {{ y = {text} }}", w=array)
    return model, next(iter(model.graph)), array


def rows_of(y: np.ndarray, node: ir.Node, groups: int) -> np.ndarray:
    """The outputs as ``[G, M, positions]``."""
    if node.op_type not in ("Conv", "ConvTranspose"):
        return y.reshape(-1, y.shape[-1]).T[None]
    channels = np.moveaxis(y, 1, 0)
    return channels.reshape(groups, len(channels) // groups, -1)


@pytest.mark.parametrize("case", LAYERS)
def test_moments_of_outputs_follow_from_those_of_inputs(case: str) -> None:
    """``E[y_f y_q^T] = W E[x_f x_q^T] W^T``, with y as ONNX Runtime computes it."""
    text, data, shape = LAYERS[case]
    model, node, weight = layer(text, data, shape)
    rng = np.random.default_rng(0)
    moments, products, squares, means, count = None, 0.0, 0.0, 0.0, 0
    for _ in range(3):
        x_float = rng.standard_normal(data).astype(np.float32) + np.float32(0.5)
        x_quantized = x_float + rng.standard_normal(data).astype(np.float32) / 10
        moments = observe(node, x_float, x_quantized, moments, rows=10_000)
        groups = moments.mean_q.shape[0]
        y_float = rows_of(run_model(model, {"x": x_float})["y"], node, groups).astype(np.float64)
        y_quantized = rows_of(run_model(model, {"x": x_quantized})["y"], node, groups).astype(np.float64)
        products = products + y_float @ y_quantized.swapaxes(1, 2)
        squares = squares + y_quantized @ y_quantized.swapaxes(1, 2)
        means = means + y_float.sum(axis=2)
        count += y_float.shape[2]
    assert moments is not None
    assert moments.count == count
    matrix = weight_matrix(node, weight).astype(np.float64)
    turned = matrix.swapaxes(1, 2)
    np.testing.assert_allclose(matrix @ moments.cross @ turned, products / count, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(matrix @ moments.gram @ turned, squares / count, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose((matrix @ moments.mean_f[:, :, None])[:, :, 0], means / count, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", LAYERS)
def test_a_weight_is_found_again_in_its_matrix(case: str) -> None:
    _, node, weight = layer(*LAYERS[case])
    np.testing.assert_array_equal(restore_weight(node, weight_matrix(node, weight), weight.shape), weight)


def test_moments_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    _, node, _ = layer(*LAYERS["strides, pads, dilations, groups"])
    x = weights(2, 4, 9, 11, seed=3)
    whole = observe(node, x, x / 2)
    monkeypatch.setattr("edgeq.stages.refine.rounding.moments._CHUNK", 100)
    parts = observe(node, x, x / 2)
    assert whole.count == parts.count
    np.testing.assert_allclose(whole.gram, parts.gram, rtol=1e-12)
    np.testing.assert_allclose(whole.cross, 2 * whole.gram, rtol=1e-6)


def test_a_share_of_the_positions_is_taken_alike_each_time_and_stands_for_all() -> None:
    _, node, _ = layer("Conv<pads=[1,1,1,1]>(x, w)", (1, 3, 64, 64), (4, 3, 3, 3))
    runs = []
    for rows in (500, 500, 100_000):
        moments = None
        for seed in range(4):
            x = weights(1, 3, 64, 64, seed=seed)
            moments = observe(node, x, x, moments, rows=rows)
        assert moments is not None
        runs.append(moments)
    few, again, every = runs
    assert few.count == 4 * 500
    assert every.count == 4 * 64 * 64
    np.testing.assert_array_equal(few.gram, again.gram)
    assert np.linalg.norm(few.gram - every.gram) < 0.2 * np.linalg.norm(every.gram)


def test_halves_are_even_and_odd_samples() -> None:
    _, node, _ = layer(*LAYERS["gemm"])
    samples = [weights(7, 5, seed=seed) for seed in range(3)]
    moments: Moments | None = None
    for x in samples:
        moments = observe(node, x, x, moments)
    assert moments is not None
    even = np.concatenate([samples[0], samples[2]]).astype(np.float64)
    np.testing.assert_allclose(moments.half(0).gram[0], even.T @ even / 14)
    np.testing.assert_allclose(moments.half(1).mean_q[0], samples[1].astype(np.float64).mean(axis=0))


def test_the_shifted_bias_keeps_the_means_of_the_outputs() -> None:
    model, node, weight = layer(*LAYERS["depthwise"])
    x_float = weights(2, 4, 6, 5, seed=2) + np.float32(1)
    x_quantized = x_float + np.float32(0.1) * weights(2, 4, 6, 5, seed=3)
    moments = observe(node, x_float, x_quantized)
    rounded = np.round(weight * 5) / 5
    matrix, found = weight_matrix(node, weight), weight_matrix(node, rounded)
    y = run_model(model, {"x": x_float})["y"]
    other = parse(
        "g (float[2,4,6,5] x) => (float y) { y = Conv<pads=[1,1,1,1], group=4>(x, w, b) }",
        w=rounded.astype(np.float32),
        b=bias_shift(matrix, found, moments).astype(np.float32),
    )
    shifted = run_model(other, {"x": x_quantized})["y"]
    np.testing.assert_allclose(shifted.mean(axis=(0, 2, 3)), y.mean(axis=(0, 2, 3)), atol=1e-5)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Gemm<transA=1>(x, w)", "transposes its data"),
        ("Gemm<alpha=2.0>(x, w)", "alpha or beta"),
        ("MatMul(x, x)", "both operands"),
        ("Relu(x)", "multiplies no weight"),
    ],
)
def test_what_is_no_such_product_is_refused_with_a_reason(text: str, reason: str) -> None:
    model = parse(f"g (float[5,5] x) => (float y) {{ y = {text} }}", w=weights(5, 5))
    node = next(iter(model.graph))
    assert reason in str(refusal(node))
    with pytest.raises(ValueError, match=reason):
        observe(node, weights(5, 5), weights(5, 5))


def test_a_transposed_convolution_padded_by_its_output_is_refused() -> None:
    text = "ConvTranspose<strides=[2], output_shape=[9]>(x, w)"
    model = parse(f"g (float[1,2,4] x) => (float y) {{ y = {text} }}", w=weights(2, 3, 3))
    assert "shape of its output" in str(refusal(next(iter(model.graph))))


def test_without_rounding_the_aim_is_the_float_weight_where_the_inputs_are_the_float_ones() -> None:
    _, node, weight = layer(*LAYERS["gemm"])
    x = weights(7, 5, seed=2)
    problem = quadratic(weight_matrix(node, weight), observe(node, x, x))
    np.testing.assert_allclose(problem.target, weight_matrix(node, weight), rtol=1e-6, atol=1e-9)
