"""Learned rounding, scales and biases: the result lies on its grids, is nearer to float, and is the same each time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from small_models import parse, quantized, weights

from edgeq.affine import dequantize, fake_quantize, quantize
from edgeq.blocks import restrict_plan
from edgeq.errors import ConfigError
from edgeq.qtypes import Decision, IntType, QParams, QuantPlan
from edgeq.revise import weight_of, with_activation, with_bias, with_weight
from edgeq.runtime import run_model
from edgeq.stages.insert import insert_qdq

torch = pytest.importorskip("torch")

from edgeq.stages.choose.weights import weight_qparams  # noqa: E402
from edgeq.stages.refine.learn import Learned, Settings, reconstruct  # noqa: E402
from edgeq.stages.refine.learn.part import Part  # noqa: E402
from edgeq.stages.refine.learn.train import run  # noqa: E402
from edgeq.stages.refine.learn.windows import find_windows  # noqa: E402

CONV = """g (float[1,6,6,6] x) => (float y) {
    a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w1, b1)
    r = Clip(a, low, high)
    c = Conv<kernel_shape=[1,1]>(r, w2, b2)
    s = Add(c, x)
    y = Conv<kernel_shape=[1,1]>(s, w3, b3)
}"""


def conv_block() -> ir.Model:
    """Two layers, a residual, one more layer; a Clip that kernels absorb."""
    return parse(
        CONV,
        w1=weights(8, 6, 3, 3),
        b1=weights(8, seed=1) + np.float32(0.3),
        w2=weights(6, 8, 1, 1, seed=2),
        b2=weights(6, seed=3),
        w3=weights(5, 6, 1, 1, seed=4),
        b3=weights(5, seed=5),
        low=np.float32(0),
        high=np.float32(1.5),
    )


def correlated(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Channels that are mixtures of two sources, with a mean: where rounding to nearest is far from the best."""
    random = np.random.default_rng(seed)
    mixture = np.random.default_rng(99).standard_normal((6, 2))
    drawn = []
    for _ in range(count):
        x = np.einsum("cs,shw->chw", mixture, random.standard_normal((2, 6, 6)) + 0.5)
        drawn.append({"x": (x[None] + 0.05 * random.standard_normal((1, 6, 6, 6))).astype(np.float32)})
    return drawn


def with_bits(plan: QuantPlan, model: ir.Model, bits: int) -> QuantPlan:
    """All weights of the plan in ``bits``; biases follow."""
    decisions = []
    for decision in plan:
        if decision.role == "weight":
            assert decision.qparams is not None
            array = model.graph.initializers[decision.tensor].const_value
            assert array is not None
            spec = replace(decision.qparams.spec, dtype=IntType(bits, signed=True), reduced=False)
            decision = replace(decision, qparams=weight_qparams(array.numpy(), spec))
        decisions.append(decision)
    plan = replace(plan, decisions=tuple(decisions), weights={})
    for name, bias in (("a", "b1"), ("c", "b2"), ("y", "b3")):
        plan = with_bias(plan, model, name, _array(model, bias), mode="int32")
    return plan


def _array(model: ir.Model, name: str) -> np.ndarray:
    value = model.graph.initializers[name].const_value
    assert value is not None
    return value.numpy()


def learned(plan: QuantPlan, model: ir.Model, feed: list[dict[str, np.ndarray]], **options: object) -> Learned:
    inputs = {"x": [sample["x"] for sample in feed]}
    outputs = {"y": [run_model(model, sample)["y"] for sample in feed]}
    return reconstruct(model, restrict_plan(plan, model), inputs, inputs, outputs, **options)  # type: ignore[arg-type]


def block_error(model: ir.Model, plan: QuantPlan, feed: list[dict[str, np.ndarray]]) -> float:
    q = insert_qdq(model, plan)
    pairs = [(run_model(model, s)["y"], run_model(q, s)["y"]) for s in feed]
    return sum(float(np.square(a - b).sum()) for a, b in pairs) / sum(float(np.square(a).sum()) for a, _ in pairs)


@pytest.fixture(scope="module")
def case() -> tuple[ir.Model, QuantPlan]:
    model = conv_block()
    chain = quantized(model, feed=correlated(8))
    return chain.shaped, with_bits(chain.plan, chain.shaped, 4)


