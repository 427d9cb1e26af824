"""Every number of a plan: scales, zero points, biases, and the rules that guard them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from small_models import Chain, parse, quantized, samples, weights

from edgeq.affine import quantize
from edgeq.errors import ConfigError
from edgeq.graph import constant_array
from edgeq.metrics import sqnr_db
from edgeq.qtypes import Decision, PerAxis, PerBlock, PerTensor, QParams, Scheme
from edgeq.runtime import run_model
from edgeq.stages.choose import choose_plan, find_layout
from edgeq.target import TargetProfile, load_target

CONV = "Conv<pads=[1,1,1,1]>"


def decision(chain: Chain, tensor: str, role: str | None = None) -> Decision:
    (found,) = (d for d in chain.plan if d.tensor == tensor and role in (None, d.role))
    return found


def qparams(chain: Chain, tensor: str) -> QParams:
    found = decision(chain, tensor).qparams
    assert found is not None
    return found


def two_convs(**constants: np.ndarray):
    w = {"w": weights(8, 3, 3, 3), "w2": weights(8, 8, 3, 3, seed=1)}
    return parse(
        f"g (float[1,3,8,8] x) => (float[1,8,8,8] y) {{ a = {CONV}(x, w) b = Relu(a) y = {CONV}(b, w2) }}",
        **(w | constants),
    )


# -- activations


@pytest.mark.parametrize(("target", "zero"), [("linux-x64", 0), ("android", -128)])
def test_softmax_has_the_range_of_a_probability(target: str, zero: int) -> None:
    model = parse(
        "g (float[1,4,8] x) => (float[1,4,8] y) { a = MatMul(x, m) b = Softmax<axis=-1>(a) y = MatMul(b, m) }",
        m=weights(8, 8),
    )
    chain = quantized(model, target)
    found = qparams(chain, "b")
    assert float(found.scale) == pytest.approx(1 / 256, rel=1e-6)
    assert int(found.zero_point) == zero
    assert decision(chain, "b").rule == "fixed range of Softmax"


def test_types_follow_the_target() -> None:
    assert qparams(quantized(two_convs(), "linux-x64"), "x").spec.dtype.name == "uint8"
    assert qparams(quantized(two_convs(), "android"), "x").spec.dtype.name == "int8"


def test_signed_and_unsigned_plans_are_the_same_numbers() -> None:
    """x86 wants uint8, Arm int8: the same scales, every zero point lower by 128, and the same outputs bit for bit."""
    model = parse(
        f"""g (float[1,3,8,8] x) => (float y) {{
            a = {CONV}(x, w, b) r = Relu(a) c = {CONV}(r, w2) d = Add(c, r) s = Sigmoid(d) e = Mul(s, k)
            y = {CONV}(e, w2) }}""",
        w=weights(8, 3, 3, 3),
        w2=weights(8, 8, 3, 3),
        b=weights(8),
        k=weights(8, 1, 1),
    )
    unsigned, signed = quantized(model, "linux-x64"), quantized(model, "android")
    assert len(unsigned.plan.decisions) == len(signed.plan.decisions) > 8
    for u, s in zip(unsigned.plan, signed.plan, strict=True):
        assert u.qparams is not None
        assert s.qparams is not None
        assert (u.tensor, u.rule) == (s.tensor, s.rule)
        assert np.array_equal(u.qparams.scale, s.qparams.scale)
        lower = 0 if u.qparams.spec.dtype.signed else 128
        assert np.array_equal(u.qparams.zero_point.astype(int) - lower, s.qparams.zero_point.astype(int))
    for sample in unsigned.feed:
        assert np.array_equal(unsigned.run(sample)["y"], signed.run(sample)["y"])


def test_after_relu_no_level_is_wasted_on_negative_numbers() -> None:
    for target, zero in (("linux-x64", 0), ("android", -128)):
        assert int(qparams(quantized(two_convs(), target), "b").zero_point) == zero


def test_moved_data_shares_scale_and_zero_point() -> None:
    model = parse(
        f"""g (float[1,3,8,8] x) => (float[1,8,4,4] y) {{
            a = {CONV}(x, w) b = MaxPool<kernel_shape=[2,2],strides=[2,2]>(a) y = {CONV}(b, w2) }}""",
        w=weights(8, 3, 3, 3),
        w2=weights(8, 8, 3, 3),
    )
    chain = quantized(model)
    assert qparams(chain, "b") is qparams(chain, "a")
    assert decision(chain, "b").rule == "shares the scale of a: the data only moves"


def test_a_least_range_is_kept() -> None:
    target = load_target("linux-x64")
    wide = msgspec.structs.replace(target, activations=msgspec.structs.replace(target.activations, min_range=10_000.0))
    assert float(qparams(quantized(two_convs(), wide), "x").scale) == pytest.approx(10_000 / 255, rel=1e-6)


def test_a_dead_activation_still_has_a_legal_scale() -> None:
    model = two_convs(w=np.zeros((8, 3, 3, 3), np.float32))
    chain = quantized(model, feed=samples(model))
    assert np.isfinite(chain.run(chain.feed[0], "all")["y"]).all()
    for found in chain.plan.quantized:
        assert found.qparams is not None
        assert (found.qparams.scale > 0).all()


# -- masks


def masked_chain() -> Chain:
    text = """g (float[1,4,8] x, bool[1,1,4] keep) => (float[1,4,8] y) {
        a = MatMul(x, m) b = Where(keep, a, low) s = Softmax<axis=-1>(b) y = MatMul(s, m) }"""
    model = parse(text.replace("bool[1,1,4]", "bool[1,4,8]"), m=weights(8, 8), low=np.finfo(np.float32).min)
    return quantized(model)


def test_a_mask_is_never_quantized() -> None:
    chain = masked_chain()
    found = decision(chain, "b")
    assert found.qparams is None
    assert found.rule == "mask guard"
    assert found.skip_reason == "it holds mask values of -3.4e+38, which no integer grid can reach"
    assert chain.stats["b"].masked > 0
    # Who reads or writes the tensor runs in float, and the plan says so.
    for name in ("b", "s"):
        demoted = chain.plan.nodes[name]
        assert (demoted.kind, demoted.why, demoted.foreseen) == ("float", found.skip_reason, "integer")
    assert chain.plan.nodes["a"].kind == chain.plan.nodes["y"].kind == "integer"
    for sample in chain.feed:
        expected = run_model(chain.shaped, sample)["y"]
        np.testing.assert_allclose(chain.run(sample, "all")["y"], expected, atol=0.05 * np.abs(expected).max())


def test_masked_values_count_even_where_the_extrema_do_not_show_them() -> None:
    chain = masked_chain()
    stats = chain.stats | {"b": replace(chain.stats["b"], lo=-5.0)}
    plan = choose_plan(chain.shaped, chain.layout, stats, chain.target)
    assert next(d for d in plan if d.tensor == "b").qparams is None


def test_a_tensor_that_calibration_never_saw_stays_float() -> None:
    model = two_convs()
    chain = quantized(model)
    stats = {name: seen for name, seen in chain.stats.items() if name != "b"}
    plan = choose_plan(chain.shaped, chain.layout, stats, chain.target)
    (skipped,) = plan.skipped
    assert (skipped.tensor, skipped.skip_reason) == ("b", "calibration never saw this tensor")
    assert plan.nodes["a"].kind == plan.nodes["y"].kind == "float"


# -- weights

FOUR_BITS = """
name = "toy"
inherits = "cpu"
summary = "a CPU with 4-bit weights"
precisions = ["w4a8"]
absorbs = ["Relu"]
sources = ["invented"]
activations = { types = { "8" = "uint8" }, source = "invented" }

