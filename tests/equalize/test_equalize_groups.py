"""Scales and shifts of what matrix products read: the same function, whoever takes the change."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_models import parse, samples, weights

from edgeq.blocks import extract
from edgeq.graph import input_infos
from edgeq.qtypes import Scheme, TensorStats
from edgeq.runtime import run_model
from edgeq.stages.calibrate import calibrate, load_feed
from edgeq.stages.equalize import LinearGroup, find_groups, has_channels, reparametrization, smoothings, suppressions

K = 24
W8A8 = Scheme.parse("w8a8")
RNG = np.random.default_rng(9)


class Everything:
    """Every node is an integer one."""

    def __contains__(self, name: object) -> bool:
        return True


def model_of(body: str, outputs: str = "float y") -> ir.Model:
    gamma, beta = np.ones(K, np.float32), np.zeros(K, np.float32)
    gamma[5], beta[7] = 30, 20
    return parse(
        f"g (float[1, 9, {K}] x) => ({outputs}) {{ {body} }}",
        gamma=gamma,
        beta=beta,
        w=weights(K, 16),
        v=weights(K, 8, seed=1),
        b=weights(16, seed=2),
        c=weights(8, seed=3).reshape(1, 1, 8),
        t=weights(16, K, seed=4),
    )


NORM = "h = LayerNormalization <axis = -1> (x, gamma, beta)"
BODIES = {
    "norm, two products": f"{NORM} p = MatMul(h, w) y = Add(p, b) q = MatMul(h, v) z = Add(c, q)",
    "norm without bias": "h = LayerNormalization <axis = -1> (x, gamma) p = MatMul(h, w) y = Add(p, b)",
    "norm read by others": f"{NORM} p = MatMul(h, w) y = Add(p, b) z = Sigmoid(h)",
    "a model's input": "p = MatMul(x, w) y = Add(p, b)",
    "no bias": f"{NORM} y = MatMul(h, w)",
    "gemm": f"h = LayerNormalization <axis = -1> (x, gamma, beta) two = Constant <value_ints = [9, {K}]> () "
    "r = Reshape(h, two) y = Gemm(r, w, b)",
    "gemm, transposed, no bias": f"two = Constant <value_ints = [9, {K}]> () r = Reshape(x, two) "
    "h = Gelu(r) y = Gemm <transB = 1> (h, t)",
}


def stats_of(model: ir.Model, group: LinearGroup, feed: list[dict[str, np.ndarray]]) -> TensorStats:
    value = next(v for node in model.graph for v in node.inputs if v is not None and v.name == group.tensor)
    axes = {group.tensor: len(value.shape) - 1}
    return calibrate(model, load_feed(feed, input_infos(model)), [group.tensor], channel_axis=axes)[group.tensor]


def rows_of(model: ir.Model, group: LinearGroup, feed: list[dict[str, np.ndarray]]) -> np.ndarray:
    part = extract(model, ["x"], [group.tensor])
    arrays = [sample["x"] if group.tensor == "x" else run_model(part, sample)[group.tensor] for sample in feed]
    return np.concatenate([array.reshape(-1, K) for array in arrays])


def prepared(name: str) -> tuple[ir.Model, LinearGroup, TensorStats, list[dict[str, np.ndarray]]]:
    model = model_of(BODIES[name], "float y, float z" if "z =" in BODIES[name] else "float y")
    feed = samples(model, 6)
    (group,) = find_groups(model, Everything())
    return model, group, stats_of(model, group, feed), feed


@pytest.mark.parametrize("name", BODIES)
def test_every_rewrite_keeps_the_function(name: str) -> None:
    model, group, seen, feed = prepared(name)
    assert has_channels(model, group, seen)
    found = [
        *smoothings(model, group, seen, rows_of(model, group, feed), W8A8),
        *suppressions(model, group, seen, rows_of(model, group, feed), W8A8),
    ]
    extra = reparametrization(group, seen, 8)
    found += [] if extra is None else [extra]
    before = len(model.graph)
    for alternative in found:
        after = model.clone()
        alternative.apply(after)
        assert len(after.graph) == before + alternative.added, alternative.method
        assert alternative.structural == (alternative.added > 0)
        for sample in feed:
            got = run_model(after, sample)
            for output, reference in run_model(model, sample).items():
                # Shifting a channel by 20 and back costs a few bits of float32.
                np.testing.assert_allclose(got[output], reference, rtol=1e-4, atol=1e-4, err_msg=alternative.method)


def test_who_takes_what() -> None:
    kinds = {name: prepared(name)[1] for name in BODIES}
    folded = {name for name, group in kinds.items() if group.norm == "h"}
    assert folded == {"norm, two products", "norm without bias", "no bias"}
    assert {name for name, group in kinds.items() if not group.shiftable} == {"no bias"}
    assert kinds["norm, two products"].readers == ("p", "q")


def test_a_shift_centres_the_channels() -> None:
    model, group, seen, feed = prepared("norm, two products")
    assert seen.hi > 20
    shifted = model.clone()
    (only,) = [
        a
        for a in suppressions(model, group, seen, rows_of(model, group, feed), W8A8)
        if a.method.endswith("shift only")
    ]
    only.apply(shifted)
    after = stats_of(shifted, group, feed)
    np.testing.assert_allclose(after.channel_hi, -after.channel_lo, atol=1e-4)


def test_channels_below_the_threshold_keep_their_scale() -> None:
    model, group, seen, feed = prepared("norm, two products")
    amplitude = (seen.channel_hi - seen.channel_lo) / 2
    for alternative in suppressions(model, group, seen, rows_of(model, group, feed), W8A8)[1:]:
        share = float(alternative.method.split()[-1])
        after = model.clone()
        alternative.apply(after)
        got = stats_of(after, group, feed)
        wanted = np.minimum(amplitude, share * amplitude.max())
        np.testing.assert_allclose((got.channel_hi - got.channel_lo) / 2, wanted, rtol=1e-3)


def test_after_reparametrization_one_grid_fits_all_channels() -> None:
    """Each channel spans the same integers that its own scale and zero point would give it (equation by equation)."""
    model, group, seen, feed = prepared("norm, two products")
    found = reparametrization(group, seen, 8)
    assert found is not None
    after = model.clone()
    found.apply(after)
    got = stats_of(after, group, feed)
    low, high = np.minimum(seen.channel_lo, 0), np.maximum(seen.channel_hi, 0)
    scale = (high - low) / 255
    zero = -low / scale
    for channel in range(K):
        for old, new in ((seen.channel_lo, got.channel_lo), (seen.channel_hi, got.channel_hi)):
            own = old[channel] / scale[channel] + zero[channel]
            assert abs(new[channel] / scale.mean() + zero.mean() - own) < 0.01


def test_a_norm_that_others_read_is_not_reparametrized() -> None:
    model, group, seen, feed = prepared("norm read by others")
    assert reparametrization(group, seen, 8) is None
    assert all(alternative.added for alternative in suppressions(model, group, seen, rows_of(model, group, feed), W8A8))