FOUR = Settings(120, 8, rounding_rate=0.1, window=0)


@pytest.mark.parametrize("granularity", ["layer", "block", "drop"])
def test_learning_beats_nearest_on_data_it_has_not_seen(case: tuple[ir.Model, QuantPlan], granularity: str) -> None:
    model, plan = case
    found = learned(plan, model, correlated(32), granularity=granularity, settings=FOUR)
    unseen = correlated(8, seed=7)
    assert block_error(model, found.plan, unseen) < 0.6 * block_error(model, plan, unseen)


def test_learned_rounding_alone_beats_nearest(case: tuple[ir.Model, QuantPlan]) -> None:
    model, plan = case
    only = replace(FOUR, activation_scales=False, weight_scales=False, biases=False)
    found = learned(plan, model, correlated(32), settings=only)
    unseen = correlated(8, seed=7)
    assert block_error(model, found.plan, unseen) < 0.8 * block_error(model, plan, unseen)
    for before, after in zip(plan, found.plan, strict=True):
        assert before.qparams is after.qparams or np.array_equal(before.qparams.scale, after.qparams.scale)  # type: ignore[union-attr]
    # A rounding is one of the two neighbours, never further away.
    for name, array in found.plan.weights.items():
        qparams = next(d.qparams for d in plan if d.tensor == name)
        if qparams is not None and qparams.spec.dtype.bits == 4:
            scale = qparams.scale.reshape(-1, 1, 1, 1)
            clipped = np.clip(_array(model, name), -8 * scale, 7 * scale)
            assert (np.abs(array - clipped) < scale * 1.0001).all()


def test_weights_lie_on_their_grid_and_biases_follow(case: tuple[ir.Model, QuantPlan]) -> None:
    model, plan = case
    found = learned(plan, model, correlated(16), settings=replace(FOUR, iterations=20)).plan
    for name in ("a", "c", "y"):
        decision = weight_of(found, model, name)
        assert decision is not None
        assert decision.qparams is not None
        stored = quantize(found.weights[decision.tensor], decision.qparams)
        np.testing.assert_allclose(
            dequantize(stored, decision.qparams), found.weights[decision.tensor], rtol=1e-6, atol=0
        )
        assert stored.astype(int).min() >= decision.qparams.spec.qmin
        node = next(n for n in model.graph if n.name == name)
        data = _read(found, str(node.inputs[0].name), name)  # type: ignore[union-attr]
        bias = next(d for d in found if d.role == "bias" and d.consumers == (name,))
        assert bias.qparams is not None
        np.testing.assert_array_equal(bias.qparams.scale, data.scale * decision.qparams.scale)
        assert not np.array_equal(found.weights[bias.tensor], _array(model, bias.tensor))


def _read(plan: QuantPlan, tensor: str, node: str) -> QParams:
    found = [d.qparams for d in plan if d.tensor == tensor and node in d.consumers]
    assert found[-1] is not None
    return found[-1]


def test_what_torch_computes_is_what_the_integers_compute(case: tuple[ir.Model, QuantPlan]) -> None:
    model, plan = case
    feed = correlated(2)
    part = Part(model, restrict_plan(plan, model), FOUR)
    quantized_model = insert_qdq(model, plan)
    for sample in feed:
        found = part.run({"x": torch.from_numpy(sample["x"])}, weights=_hard_nearest(part, plan))
        expected = run_model(quantized_model, sample)["y"]
        scale = float(next(d.qparams.scale for d in plan if d.tensor == "y" and d.qparams is not None))
        # A level more or less where a sum lies between two.
        assert np.abs(found["y"].detach().numpy() - expected).max() <= 1.01 * scale
        assert np.mean(found["y"].detach().numpy() == expected) > 0.9


def _hard_nearest(part: Part, plan: QuantPlan) -> dict[str, torch.Tensor]:
    found = part.weights(hard=True)
    for name, decision in part.tapped.weights.items():
        assert decision.qparams is not None
        np.testing.assert_allclose(
            found[name].detach().numpy(),
            fake_quantize(part.tapped.arrays[name], decision.qparams),
            atol=1e-6,
            err_msg="rounding starts at the nearest",
        )
    return found