[[capability]]
ops = ["Conv", "Gemm"]
kind = "compute"
activation_bits = [8]
weight_bits = [4, 8]
source = "invented"
"""


@pytest.fixture
def four_bits(tmp_path: Path) -> TargetProfile:
    path = tmp_path / "toy.toml"
    path.write_text(FOUR_BITS)
    target = load_target(path)
    own = tuple(c for c in target.capability if c.source == "invented")
    return msgspec.structs.replace(target, capability=own)


def layers(count: int):
    body = " ".join(f"a{i + 1} = {CONV}(a{i}, w{i})" for i in range(count))
    text = f"g (float[1,8,8,8] a0) => (float[1,8,8,8] a{count}) {{ {body} }}"
    return parse(text, **{f"w{i}": weights(8, 8, 3, 3, seed=i) for i in range(count)})


def test_first_and_last_layer_keep_8_bits(four_bits: TargetProfile) -> None:
    chain = quantized(layers(4), four_bits, "w4a8")
    assert [qparams(chain, f"w{i}").spec.dtype.name for i in range(4)] == ["int8", "int4", "int4", "int8"]
    assert decision(chain, "w0").rule.endswith("8 bits: first or last layer")
    stored = {name: value.dtype.name for name, value in chain.model.graph.initializers.items()}
    assert stored["w1_quantized"] == "INT4"


def test_two_layers_are_both_edges_and_take_what_was_asked(four_bits: TargetProfile) -> None:
    chain = quantized(layers(2), four_bits, "w4a8")
    assert [qparams(chain, f"w{i}").spec.dtype.name for i in range(2)] == ["int4", "int4"]


def test_a_kernel_without_the_bits_takes_8(four_bits: TargetProfile) -> None:
    cpu = msgspec.structs.replace(four_bits, capability=load_target("linux-x64").capability)
    chain = quantized(layers(3), cpu, "w4a8")
    assert decision(chain, "w1").rule.endswith("8 bits: no 4-bit kernel")
    assert qparams(chain, "w1").spec.dtype.bits == 8


@pytest.mark.parametrize("columns", [16, 17, 18, 19, 20])
def test_two_bits_only_where_onnx_runtime_computes_them_rightly(columns: int) -> None:
    model = parse("g (float[1,4,33] x) => (float y) { y = MatMul(x, w) }", w=weights(33, columns))
    chain = quantized(model, scheme="w2")
    assert qparams(chain, "w").spec.dtype.bits == (8 if columns % 4 else 2)
    assert ("no 2-bit kernel" in decision(chain, "w").rule) == bool(columns % 4)
    for sample in chain.feed:
        assert sqnr_db(chain.run(sample)["y"], chain.run(sample, "all")["y"]) > 30


def test_granularity_of_weights() -> None:
    model = parse(
        "g (float[4,8] x) => (float[4,8] y) { h = Gemm(x, m) k = Gemm<transB=1>(h, n) y = MatMul(k, p) }",
        m=weights(8, 8),
        n=weights(8, 8, seed=1),
        p=weights(8, 8, seed=2),
    )
    chain = quantized(model)
    assert qparams(chain, "m").spec.granularity == PerAxis(1)
    assert qparams(chain, "n").spec.granularity == PerAxis(0)
    assert qparams(chain, "p").spec.granularity == PerAxis(1)
    stack = parse("g (float[2,4,8] x) => (float[2,4,8] y) { y = MatMul(x, w) }", w=weights(2, 8, 8))
    assert qparams(quantized(stack), "w").spec.granularity == PerTensor()
    blocks = parse("g (float[4,40] x) => (float[4,8] y) { y = MatMul(x, w) }", w=weights(40, 8))
    found = qparams(quantized(blocks, scheme="w4_b16"), "w")
    assert found.spec.granularity == PerBlock(0, 16)
    assert found.scale.shape == (3, 8)


def test_minmax_does_not_clip_weights_either() -> None:
    chain = quantized(two_convs(), range_method="minmax")
    array = weights(8, 3, 3, 3)
    assert qparams(chain, "w").scale == pytest.approx(np.abs(array).reshape(8, -1).max(axis=1) / 127, rel=1e-6)
    assert decision(chain, "w").rule == "minmax weight scale"


def test_dead_channels() -> None:
    w = weights(8, 3, 3, 3)
    w[2] = 0
    bias = np.full(8, 0.5, np.float32)
    model = parse(f"g (float[1,3,8,8] x) => (float[1,8,8,8] y) {{ y = {CONV}(x, w, bias) }}", w=w, bias=bias)
    chain = quantized(model)
    for optimization in ("none", "all"):
        out = chain.run(chain.feed[0], optimization)["y"]
        np.testing.assert_allclose(out[:, 2], 0.5, atol=float(qparams(chain, "y").scale))


# -- biases


@pytest.mark.parametrize("magnitude", [1e-12, 1.0, 1e4, 1e9])
@pytest.mark.parametrize("weight_scale", [1e-20, 1e-6, 1.0])
def test_a_bias_fits_into_32_bits_and_is_exact_within_half_a_step(magnitude: float, weight_scale: float) -> None:
    bias = (weights(8, seed=3) * magnitude).astype(np.float32)
    w = (weights(8, 3, 3, 3) * weight_scale).astype(np.float32)
    model = parse(f"g (float[1,3,8,8] x) => (float[1,8,8,8] y) {{ y = {CONV}(x, w, bias) }}", w=w, bias=bias)
    chain = quantized(model, bias_correction=False)
    step = qparams(chain, "bias").scale.astype(np.float64)
    np.testing.assert_allclose(step, qparams(chain, "x").scale * qparams(chain, "w").scale, rtol=1e-6)
    stored = constant_array(chain.model.graph.initializers["bias_quantized"])
    assert stored is not None
    assert stored.dtype == np.int32
    assert np.abs(stored.astype(np.int64)).max() < 2**31 - 1  # not saturated
    assert (np.abs(stored * step - bias) <= step / 2 * (1 + 1e-6) + 1e-7 * np.abs(bias)).all()


@pytest.mark.parametrize("per_channel", [True, False])
def test_the_overflow_guard_raises_only_what_it_must(per_channel: bool) -> None:
    target = load_target("linux-x64")
    conv = msgspec.structs.replace(target.capabilities("Conv")[0], per_channel=per_channel)
    target = msgspec.structs.replace(target, capability=(conv,))
    bias = np.zeros(8, np.float32)
    bias[3] = 1e9
    model = parse(f"g (float[1,3,8,8] x) => (float[1,8,8,8] y) {{ y = {CONV}(x, w, bias) }}",
                  w=weights(8, 3, 3, 3, scale=1e-4), bias=bias)  # fmt: skip
    guarded = quantized(model, target, bias_correction=False)
    plain = quantized(two_convs(w=weights(8, 3, 3, 3, scale=1e-4)), target)
    assert decision(guarded, "bias").rule.endswith("weight scale raised, or the bias would overflow")
    raised = np.atleast_1d(qparams(guarded, "w").scale > qparams(plain, "w").scale)
    assert raised.tolist() == ([False] * 3 + [True] + [False] * 4 if per_channel else [True])
    out = guarded.run(guarded.feed[0], "all")["y"]
    assert out[0, 3] == pytest.approx(1e9, rel=0.01)


def test_a_target_may_keep_biases_in_float() -> None:
    target = load_target("linux-x64")
    target = msgspec.structs.replace(target, bias=msgspec.structs.replace(target.bias, mode="float"))
    model = parse("g (float[4,8] x) => (float[4,8] y) { y = Gemm(x, m, b) }", m=weights(8, 8), b=weights(8))
    chain = quantized(model, target)
    assert decision(chain, "b").skip_reason == "the target keeps biases in float"
    np.testing.assert_allclose(chain.run(chain.feed[0])["y"], run_model(model, chain.feed[0])["y"], atol=0.05)


def test_shared_weights_and_biases_are_separated() -> None:
    model = parse(
        f"""g (float[1,8,8,8] x) => (float[1,8,8,8] y, float[1,8,8,8] z) {{
            a = {CONV}(x, w, bias) y = {CONV}(a, w, bias) z = {CONV}(a, w) }}""",
        w=weights(8, 8, 3, 3),
        bias=weights(8),
    )
    chain = quantized(model)
    assert [d.consumers for d in chain.plan if d.tensor == "w"] == [("a",), ("y",), ("z",)]
    assert [d.tensor for d in chain.plan if d.role == "bias"] == ["a/bias", "y/bias", "z/bias"]
    names = [name for name in chain.model.graph.initializers if "_quantized" in name]
    assert len(names) == 4  # the weight once, and three biases
    assert "bias" not in chain.model.graph.initializers
    for sample in chain.feed:
        exact = run_model(model, sample)
        for name, out in chain.run(sample, "all").items():
            np.testing.assert_allclose(out, exact[name], atol=0.05 * np.abs(exact[name]).max())


def test_a_bias_of_its_own_is_not_mistaken_for_a_constant_of_that_name() -> None:
    """Some exporters call a bias ``<node>/bias``; here that name belongs to another tensor."""
    model = parse(
        f"""g (float[1,8,8,8] x) => (float[1,8,8,8] y, float[8] z) {{
            a = {CONV}(x, w, bias) y = {CONV}(a, w, bias) z = Tanh(other) }}""",
        w=weights(8, 8, 3, 3),
        bias=weights(8),
        other=np.full(8, 100, np.float32),
    )
    model.graph.initializers["other"].name = "y/bias"
    chain = quantized(model, bias_correction=False)
    out, exact = chain.run(chain.feed[0])["y"], run_model(model, chain.feed[0])["y"]
    np.testing.assert_allclose(out, exact, atol=0.05 * np.abs(exact).max())


# -- bias correction

CORRECTED = {
    "conv": ("float[1,6,8,8]", "y = Conv(x, w, b)", (8, 6, 3, 3), 1),
    "conv without bias": ("float[1,6,8,8]", "y = Conv(x, w)", (8, 6, 3, 3), 1),
    "grouped": ("float[1,6,8,8]", "y = Conv<group=2>(x, w, b)", (8, 3, 3, 3), 1),
    "depthwise": ("float[1,6,8,8]", "y = Conv<group=6>(x, w, b)", (6, 1, 3, 3), 1),
    "depthwise with multiplier": ("float[1,6,8,8]", "y = Conv<group=6>(x, w, b)", (12, 1, 3, 3), 1),
    "1d": ("float[1,6,20]", "y = Conv(x, w, b)", (8, 6, 3), 1),
    "gemm": ("float[5,24]", "y = Gemm(x, w, b)", (24, 8), 1),
    "gemm transB": ("float[5,24]", "y = Gemm<transB=1>(x, w, b)", (8, 24), 1),
    "gemm without bias": ("float[5,24]", "y = Gemm(x, w)", (24, 8), 1),
    "square gemm": ("float[5,8]", "y = Gemm(x, w, b)", (8, 8), 1),
    "square gemm transB": ("float[5,8]", "y = Gemm<transB=1>(x, w, b)", (8, 8), 1),
}


@pytest.mark.parametrize("case", CORRECTED)
def test_bias_correction_removes_the_mean_error_of_the_weights(case: str, four_bits: TargetProfile) -> None:
    """The output's error per channel, averaged over the samples, with only the weights quantized."""
    shape, body, size, axis = CORRECTED[case]
    channels = size[0] if "Conv" in body or "transB" in body else size[1]
    constants = {"w": weights(*size, seed=2)} | ({"b": weights(channels)} if ", b)" in body else {})
    model = parse(f"g ({shape} x) => (float y) {{ {body} }}", **constants)
    rng = np.random.default_rng(5)
    dims = [int(d) for d in shape[6:-1].split(",")]
    offset = np.linspace(-3, 3, dims[1]).reshape(-1, *[1] * (len(dims) - 2))  # every channel has its own mean
    feed = [{"x": (rng.standard_normal(dims) + offset).astype(np.float32)} for _ in range(16)]

    def mean_error(correct: bool) -> np.ndarray:
        chain = quantized(model, four_bits, "w4a8", feed=feed, bias_correction=correct)
        plan = chain.plan
        real = {str(d.tensor): d for d in plan.quantized if d.role == "weight"}["w"]
        from edgeq.affine import fake_quantize

        w = fake_quantize(constants["w"], real.qparams)
        name = next((n for n in plan.weights), "b")
        bias = plan.weights.get(name, constants.get("b", np.zeros(channels, np.float32)))
        simulated = parse(
            f"g ({shape} x) => (float y) {{ {body if ', b)' in body else body.replace('w)', 'w, b)')} }}", w=w, b=bias
        )
        errors = [run_model(simulated, s)["y"] - run_model(model, s)["y"] for s in feed]
        stacked = np.concatenate(errors)
        return np.abs(np.moveaxis(stacked, axis, 0).reshape(channels, -1).mean(axis=1))

    before, after = mean_error(False), mean_error(True)
    assert before.max() > 1e-3  # there is something to correct
    assert after.mean() < 0.1 * before.mean()


