"""Weights for kernels that add two products in 16 bits: nothing saturates, and little is lost."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from small_models import Chain, parse, quantized, weights

from edgeq.affine import fake_quantize
from edgeq.graph import save_model
from edgeq.metrics import sqnr_db
from edgeq.qtypes import IntType, PerAxis, TensorSpec
from edgeq.sandbox import Task, find_sandbox
from edgeq.stages.choose.pairs import limit_pairs, multiplied_rows
from edgeq.stages.choose.weights import weight_qparams
from edgeq.target import load_target

AVX2 = "linux-x64@avx2"

GRAPHS: dict[str, tuple[str, dict[str, np.ndarray]]] = {
    "gemm": ("g (float[4,63] x) => (float y) { y = Gemm(x, m, b) }", {"m": (63, 16), "b": (16,)}),
    "gemm transB": ("g (float[4,64] x) => (float y) { y = Gemm<transB=1>(x, m, b) }", {"m": (16, 64), "b": (16,)}),
    "matmul": ("g (float[1,4,64] x) => (float y) { y = MatMul(x, m) }", {"m": (64, 16)}),
    "stack": ("g (float[2,4,64] x) => (float y) { y = MatMul(x, m) }", {"m": (2, 64, 16)}),
    "conv": ("g (float[1,16,6,6] x) => (float y) { y = Conv(x, m, b) }", {"m": (16, 16, 3, 3), "b": (16,)}),
    "odd channels": ("g (float[1,3,6,6] x) => (float y) { y = Conv(x, m) }", {"m": (16, 3, 3, 3)}),
    "pointwise": ("g (float[1,32,6,6] x) => (float y) { y = Conv(x, m) }", {"m": (16, 32, 1, 1)}),
    "grouped": ("g (float[1,16,6,6] x) => (float y) { y = Conv<group=4>(x, m) }", {"m": (16, 4, 3, 3)}),
    "depthwise": ("g (float[1,16,6,6] x) => (float y) { y = Conv<group=16>(x, m) }", {"m": (16, 1, 3, 3)}),
    "multiplier": ("g (float[1,16,6,6] x) => (float y) { y = Conv<group=16>(x, m) }", {"m": (32, 1, 3, 3)}),
}  # fmt: skip


def made(name: str, target: str = AVX2) -> Chain:
    """Weights of one size and sign, and inputs at the top of their range: every pair would saturate."""
    text, shapes = GRAPHS[name]
    rng = np.random.default_rng(4)
    constants = {key: weights(*shape) for key, shape in shapes.items()}
    constants["m"] = (np.sign(rng.standard_normal(shapes["m"][:1]).reshape(-1, *[1] * (len(shapes["m"]) - 1)))
                      * rng.uniform(0.8, 1, shapes["m"])).astype(np.float32)  # fmt: skip
    model = parse(text, **constants)
    shape = tuple(model.graph.inputs[0].shape)
    feed = [{"x": rng.uniform(0.9, 1, shape).astype(np.float32)} for _ in range(2)]
    return quantized(model, target, feed=feed)


def stored(chain: Chain) -> np.ndarray:
    return chain.model.graph.initializers["m_quantized"].const_value.numpy().astype(np.int64)


@pytest.mark.parametrize("name", GRAPHS)
def test_no_pair_of_neighbours_is_too_large(name: str) -> None:
    chain = made(name)
    node = next(node for node in chain.shaped.graph if node.op_type != "Relu")
    integers = stored(chain)
    rows = multiplied_rows(node, integers)
    if name == "depthwise":
        assert rows is None
        assert np.abs(integers).max() == 127
        return
    assert rows is not None
    padded = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))).reshape(len(rows), -1, 2)
    sums = np.stack([np.maximum(padded, 0).sum(axis=2), np.minimum(padded, 0).sum(axis=2)])
    assert np.abs(sums).max() <= 128
    assert np.abs(sums * 255).max() <= 2**15 - 1
    assert "no two products saturate" in next(d.rule for d in chain.plan if d.tensor == "m")
    assert np.abs(stored(made(name, "linux-x64"))).max() == 127


def test_what_is_left_is_better_than_7_bits_and_never_better_than_8() -> None:
    node = made("pointwise").shaped.graph[0]
    array, spec = weights(64, 128, 1, 1), TensorSpec(IntType(8, True), True, PerAxis(0))
    found = limit_pairs(node, array, spec, 128)
    assert found is not None
    qparams, changed = found
    np.testing.assert_allclose(fake_quantize(changed, qparams), changed, atol=1e-7)

    def db(reduced: bool) -> float:
        other = weight_qparams(array, TensorSpec(IntType(8, True), True, PerAxis(0), reduced))
        return sqnr_db(array, fake_quantize(array, other))

    assert db(True) + 3 < sqnr_db(array, changed) < db(False)


def test_the_mean_error_of_limited_weights_is_taken_off_the_bias() -> None:
    chain = made("gemm")
    error = fake_quantize(chain.plan.weights["m"], next(d.qparams for d in chain.plan if d.tensor == "m"))
    shift = chain.stats["x"].channel_mean @ (error - chain.shaped.graph.initializers["m"].const_value.numpy())
    plain = chain.shaped.graph.initializers["b"].const_value.numpy()
    np.testing.assert_allclose(chain.plan.weights["b"], plain - shift, rtol=1e-5, atol=1e-6)


def test_a_weight_that_is_multiplied_in_two_orders_keeps_7_bits_for_the_second() -> None:
    text = "g (float[4,64] x) => (float y, float z) { y = Gemm(x, m) z = Gemm<transB=1>(x, m) }"
    chain = quantized(parse(text, m=weights(64, 64)), AVX2)
    first, second = (d.qparams for d in chain.plan if d.tensor == "m")
    assert (first.spec.reduced, second.spec.reduced) == (False, True)


def test_blocks_are_left_alone() -> None:
    chain = quantized(parse("g (float[1,4,64] x) => (float y) { y = MatMul(x, m) }", m=weights(64, 16)), AVX2, "w8")
    assert not chain.plan.weights


@pytest.mark.slow
def test_an_emulated_processor_without_vnni_computes_what_the_specification_says(tmp_path: Path) -> None:
    sandbox = find_sandbox("x86-64")
    if why := sandbox.missing():
        pytest.skip(why)
    target = load_target(AVX2)
    tasks, chains = [], [made(name, t) for t in (AVX2, "linux-x64") for name in GRAPHS]
    for index, chain in enumerate(chains):
        path = tmp_path / f"{index}.onnx"
        save_model(chain.model, path)
        tasks.append(Task(path, target.provider, tuple(chain.feed)))
    outcomes = sandbox.run(tasks, arguments=target.verification.arguments)
    close = []
    for chain, outcome in zip(chains, outcomes, strict=True):
        assert outcome.status == "ran", outcome.reason
        pairs = [(chain.run(sample)["y"], out["y"]) for sample, out in zip(chain.feed, outcome.outputs, strict=True)]
        close.append(all(np.allclose(a, b, atol=0.01 * np.abs(a).max()) for a, b in pairs))
    names = list(GRAPHS)
    assert close[: len(names)] == [True] * len(names)
    # The same graphs without the limit are computed wrongly there: that is what it is for.
    assert [name for name, well in zip(names, close[len(names) :], strict=True) if well] == ["depthwise"]


def test_the_profile_asks_for_it() -> None:
    assert load_target(AVX2).weights.pair_limit == 128
    assert load_target("linux-x64").weights.pair_limit is None
    assert msgspec.structs.asdict(load_target(AVX2).weights)["reduce_range"] is False