def test_the_same_seed_gives_the_same_plan_and_torch_keeps_its_own_numbers(case: tuple[ir.Model, QuantPlan]) -> None:
    model, plan = case
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    settings = replace(FOUR, iterations=6)
    runs = [learned(plan, model, correlated(8), granularity="drop", settings=settings, seed=s) for s in (3, 3, 4)]
    assert torch.equal(torch.rand(3), expected)
    one, same, other = (r.plan for r in runs)
    assert all(np.array_equal(one.weights[name], same.weights[name]) for name in one.weights)
    assert [_bytes(d) for d in one] == [_bytes(d) for d in same]
    assert [_bytes(d) for d in one] != [_bytes(d) for d in other]


def _bytes(decision: Decision) -> bytes:
    return b"" if decision.qparams is None else decision.qparams.scale.tobytes()


def test_a_scale_never_reaches_beyond_the_clip_that_it_stands_for(case: tuple[ir.Model, QuantPlan]) -> None:
    model, plan = case
    held = next(d for d in plan if d.tensor == "r")
    assert held.qparams is not None
    assert held.qparams.real_range[1] <= 1.5 * (1 + 1e-6)
    # Inputs so large that most values are at the bound: a longer scale would always be better if it could.
    fast = Settings(40, 8, rounding=False, weight_scales=False, biases=False, scale_rate=0.05, window=0)
    large = [{"x": 3 * sample["x"]} for sample in correlated(8)]
    found = learned(plan, model, large, settings=fast).plan
    after = next(d for d in found if d.tensor == "r")
    assert after.qparams is not None
    assert after.qparams.real_range[1] <= 1.5 * (1 + 1e-6)
    assert after.qparams.zero_point == held.qparams.zero_point


@pytest.mark.parametrize(("factor", "grows"), [(0.4, True), (4.0, False)])
def test_a_wrong_scale_is_learned_in_the_right_direction(
    case: tuple[ir.Model, QuantPlan], factor: float, grows: bool
) -> None:
    model, plan = case
    plan = quantized(conv_block(), feed=correlated(8)).plan
    held = next(d for d in plan if d.tensor == "s")
    assert held.qparams is not None
    wrong = replace(held.qparams, scale=np.float32(held.qparams.scale * factor).reshape(()))
    spoiled = with_activation(plan, model, "s", wrong)
    only = Settings(40, 8, rounding=False, weight_scales=False, biases=False, scale_rate=0.03, window=0)
    after = next(d for d in learned(spoiled, model, correlated(16), settings=only).plan if d.tensor == "s")
    assert after.qparams is not None
    change = float(after.qparams.scale / wrong.scale)
    assert change > 1.2 if grows else change < 0.8


def test_a_start_on_the_grid_is_kept_where_rounding_is_not_learned(case: tuple[ir.Model, QuantPlan]) -> None:
    """Say GPTQ has moved a level by more than one: scales may move, but not the levels."""
    model, plan = case
    decision = weight_of(plan, model, "c")
    assert decision is not None
    assert decision.qparams is not None
    levels = quantize(_array(model, "w2"), decision.qparams).astype(np.int64)
    levels[0, 0] = np.clip(levels[0, 0] + 3, -8, 7)
    given = dequantize(levels.astype(decision.qparams.spec.dtype.dtype), decision.qparams)
    started = with_weight(plan, model, "c", decision.qparams, given)
    found = learned(
        started, model, correlated(8), settings=replace(FOUR, iterations=10), fixed_rounding=frozenset({"w2"})
    ).plan
    after = weight_of(found, model, "c")
    assert after is not None
    assert after.qparams is not None
    assert np.array_equal(quantize(found.weights["w2"], after.qparams).astype(np.int64), levels)
    assert not np.array_equal(after.qparams.scale, decision.qparams.scale)


def test_what_is_frozen_stays(case: tuple[ir.Model, QuantPlan]) -> None:
    model, plan = case
    names = {"s", "w1", "b2"}
    found = learned(plan, model, correlated(8), settings=replace(FOUR, iterations=5), frozen=names).plan
    for before, after in zip(plan, found, strict=True):
        if before.tensor in {"s", "w1"}:
            assert _bytes(before) == _bytes(after)
    assert np.array_equal(found.weights.get("b2", _array(model, "b2")), _array(model, "b2"))
    assert _bytes(next(d for d in plan if d.tensor == "c")) != _bytes(next(d for d in found if d.tensor == "c"))