def test_bias_correction_leaves_what_it_does_not_know() -> None:
    model = parse("g (float[8,8] x) => (float[8,8] y) { y = Gemm<transA=1>(x, w, b) }", w=weights(8, 8), b=weights(8))
    assert not quantized(model).plan.weights
    scaled = parse("g (float[8,8] x) => (float[8,8] y) { y = Gemm<alpha=0.5>(x, w) }", w=weights(8, 8))
    assert not quantized(scaled).plan.weights


def test_means_are_not_carried_over_data_movement() -> None:
    """The mean behind MaxPool is larger than in front of it, although both share one scale."""
    model = parse(
        f"""g (float[1,3,8,8] x) => (float y, float z) {{
            a = {CONV}(x, w) y = {CONV}(a, w2)
            b = MaxPool<kernel_shape=[3,3]>(a) z = {CONV}(b, w3) }}""",
        w=weights(8, 3, 3, 3),
        w2=weights(8, 8, 3, 3),
        w3=weights(8, 8, 3, 3, seed=3),
    )
    chain = quantized(model)
    assert chain.stats["a"].channel_mean is not None
    assert set(chain.plan.weights) == {"a/bias", "y/bias"}


def test_means_of_another_axis_are_not_taken() -> None:
    """Conv counts channels along axis 1, MatMul along the last: a tensor that both read has means of one of them."""
    model = parse(
        "g (float[1,8,8] x) => (float y, float z) { y = Conv(x, w) z = MatMul(x, m) }",
        w=weights(4, 8, 1),
        m=weights(8, 8),
    )
    chain = quantized(model)
    assert chain.stats["x"].channel_axis == 2
    assert not chain.plan.weights


