"""Cross-layer equalization and bias absorption: the same function, other ranges."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_models import parse, samples, weights

from edgeq.graph import constant_array, input_infos
from edgeq.qtypes import TensorStats
from edgeq.runtime import run_model
from edgeq.stages.calibrate import calibrate, load_feed
from edgeq.stages.equalize import absorption, chains, cross_layer, find_pairs
from edgeq.stages.equalize.cross_layer import equalize_pairs, weight_scales
from edgeq.stages.equalize.pairs import in_channels, multiply_in, multiply_out, out_channels

RNG = np.random.default_rng(5)


class Everything:
    """Every node is an integer one."""

    def __contains__(self, name: object) -> bool:
        return True


def spread(count: int, factor: float = 100.0) -> np.ndarray:
    """Factors for ``count`` channels between 1 and ``factor``, in no order."""
    return RNG.permutation(np.geomspace(1, factor, count)).astype(np.float32)


def stats_of(model: ir.Model, feed: list[dict[str, np.ndarray]]) -> dict[str, TensorStats]:
    axes = {name: axis for pair in find_pairs(model, Everything()) for name, axis in pair.axes.items()}
    return calibrate(model, load_feed(feed, input_infos(model)), list(axes), channel_axis=axes)


def same(before: ir.Model, after: ir.Model, feed: list[dict[str, np.ndarray]]) -> bool:
    for sample in feed:
        for name, reference in run_model(before, sample).items():
            got = run_model(after, sample)[name]
            if not np.allclose(got, reference, rtol=1e-4, atol=1e-5 * np.abs(reference).max()):
                return False
    return True


def inverted_residual(activation: str) -> ir.Model:
    """Expand, depthwise, project: the chain of three, with channels of very different sizes between."""
    return parse(
        f"g (float[1, 8, 10, 10] x) => (float y) {{ a = Conv(x, w, b) h = {activation.format('a')} "
        f"d = Conv <group = 16, pads = [1, 1, 1, 1]> (h, k, c) e = {activation.format('d')} y = Conv(e, v, f) }}",
        w=weights(16, 8, 1, 1, seed=1) * spread(16).reshape(-1, 1, 1, 1),
        b=weights(16, seed=2),
        k=weights(16, 1, 3, 3, seed=3) * spread(16).reshape(-1, 1, 1, 1),
        c=weights(16, seed=4),
        v=weights(6, 16, 1, 1, seed=5),
        f=weights(6, seed=6),
        slope=np.abs(weights(16, 1, 1, seed=7)),
        low=np.float32(0),
        high=np.float32(1e6),
    )


ACTIVATIONS = ["Relu({})", "LeakyRelu <alpha = 0.2> ({})", "PRelu({}, slope)", "Identity({})", "Clip({}, low, high)"]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_chain_of_three_keeps_its_function_and_gets_even_channels(activation: str) -> None:
    model, feed = inverted_residual(activation), samples(inverted_residual(activation))
    (chain,) = chains(find_pairs(model, Everything()))
    assert [(pair.head, pair.tail, pair.channels) for pair in chain] == [("a", "d", 16), ("d", "y", 16)]
    found = cross_layer(model, chain, stats_of(model, feed))
    assert len(found) == (5 if "Clip" in activation else 3)
    for alternative in found:
        after = model.clone()
        alternative.apply(after)
        assert same(model, after, feed), alternative.method
        relu = "Relu for Clip" in alternative.method
        assert alternative.structural == relu
        assert [node.op_type for node in after.graph].count("Clip") == (2 if "Clip" in activation and not relu else 0)


def test_scales_meet_in_the_middle() -> None:
    """At the paper's optimum both layers have the same range in every channel (section 4.1.2)."""
    model = inverted_residual("Relu({})")
    (chain,) = chains(find_pairs(model, Everything()))
    scales = weight_scales(model, chain, [None, None], [np.inf, np.inf])
    equalize_pairs(model, chain, scales)
    by_name = {node.name: node for node in model.graph}
    for pair in chain:
        head, tail = by_name[pair.head], by_name[pair.tail]
        first = out_channels(head, constant_array(head.inputs[1]))
        np.testing.assert_allclose(first, in_channels(tail, constant_array(tail.inputs[1])), rtol=5e-3)


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_and_the_pooled_end_of_a_network(transposed: int) -> None:
    shape = (5, 12) if transposed else (12, 5)
    model = parse(
        "g (float[2, 3, 6, 6] x) => (float z) { a = Conv(x, w, b) r = Relu(a) p = GlobalAveragePool(r) f = Flatten(p) "
        f"g = Gemm <transB = {transposed}> (f, v, c) q = Relu(g) z = Gemm(q, u) }}",
        w=weights(12, 3, 3, 3) * spread(12).reshape(-1, 1, 1, 1),
        b=weights(12, seed=1),
        v=weights(*shape, seed=2) * spread(5).reshape((-1, 1) if transposed else (1, -1)),
        c=weights(5, seed=3),
        u=weights(5, 4, seed=4),
    )
    feed = samples(model)
    (chain,) = chains(find_pairs(model, Everything()))
    assert [(pair.head, pair.tail) for pair in chain] == [("a", "g"), ("g", "z")]
    for alternative in cross_layer(model, chain, stats_of(model, feed)):
        after = model.clone()
        alternative.apply(after)
        assert same(model, after, feed), alternative.method