def test_tensors_that_share_a_scale_move_together() -> None:
    model = parse(
        """g (float[1,4,6,6] x) => (float y) {
            a = Conv<kernel_shape=[1,1]>(x, w, b)
            m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a)
            y = Conv<kernel_shape=[1,1]>(m, v, c)
        }""",
        w=weights(4, 4, 1, 1),
        b=weights(4, seed=1),
        v=weights(4, 4, 1, 1, seed=2),
        c=weights(4, seed=3),
    )
    random = np.random.default_rng(0)
    feed = [{"x": random.standard_normal((1, 4, 6, 6)).astype(np.float32)} for _ in range(8)]
    chain = quantized(model, feed=feed)
    assert any(d.shares for d in chain.plan)
    inputs, outputs = {"x": [s["x"] for s in feed]}, {"y": [run_model(chain.shaped, s)["y"] for s in feed]}
    found = reconstruct(chain.shaped, chain.plan, inputs, inputs, outputs, settings=Settings(5, 8, rounding=False)).plan
    scales = {d.tensor: float(d.qparams.scale) for d in found if d.tensor in ("a", "m") and d.qparams is not None}
    before = {d.tensor: float(d.qparams.scale) for d in chain.plan if d.tensor == "a" and d.qparams is not None}
    assert scales["a"] == scales["m"] != before["a"]


def test_a_linear_layer_that_reshapes_is_learned_sample_by_sample() -> None:
    model = parse(
        """g (float[1,4,8] x) => (float y) {
            h = MatMul(x, w)
            a = Add(h, b)
            y = Reshape(a, shape)
        }""",
        w=weights(8, 4),
        b=weights(4, seed=1),
        shape=np.array([4, 4], np.int64),
    )
    random = np.random.default_rng(0)
    feed = [{"x": random.standard_normal((1, 4, 8)).astype(np.float32)} for _ in range(6)]
    chain = quantized(model, feed=feed)
    inputs, outputs = {"x": [s["x"] for s in feed]}, {"y": [run_model(chain.shaped, s)["y"] for s in feed]}
    found = reconstruct(chain.shaped, chain.plan, inputs, inputs, outputs, settings=Settings(10, 4, rounding=False))
    assert found.loss_after < found.loss_before
    insert_qdq(chain.shaped, found.plan)


def test_importance_weighs_the_errors(case: tuple[ir.Model, QuantPlan]) -> None:
    """BRECQ's equation 10, computed directly on the model with Q/DQ."""
    model, plan = case
    feed, weight = correlated(8), np.array([50.0, 1, 1, 1, 1], np.float32).reshape(5, 1, 1)
    q = insert_qdq(model, plan)
    wanted = np.concatenate([run_model(model, s)["y"] for s in feed])
    squares = np.square(np.concatenate([run_model(q, s)["y"] for s in feed]) - wanted)
    settings = replace(FOUR, iterations=2)
    plain = learned(plan, model, feed, settings=settings).loss_before
    weighted = learned(plan, model, feed, settings=settings, fisher={"y": weight}).loss_before
    assert plain == pytest.approx(squares.sum() / np.square(wanted).sum(), rel=0.02)
    assert weighted == pytest.approx((squares * weight).sum() / (np.square(wanted) * weight).sum(), rel=0.02)
    assert abs(weighted / plain - 1) > 0.05