def test_bias_correction_can_be_turned_off() -> None:
    assert quantized(two_convs()).plan.weights
    assert not quantized(two_convs(), bias_correction=False).plan.weights


# -- errors and determinism


def test_an_unknown_range_method_lists_the_known() -> None:
    model = two_convs()
    target = load_target("linux-x64")
    layout = find_layout(model, target, Scheme.parse("w8a8"))
    with pytest.raises(ConfigError, match="unknown range method 'magic'") as caught:
        choose_plan(model, layout, {}, target, range_method="magic")
    assert caught.value.remedy == "choose one of: mse, minmax, average, percentile, entropy"


def test_a_width_that_the_target_lacks_is_named() -> None:
    target = load_target("linux-x64")
    less = msgspec.structs.replace(target, weights=msgspec.structs.replace(target.weights, types={"4": "int4"}))
    with pytest.raises(ConfigError, match="linux-x64 has no 8-bit weights; it has 4"):
        quantized(two_convs(), less)
    none = msgspec.structs.replace(target, activations=msgspec.structs.replace(target.activations, types={}))
    with pytest.raises(ConfigError, match="linux-x64 has no 8-bit activations"):
        quantized(two_convs(), none)


@pytest.mark.parametrize("scheme", ["w8a8", "w4"])
def test_the_same_input_gives_the_same_plan(scheme: str) -> None:
    first, second = (quantized(two_convs(), scheme=scheme) for _ in range(2))
    assert len(first.plan.decisions) == len(second.plan.decisions)
    for a, b in zip(first.plan, second.plan, strict=True):
        assert (a.tensor, a.role, a.consumers, a.rule, a.skip_reason) == (
            b.tensor, b.role, b.consumers, b.rule, b.skip_reason,
        )  # fmt: skip
        if a.qparams is not None and b.qparams is not None:
            assert a.qparams.scale.tobytes() == b.qparams.scale.tobytes()
            assert a.qparams.zero_point.tobytes() == b.qparams.zero_point.tobytes()


def test_every_node_is_in_the_plan() -> None:
    chain = quantized(two_convs())
    assert set(chain.plan.nodes) == {str(node.name) for node in chain.shaped.graph}
    assert all(node.why for node in chain.plan.nodes.values())


def test_stored_weights_are_what_affine_says() -> None:
    chain = quantized(two_convs())
    stored = constant_array(chain.model.graph.initializers["w_quantized"])
    np.testing.assert_array_equal(stored, quantize(weights(8, 3, 3, 3), qparams(chain, "w")))
