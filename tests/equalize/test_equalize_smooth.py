"""SmoothQuant: the same function, smoother activations, and only where that pays."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_models import parse

from edgeq.graph import input_infos
from edgeq.metrics import sqnr_db
from edgeq.qtypes import Scheme, TensorStats
from edgeq.runtime import run_model
from edgeq.stages.calibrate import calibrate, load_feed
from edgeq.stages.choose import Layout, choose_plan, find_layout
from edgeq.stages.equalize import Smoothing, smooth
from edgeq.stages.insert import insert_qdq
from edgeq.target import load_target

RNG = np.random.default_rng(3)
K, N = 64, 48


def _samples(outlier: float) -> list[dict[str, np.ndarray]]:
    x = RNG.normal(size=(12, 1, 16, K)).astype(np.float32)
    x[..., 5] *= outlier
    return [{"x": sample} for sample in x]


def _quantized_sqnr(model: ir.Model, samples: list[dict[str, np.ndarray]], *, smoothing: bool) -> tuple[float, int]:
    target, scheme = load_target("linux-x64"), Scheme.parse("w8a8")
    feed = load_feed(samples, input_infos(model))

    def statistics(m: ir.Model):
        layout = find_layout(m, target, scheme)
        return layout, calibrate(m, feed, layout.observed, channel_axis=layout.channel_axes(m))

    layout, stats = statistics(model)
    work, done = _smooth(model, layout, stats) if smoothing else (model, ())
    if done:
        layout, stats = statistics(work)
    quantized = insert_qdq(work, choose_plan(work, layout, stats, target))
    reference = np.stack([run_model(model, sample)["y"] for sample in samples])
    return sqnr_db(reference, np.stack([run_model(quantized, sample)["y"] for sample in samples])), len(done)


def _smooth(model: ir.Model, layout: Layout, stats: dict[str, TensorStats]) -> tuple[ir.Model, tuple[Smoothing, ...]]:
    return smooth(model, stats, integer=layout.integer, produced=layout.produced, scheme=layout.scheme)


def weight() -> np.ndarray:
    return (RNG.normal(size=(K, N)) / 8).astype(np.float32)


def test_an_outlier_channel_moves_into_the_weights() -> None:
    model = parse_matmul()
    samples = _samples(60.0)
    plain, _ = _quantized_sqnr(model, samples, smoothing=False)
    smoothed, done = _quantized_sqnr(model, samples, smoothing=True)
    assert done == 1
    assert smoothed > plain + 3


def parse_matmul() -> ir.Model:
    return parse(f"g (float[1, 16, {K}] x) => (float[1, 16, {N}] y) {{ h = Gelu(x) y = MatMul(h, w) }}", w=weight())


@pytest.mark.parametrize("length", [8, K])
def test_channels_of_another_axis_are_left_alone(length: int) -> None:
    """A Conv reads the same tensor, so its extrema are those of axis 1, and MatMul's channels are the last axis."""
    model = parse(
        f"g (float[1, {length}, {K}] x) => (float y, float z) {{ h = Gelu(x) y = MatMul(h, w) z = Conv(h, k) }}",
        w=weight(),
        k=np.ones((4, length, 1), np.float32),
    )
    rows = RNG.normal(size=(12, 1, length, K)).astype(np.float32)
    rows[:, :, 5] *= 60
    samples = [{"x": sample} for sample in rows]
    layout, stats = _stats(model, samples)
    assert stats["h"].channel_axis == 1
    assert _smooth(model, layout, stats)[1] == ()


def _stats(model: ir.Model, samples: list[dict[str, np.ndarray]]):
    layout = find_layout(model, load_target("linux-x64"), Scheme.parse("w8a8"))
    feed = load_feed(samples, input_infos(model))
    return layout, calibrate(model, feed, layout.observed, channel_axis=layout.channel_axes(model))


def test_the_function_stays_the_same_and_the_original_is_untouched() -> None:
    model, samples = parse_matmul(), _samples(60.0)
    before = [node.op_type for node in model.graph]
    work, done = _smooth(model, *_stats(model, samples))
    assert done[0].tensor == "h"
    assert not done[0].folded
    assert [node.op_type for node in model.graph] == before
    assert [node.op_type for node in work.graph] == ["Gelu", "Mul", "MatMul"]
    assert sqnr_db(run_model(model, samples[0])["y"], run_model(work, samples[0])["y"]) > 100


def test_even_channels_are_left_alone() -> None:
    model = parse_matmul()
    work, done = _smooth(model, *_stats(model, _samples(1.0)))
    assert done == ()
    assert [node.op_type for node in work.graph] == ["Gelu", "MatMul"]


NORM = (
    f"g (float[1, 16, {K}] x) => (float[1, 16, {N}] y) "
    "{ h = LayerNormalization <axis = -1> (x, gamma, beta) y = MatMul(h, w) }"
)
NORM_READ_TWICE = (
    f"g (float[1, 16, {K}] x) => (float[1, 16, {N}] y, float[1, 16, {K}] z) "
    f""
    "{ h = LayerNormalization <axis = -1> (x, gamma, beta) y = MatMul(h, w) z = Add(h, x) }"
)


@pytest.mark.parametrize(("graph", "folded"), [(NORM, True), (NORM_READ_TWICE, False)], ids=["only reader", "residual"])
def test_a_layer_norm_takes_the_division_if_nothing_else_reads_it(graph: str, folded: bool) -> None:
    gamma = np.ones(K, np.float32)
    gamma[5] = 40
    model = parse(graph, gamma=gamma, beta=np.full(K, 0.1, np.float32), w=weight())
    samples = _samples(1.0)
    work, done = _smooth(model, *_stats(model, samples))
    assert [step.folded for step in done] == [folded]
    assert ("Mul" in [node.op_type for node in work.graph]) is not folded
    for name, reference in run_model(model, samples[0]).items():
        assert sqnr_db(reference, run_model(work, samples[0])[name]) > 100


def test_all_readers_of_a_tensor_share_one_scale() -> None:
    graph = (
        f"g (float[1, 16, {K}] x) => (float[1, 16, {N}] y, float[1, 16, {N}] z) "
        "{ h = Gelu(x) y = MatMul(h, w) z = MatMul(h, v) }"
    )
    model = parse(graph, w=weight(), v=weight())
    samples = _samples(60.0)
    work, done = _smooth(model, *_stats(model, samples))
    assert len(done) == 1
    assert [node.op_type for node in work.graph].count("Mul") == 1
    for name, reference in run_model(model, samples[0]).items():
        assert sqnr_db(reference, run_model(work, samples[0])[name]) > 100


def test_a_tensor_from_an_integer_kernel_is_left_alone() -> None:
    """It is quantized already when a Mul would come too late to help."""
    graph = f"g (float[1, 16, {K}] x) => (float[1, 16, {N}] y) {{ h = MatMul(x, v) y = MatMul(h, w) }}"
    first = (RNG.normal(size=(K, K)) / 8).astype(np.float32)
    first[:, 5] *= 60
    model = parse(graph, v=first, w=weight())
    _, done = _smooth(model, *_stats(model, _samples(1.0)))
    assert [step.tensor for step in done if step.tensor == "h"] == []