def test_padding_does_not_count() -> None:
    """Rows of padding that want the opposite: with their mask, what is learned is as good as without them."""
    text = "g (float[1,8,6] x) => (float[1,8,5] y) { m = MatMul(x, w) y = Add(m, b) }"
    model = parse(text, w=weights(6, 5), b=weights(5, seed=1))
    random = np.random.default_rng(3)
    feed = [{"x": random.standard_normal((1, 8, 6)).astype(np.float32)} for _ in range(8)]
    chain = quantized(model, feed=feed)
    mask = np.array([[True] * 4 + [False] * 4])
    wanted = [run_model(chain.shaped, sample)["y"].copy() for sample in feed]
    spoiled = [np.where(mask[..., None], y, y - np.float32(40)) for y in wanted]
    inputs = {"x": [sample["x"] for sample in feed]}
    settings = Settings(60, 8, rounding=False, activation_scales=False, weight_scales=False, bias_rate=3.0, window=0)
    plan = restrict_plan(chain.plan, chain.shaped)

    def error(masks: list[np.ndarray] | None) -> float:
        found = reconstruct(chain.shaped, plan, inputs, inputs, {"y": spoiled}, masks=masks, settings=settings)
        merged = insert_qdq(chain.shaped, found.plan)
        given = [run_model(merged, sample)["y"] for sample in feed]
        return sum(float(np.square((a - b)[mask]).sum()) for a, b in zip(given, wanted, strict=True))

    before = sum(
        float(np.square((run_model(insert_qdq(chain.shaped, plan), s)["y"] - w)[mask]).sum())
        for s, w in zip(feed, wanted, strict=True)
    )
    assert error([mask] * 8) <= before * 1.01
    assert error(None) > 10 * before


def test_what_is_learned_is_never_worse_where_it_was_fitted(case: tuple[ir.Model, QuantPlan]) -> None:
    """Steps that are far too long lead away, and the plan that came in stays."""
    model, plan = case
    wild = replace(FOUR, iterations=16, scale_rate=5.0, bias_rate=500.0, rounding=False)
    found = learned(plan, model, correlated(16), settings=wild)
    assert found.loss_after <= found.loss_before
    kept = block_error(model, found.plan, correlated(16))
    assert kept <= block_error(model, plan, correlated(16)) * 1.001


def test_an_unknown_granularity_is_told(case: tuple[ir.Model, QuantPlan]) -> None:
    model, plan = case
    with pytest.raises(ConfigError, match="granularity 'tensor'"):
        learned(plan, model, correlated(4), granularity="tensor")


def test_a_window_computes_what_the_whole_map_does() -> None:
    model = parse(
        """g (float[1,3,32,32] x) => (float y) {
            a = Conv<kernel_shape=[3,3], pads=[0,0,1,1], strides=[2,2]>(x, w1)
            y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(a, w2)
        }""",
        w1=weights(4, 3, 3, 3),
        w2=weights(5, 4, 3, 3, seed=1),
    )
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    y = run_model(model, {"x": x})["y"]
    windows = find_windows(model, {"x": x}, {"y": y}, size=10)
    assert windows is not None
    assert windows.margin == 2  # one for each of the two kernels of 3, rounded up to cells
    random = np.random.default_rng(1)
    from edgeq.torch_graph import TorchGraph

    graph = TorchGraph(model)
    for _ in range(12):  # some lie at the edge of the map
        window = windows.draw(random)
        piece = torch.from_numpy(np.ascontiguousarray(windows.cut("x", x, window)))
        found = windows.inner("y", graph.run({"x": piece}, ["y"])["y"], window)
        wanted = windows.inner("y", torch.from_numpy(windows.cut("y", y, window).copy()), window)
        np.testing.assert_allclose(found.detach().numpy(), wanted.numpy(), atol=1e-5)


def test_a_part_that_averages_maps_is_not_cut() -> None:
    model = parse(
        "g (float[1,3,32,32] x) => (float y) { m = ReduceMean<keepdims=1>(x, axes)\n y = Mul(x, m) }",
        axes=np.array([2, 3], np.int64),
    )
    x = np.ones((1, 3, 32, 32), np.float32)
    assert find_windows(model, {"x": x}, {"y": x}, size=8) is None


def test_run_gives_one_row_per_sample(case: tuple[ir.Model, QuantPlan]) -> None:
    from edgeq.stages.refine.learn.data import Data

    model, plan = case
    feed = correlated(3)
    inputs = {"x": [s["x"] for s in feed]}
    data = Data(inputs, inputs, {"y": [run_model(model, s)["y"] for s in feed]}, None, torch.device("cpu"))
    part = Part(model, restrict_plan(plan, model), FOUR)
    rows = np.arange(3)
    one_by_one = run(part, data, data.inputs(rows, 0.0, None), hard=True)["y"]
    data.flat = True
    together = run(part, data, data.inputs(rows, 0.0, None), hard=True)["y"]
    assert one_by_one.shape == together.shape == (3, 1, 5, 6, 6)
    np.testing.assert_allclose(one_by_one.detach().numpy(), together.detach().numpy(), atol=0.05)
