"""Changing one number of a plan changes all that follow from it, and the graph made of it stays sound."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_models import parse, quantized, samples, weights

from edgeq.affine import range_to_qparams
from edgeq.blocks import extract, restrict_plan
from edgeq.graph import constant_array
from edgeq.qtypes import Decision, QParams, QuantPlan
from edgeq.revise import bias_home, merge, sharing, weight_of, with_activation, with_bias, with_weight
from edgeq.runtime import run_model
from edgeq.stages.insert import insert_qdq

POOLED = """g (float[1,3,8,8] x) => (float[1,4,2,2] y) {
    a = Conv <pads = [1,1,1,1]> (x, w1, b1)
    r = Relu (a)
    m = MaxPool <kernel_shape = [2,2], strides = [2,2]> (r)
    y = Conv (m, w2)
}"""
LINEAR = """g (float[1,5,8] x) => (float[1,5,6] y) {
    h = MatMul (x, w)
    y = Add (h, b)
}"""


def pooled() -> tuple:
    constants = {"w1": weights(4, 3, 3, 3), "b1": weights(4, seed=1), "w2": weights(4, 4, 3, 3, seed=2)}
    chain = quantized(parse(POOLED, **constants))
    return chain.shaped, chain.plan


def of(plan: QuantPlan, tensor: str, role: str = "activation") -> QParams:
    found = next(d for d in plan if d.tensor == tensor and d.role == role)
    assert found.qparams is not None
    return found.qparams


def widened(qparams: QParams, factor: float) -> QParams:
    low, high = qparams.real_range
    return range_to_qparams(low * factor, high * factor, qparams.spec)


def bias_scales_follow(plan: QuantPlan) -> bool:
    """Whether every int32 bias has the scale of its data times that of its weight, as its consumer multiplies."""
    read = {n: d.qparams for d in plan if d.role == "activation" for n in d.consumers if d.qparams}
    held = {n: d.qparams for d in plan if d.role == "weight" for n in d.consumers if d.qparams}
    return all(
        np.array_equal(d.qparams.scale, read[n].scale * held[n].scale)
        for d in plan
        if d.role == "bias" and d.qparams is not None
        for n in d.consumers
    )


def test_a_range_takes_along_all_that_share_it() -> None:
    model, plan = pooled()
    assert sharing(plan, "m") == sharing(plan, "r") == {"r", "m"}
    for tensor in ("r", "m"):
        changed = with_activation(plan, model, tensor, widened(of(plan, "r"), 0.5))
        assert of(changed, "r").scale == of(changed, "m").scale == pytest.approx(of(plan, "r").scale * 0.5, rel=1e-6)
        assert bias_scales_follow(changed)
        assert of(changed, "x").scale == of(plan, "x").scale


def test_biases_follow_data_and_weights() -> None:
    model, plan = pooled()
    assert bias_scales_follow(plan)
    changed = with_activation(plan, model, "x", widened(of(plan, "x"), 2.0))
    assert bias_scales_follow(changed)
    assert not np.array_equal(of(changed, "b1", "bias").scale, of(plan, "b1", "bias").scale)
    weight = weight_of(plan, model, "a")
    assert weight is not None
    assert weight.qparams is not None
    doubled = replace(weight.qparams, scale=weight.qparams.scale * np.float32(2))
    changed = with_weight(plan, model, "a", doubled, weights(4, 3, 3, 3))
    assert bias_scales_follow(changed)
    np.testing.assert_array_equal(changed.weights["w1"], weights(4, 3, 3, 3))


def test_a_bias_that_would_overflow_raises_the_scale_of_its_weight() -> None:
    model, plan = pooled()
    changed = with_bias(plan, model, "a", np.full(4, 1e7, np.float32), mode="int32")
    levels = changed.weights["b1"].astype(np.float64) / of(changed, "b1", "bias").scale
    assert np.abs(levels).max() < 2**31
    assert (of(changed, "w1", "weight").scale > of(plan, "w1", "weight").scale).all()
    assert bias_scales_follow(changed)


def test_a_layer_without_a_bias_gets_one() -> None:
    model = parse("g (float[1,3,8,8] x) => (float[1,4,6,6] y) { y = Conv (x, w) }", w=weights(4, 3, 3, 3))
    chain = quantized(model, bias_correction=False)
    assert not any(d.role == "bias" for d in chain.plan)
    added = np.array([1, 2, 3, 4], np.float32)
    changed = with_bias(chain.plan, chain.shaped, "y", added, mode="int32")
    sample = chain.feed[0]
    before, after = (run_model(insert_qdq(chain.shaped, p), sample)["y"] for p in (chain.plan, changed))
    moved = (after - before).mean(axis=(0, 2, 3))
    assert moved[0] == pytest.approx(1, abs=0.1)  # the others leave the range of y
    assert bias_scales_follow(changed)


@pytest.mark.parametrize("target", ["linux-x64", "android-npu"])
def test_an_add_takes_the_bias_of_a_matrix_product(target: str) -> None:
    model = parse(LINEAR, w=weights(8, 6), b=weights(6, seed=3))
    chain = quantized(model, target)
    home = bias_home(chain.plan, chain.shaped, "h")
    assert home is not None
    assert home.holder == "y"
    assert home.tap == "y"
    shifted = home.array + np.float32(0.125)
    changed = with_bias(chain.plan, chain.shaped, "h", shifted, mode="int32")
    sample = chain.feed[0]
    before, after = (run_model(insert_qdq(chain.shaped, p), sample)["y"] for p in (chain.plan, changed))
    step = max((float(d.qparams.scale) for d in chain.plan if d.tensor == "y" and d.qparams), default=1e-6)
    np.testing.assert_allclose(after.mean() - before.mean(), 0.125, atol=step)
    assert constant_array(chain.shaped.graph.initializers[home.tensor]).shape == home.shape  # type: ignore[union-attr]


def test_a_bias_with_other_readers_has_no_home() -> None:
    shared = LINEAR.replace("y = Add (h, b)", "k = Add (h, b)  y = Mul (k, b)")
    chain = quantized(parse(shared, w=weights(8, 6), b=weights(6, seed=3)), "android-npu")
    assert bias_home(chain.plan, chain.shaped, "h") is None


def test_what_does_not_fit_is_refused() -> None:
    model, plan = pooled()
    with pytest.raises(ValueError, match="does not quantize"):
        with_activation(plan, model, "nothing", of(plan, "x"))
    with pytest.raises(ValueError, match="quantized as"):
        with_activation(plan, model, "x", of(plan, "w1", "weight"))
    with pytest.raises(ValueError, match="no bias of the shape"):
        with_bias(plan, model, "a", np.zeros(7, np.float32), mode="int32")
    with pytest.raises(ValueError, match="no node"):
        weight_of(plan, model, "nobody")


def test_a_part_that_was_changed_comes_back_into_the_whole() -> None:
    model, plan = pooled()
    part = extract(model, ["x"], ["r"])
    inner = restrict_plan(plan, part)
    inner = with_activation(inner, part, "r", widened(of(plan, "r"), 0.75))
    inner = with_bias(inner, part, "a", np.full(4, 0.5, np.float32), mode="int32")
    whole = merge(plan, model, inner)
    assert of(whole, "m").scale == of(whole, "r").scale == of(inner, "r").scale
    np.testing.assert_array_equal(whole.weights["b1"], np.full(4, 0.5, np.float32))
    assert bias_scales_follow(whole)
    sample = samples(model, 1)[0]
    there = run_model(insert_qdq(part, restrict_plan(whole, part)), sample)["r"]
    np.testing.assert_array_equal(there, run_model(insert_qdq(part, inner), sample)["r"])
    untouched = merge(plan, model, restrict_plan(plan, part))
    assert [decision_key(d) for d in untouched] == [decision_key(d) for d in plan]


def decision_key(decision: Decision) -> tuple:
    q = decision.qparams
    return (decision.tensor, decision.role, decision.consumers, None if q is None else q.scale.tobytes())