def test_matmul_with_its_bias_in_an_add() -> None:
    model = parse(
        "g (float[1, 7, 6] x) => (float[1, 7, 5] y) { a = MatMul(x, w) s = Add(a, b) r = Relu(s) y = MatMul(r, v) }",
        w=weights(6, 9) * spread(9),
        b=weights(9, seed=1).reshape(1, 1, 9),
        v=weights(9, 5, seed=2),
    )
    feed = samples(model)
    (chain,) = chains(find_pairs(model, Everything()))
    assert chain[0].adds == ("s",)
    assert chain[0].axis == 2
    for alternative in cross_layer(model, chain, stats_of(model, feed)):
        after = model.clone()
        alternative.apply(after)
        assert same(model, after, feed), alternative.method


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_channels_of_a_weight_in_groups(groups: int) -> None:
    """What the factors do to the weight is what they do to its input, or output: the Conv itself is the oracle."""
    model = parse(
        f"g (float[1, 8, 4, 4] x) => (float y) {{ y = Conv <group = {groups}> (x, w) }}",
        w=weights(12, 8 // groups, 2, 2),
    )
    node, feed = next(iter(model.graph)), samples(model, 1)[0]
    weight, before = constant_array(node.inputs[1]), run_model(model, feed)["y"]
    first, second = spread(8), spread(12)
    for changed, given, wanted in (
        (multiply_in(node, weight, first), {"x": feed["x"] / first.reshape(1, -1, 1, 1)}, before),
        (multiply_out(node, weight, second), feed, before * second.reshape(1, -1, 1, 1)),
    ):
        after = model.clone()
        after.graph.initializers["w"].const_value = ir.tensor(changed.astype(np.float32), name="w")
        np.testing.assert_allclose(run_model(after, given)["y"], wanted, rtol=1e-4, atol=1e-4)


NO_PAIRS = {
    "two readers": "{ a = Conv(x, w) r = Relu(a) y = Conv(r, v) z = Sigmoid(r) }",
    "a model's output": "{ z = Conv(x, w) r = Relu(z) y = Conv(r, v) }",
    "not homogeneous": "{ a = Conv(x, w) r = Sigmoid(a) y = Conv(r, v) z = Relu(y) }",
    "a lower bound": "{ a = Conv(x, w) r = Clip(a, low) y = Conv(r, v) z = Relu(y) }",
    "a scalar bias": "{ a = Conv(x, w) r = Add(a, low) y = Conv(r, v) z = Relu(y) }",
}


@pytest.mark.parametrize("body", NO_PAIRS.values(), ids=NO_PAIRS)
def test_what_minds_the_scale_is_no_pair(body: str) -> None:
    model = parse(
        f"g (float[1, 4, 5, 5] x) => (float y, float z) {body}",
        w=weights(4, 4, 1, 1),
        v=weights(4, 4, 1, 1),
        low=np.float32(-1),
    )
    assert find_pairs(model, Everything()) == []


def relu6() -> tuple[ir.Model, list[dict[str, np.ndarray]]]:
    """Channel 0 is cut at 6; the others stay far below, each with a range of its own."""
    rows = np.geomspace(0.01, 1, 8).astype(np.float32)
    rows[0] = 30
    model = parse(
        "g (float[1, 4, 8, 8] x) => (float y) { a = Conv(x, w) r = Clip(a, low, high) y = Conv(r, v) }",
        w=weights(8, 4, 1, 1) * rows.reshape(-1, 1, 1, 1),
        v=weights(5, 8, 1, 1, seed=1),
        low=np.float32(0),
        high=np.float32(6),
    )
    return model, samples(model, 8)


def test_below_the_bound_of_a_clip_channels_move_and_stay_below() -> None:
    model, feed = relu6()
    stats = stats_of(model, feed)
    assert stats["r"].channel_hi[0] == 6
    found = [a for a in cross_layer(model, find_pairs(model, Everything()), stats) if not a.structural]
    assert found
    for alternative in found:
        assert not alternative.exact
        after = model.clone()
        alternative.apply(after)
        assert same(model, after, feed), alternative.method
        moved = stats_of(after, feed)["r"].channel_hi / stats["r"].channel_hi
        assert moved[0] == 1
        assert np.ptp(np.log(moved[1:])) > 1


def test_a_channel_that_is_cut_before_it_is_pooled_keeps_its_scale() -> None:
    """Its mean stays far below the bound, and its peaks do not."""
    rows = np.geomspace(0.3, 30, 8).astype(np.float32)
    model = parse(
        "g (float[1, 4, 8, 8] x) => (float y) { a = Conv(x, w) r = Clip(a, low, high) p = GlobalAveragePool(r) "
        "f = Flatten(p) y = Gemm(f, v) }",
        w=weights(8, 4, 1, 1) * rows.reshape(-1, 1, 1, 1),
        v=weights(8, 5, seed=1),
        low=np.float32(0),
        high=np.float32(6),
    )
    feed = samples(model, 8)
    (pair,) = find_pairs(model, Everything())
    assert (pair.bounded, pair.hidden) == ("r", "f")
    stats = stats_of(model, feed)
    assert stats["f"].hi < 5
    assert stats["r"].hi == 6
    found = [a for a in cross_layer(model, [pair], stats) if not a.structural]
    assert found
    for alternative in found:
        after = model.clone()
        alternative.apply(after)
        assert same(model, after, feed), alternative.method


def test_a_relu_for_a_clip_that_cuts_is_another_function() -> None:
    model, feed = relu6()
    found = [a for a in cross_layer(model, find_pairs(model, Everything()), stats_of(model, feed)) if a.structural]
    after = model.clone()
    found[0].apply(after)
    assert [node.op_type for node in after.graph] == ["Conv", "Relu", "Conv"]
    assert not same(model, after, feed)


def test_without_statistics_a_bounded_chain_is_left_alone() -> None:
    model, _ = relu6()
    assert cross_layer(model, find_pairs(model, Everything()), {}) == []


def high_bias(tail: str) -> ir.Model:
    bias = np.full(6, 0.1, np.float32)
    bias[2] = 9
    return parse(
        f"g (float[1, 4, 6, 6] x) => (float y) {{ a = Conv(x, w, b) r = Relu(a) y = {tail} }}",
        w=weights(6, 4, 1, 1, scale=0.3),
        b=bias,
        v=weights(5, 6, 1, 1, seed=1),
        k=weights(6, 1, 3, 3, seed=1),
    )


@pytest.mark.parametrize("tail", ["Conv(r, v)", "Conv <group = 6> (r, k)"])
def test_a_channel_far_above_zero_gives_its_least_value_to_the_next_bias(tail: str) -> None:
    model = high_bias(tail)
    feed = samples(model, 8)
    stats = stats_of(model, feed)
    (pair,) = find_pairs(model, Everything())
    found = absorption(model, pair, stats)
    assert found is not None
    after = model.clone()
    found.apply(after)
    assert same(model, after, feed)
    assert stats_of(after, feed)["r"].hi < stats["r"].hi - 5


def test_padding_would_show_what_was_absorbed() -> None:
    model = high_bias("Conv <group = 6, pads = [1, 1, 1, 1]> (r, k)")
    (pair,) = find_pairs(model, Everything())
    assert absorption(model, pair, stats_of(model, samples(model, 8))) is None


def test_the_original_is_untouched() -> None:
    model = inverted_residual("Relu({})")
    before = {name: value.const_value.numpy().copy() for name, value in model.graph.initializers.items()}
    feed = samples(model)
    for alternative in cross_layer(model, find_pairs(model, Everything()), stats_of(model, feed)):
        alternative.apply(model.clone())
    for name, array in before.items():
        np.testing.assert_array_equal(model.graph.initializers[name].const_value.numpy(), array)
