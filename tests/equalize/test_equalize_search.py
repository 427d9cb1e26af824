"""The choice among rewrites by measuring: what helps is kept, what hurts is not, and twice gives the same."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest
from small_models import parse, samples, weights

from edgeq.blocks import extract_block, find_blocks
from edgeq.graph import fingerprint, input_infos
from edgeq.metrics import sqnr_db
from edgeq.pipeline.equalizing import Equalized, equalize_model, restrict_layout
from edgeq.qtypes import QuantPlan, Scheme, TensorStats
from edgeq.runtime import run_model
from edgeq.stages.calibrate import calibrate, load_feed
from edgeq.stages.choose import Layout, choose_plan, find_layout
from edgeq.stages.insert import insert_qdq
from edgeq.stages.tune import shape_float
from edgeq.target import load_target

Samples = list[dict[str, np.ndarray]]


class Setting:
    """One target and scheme, as a job hands them to the search."""

    def __init__(self, target: str, scheme: str = "w8a8") -> None:
        self.target, self.scheme = load_target(target), Scheme.parse(scheme)

    def shaped(self, model: ir.Model) -> ir.Model:
        return shape_float(model, self.target, self.scheme)

    def find(self, model: ir.Model) -> Layout:
        return find_layout(model, self.target, self.scheme)

    def plan(self, model: ir.Model, layout: Layout, stats: Mapping[str, TensorStats]) -> QuantPlan:
        return choose_plan(model, layout, stats, self.target)

    def equalize(self, model: ir.Model, feed: Samples) -> Equalized:
        return equalize_model(model, feed, find=self.find, plan=self.plan)

    def sqnr(self, model: ir.Model, feed: Samples, reference: ir.Model) -> float:
        """Of all outputs of the quantized ``model``, calibrated and measured on ``feed``."""
        layout = self.find(model)
        axes = layout.channel_axes(model)
        stats = calibrate(model, load_feed(feed, input_infos(model)), layout.observed, channel_axis=axes)
        quantized = insert_qdq(model, self.plan(model, layout, stats))
        names = [str(value.name) for value in model.graph.outputs]
        rows = [
            [np.concatenate([run_model(m, s)[n].ravel() for n in names]) for s in feed] for m in (reference, quantized)
        ]
        return sqnr_db(np.stack(rows[0]), np.stack(rows[1]))


def uneven(activation: str = "Relu({})", factor: float = 100.0) -> ir.Model:
    """A residual block whose hidden channels differ by ``factor`` in the weights on both sides."""
    spread = np.random.default_rng(2).permutation(np.geomspace(1, factor, 24)).astype(np.float32).reshape(-1, 1, 1, 1)
    return parse(
        f"g (float[1, 8, 12, 12] x) => (float y) {{ a = Conv(x, w, b) h = {activation.format('a')} "
        f"d = Conv <group = 24, pads = [1, 1, 1, 1]> (h, k, c) e = {activation.format('d')} p = Conv(e, v, f) "
        "y = Add(p, x) }",
        w=weights(24, 8, 1, 1, seed=1) * spread,
        b=weights(24, seed=2) * spread.ravel(),
        k=weights(24, 1, 3, 3, seed=3) / spread,
        c=weights(24, seed=4, scale=0.1),
        v=weights(8, 24, 1, 1, seed=5),
        f=weights(8, seed=6),
        low=np.float32(0),
        high=np.float32(6),
    )


def test_channels_of_very_different_size_gain_many_db_where_a_weight_has_one_scale() -> None:
    setting = Setting("amd-npu")
    model = setting.shaped(uneven())
    feed = samples(model, 16)
    result = setting.equalize(model, feed)
    before, after = setting.sqnr(model, feed, model), setting.sqnr(result.model, feed, model)
    assert after > before + 8
    kept = [trial for trial in result.trials if trial.kept]
    assert len(kept) == 1
    assert "cross-layer equalization" in kept[0].method
    assert kept[0].after_db > kept[0].before_db + 8
    assert result.notes[0].startswith("h: cross-layer equalization")
    for sample in feed:
        reference = run_model(model, sample)["y"]
        np.testing.assert_allclose(run_model(result.model, sample)["y"], reference, rtol=1e-4, atol=1e-4)


def test_a_rewrite_that_hurts_is_refused() -> None:
    """Even channels: smoothing has nothing to win, and a Relu for a Clip that cuts is another function."""
    setting = Setting("amd-npu")
    model = setting.shaped(uneven("Clip({}, low, high)", factor=1.0))
    for value in ("w", "b"):
        array = model.graph.initializers[value].const_value.numpy() * np.float32(40)
        model.graph.initializers[value].const_value = ir.tensor(array, name=value)
    result = setting.equalize(model, samples(model, 16))
    worse = [trial for trial in result.trials if trial.after_db is not None and trial.after_db < trial.before_db - 3]
    assert any("Relu for Clip" in trial.method for trial in worse)
    assert not any(trial.kept for trial in worse)


def test_where_nothing_helps_the_model_stays_what_it_is() -> None:
    setting = Setting("linux-x64")
    graph = "g (float[1, 12, 32] x) => (float y) { r = Gelu(x) q = MatMul(r, v) t = Add(q, c) y = Sigmoid(t) }"
    model = setting.shaped(parse(graph, v=weights(32, 16), c=weights(16, seed=1).reshape(1, 1, 16)))
    result = setting.equalize(model, samples(model, 16))
    assert len(result.trials) == 4
    assert not any(trial.kept for trial in result.trials)
    assert result.notes == ()
    assert fingerprint(result.model) == fingerprint(model)


def attention_free_layer(outlier: float) -> ir.Model:
    """The feed-forward half of a transformer layer, with one channel that sticks out behind the norm."""
    gamma, beta = np.ones(32, np.float32), np.zeros(32, np.float32)
    beta[3] = outlier
    return parse(
        "g (float[1, 12, 32] x) => (float y) { h = LayerNormalization <axis = -1> (x, gamma, beta) "
        "m = MatMul(h, w) s = Add(m, b) r = Gelu(s) q = MatMul(r, v) t = Add(q, c) y = Add(t, x) }",
        gamma=gamma,
        beta=beta,
        w=weights(32, 64),
        b=weights(64, seed=1).reshape(1, 1, 64),
        v=weights(64, 32, seed=2),
        c=weights(32, seed=3).reshape(1, 1, 32),
    )


def test_an_outlier_behind_a_norm_is_shifted_or_scaled_away_at_no_cost() -> None:
    setting = Setting("linux-x64")
    model = setting.shaped(attention_free_layer(40.0))
    feed = samples(model, 16)
    result = setting.equalize(model, feed)
    kept = [trial for trial in result.trials if trial.kept and trial.method.endswith("on h")]
    assert len(kept) == 1
    assert kept[0].after_db > kept[0].before_db + 3
    methods = " ".join(trial.method for trial in result.trials)
    assert all(name in methods for name in ("SmoothQuant", "Outlier Suppression+", "RepQ-ViT"))
    assert setting.sqnr(result.model, feed, model) > setting.sqnr(model, feed, model) + 3


def test_an_added_node_must_be_worth_three_decibels() -> None:
    setting = Setting("linux-x64")
    model = setting.shaped(attention_free_layer(0.0))
    result = setting.equalize(model, samples(model, 16))
    gains = [t.after_db - t.before_db for t in result.trials if t.method.endswith("on r")]
    assert max(gains) < 3
    assert "Mul" not in {node.op_type for node in result.model.graph}


def test_twice_gives_the_same() -> None:
    setting = Setting("amd-npu")
    model = setting.shaped(uneven("Clip({}, low, high)"))
    first, second = (setting.equalize(model, samples(model, 12)) for _ in range(2))
    assert first.trials == second.trials
    assert first.notes == second.notes
    assert fingerprint(first.model) == fingerprint(second.model)


def test_ranges_found_at_run_time_are_measured_block_by_block() -> None:
    setting = Setting("linux-x64", "w8a8_dynamic")
    spread = np.geomspace(1, 300, 16).astype(np.float32)
    layers = [f"r{n} = MatMul(r{n - 1}, w{n})" for n in range(1, 13)]
    text = f"g (float[1, 8, 16] r0) => (float r12) {{ {' '.join(layers)} }}"
    model = parse(text, **{f"w{n}": weights(16, 16, seed=n) * spread / spread[:, None] for n in range(1, 13)})
    found = setting.equalize(model, samples(model, 16))
    assert len({trial.block for trial in found.trials}) > 1, "the model is one block to it"


def test_check_samples_alone_decide() -> None:
    """Every fourth sample is a check sample: what is there decides, and nothing is fitted on it."""
    setting = Setting("amd-npu")
    model = setting.shaped(uneven())
    feed = samples(model, 16)
    other = [{"x": sample["x"] * (3 if row % 4 == 3 else 1)} for row, sample in enumerate(feed)]
    first, second = setting.equalize(model, feed), setting.equalize(model, other)
    assert [t.method for t in first.trials] == [t.method for t in second.trials]
    assert [t.after_db for t in first.trials] != [t.after_db for t in second.trials]


@pytest.mark.parametrize("scheme", ["w8", "w4"])
def test_schemes_without_quantized_activations_are_left_alone(scheme: str) -> None:
    setting = Setting("linux-x64", scheme)
    model = setting.shaped(uneven())
    result = setting.equalize(model, samples(model, 8))
    assert result.model is model
    assert result.trials == ()


@pytest.mark.parametrize(("target", "scheme"), [("linux-x64", "w8a8"), ("android-npu", "w4a8")])
def test_a_part_of_a_layout_quantizes_as_the_whole_does(target: str, scheme: str) -> None:
    """Blocks with their share of the layout, one after the other, give the numbers of the whole model.

    With 4 bits the first and the last weight of the whole keep 8, and not those of each block.
    """
    setting = Setting(target, scheme)
    model = setting.shaped(uneven())
    feed = samples(model, 8)
    layout = setting.find(model)
    axes = layout.channel_axes(model)
    stats = calibrate(model, load_feed(feed, input_infos(model)), layout.observed, channel_axis=axes)
    whole = run_model(insert_qdq(model, setting.plan(model, layout, stats)), feed[0])
    values = dict(feed[0])
    for block in find_blocks(model, {"a", "d", "p"}, most=1):
        part = extract_block(model, block)
        quantized = insert_qdq(part, setting.plan(part, restrict_layout(layout, part), stats))
        values.update(run_model(quantized, {name: values[name] for name in block.inputs}))
    np.testing.assert_array_equal(values["y"], whole["y"])
