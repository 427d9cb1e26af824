"""Kernels of other processors: Arm's give the host's integers, AVX2's saturate unless a profile prevents it."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_models import parse, quantized, weights

from edgeq.errors import ConfigError, ProviderError
from edgeq.sandbox import Outcome, Task, find_sandbox
from edgeq.target import Provider, load_target

CPU = load_target("linux-x64").provider
INPUT = np.random.default_rng(0).integers(200, 256, (1, 16, 8, 8)).astype(np.float32) / 255
"""Bright pictures: all products are large."""

on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="emulates this machine's own interpreter")


def installed(name: str) -> None:
    if why := find_sandbox(name).missing():
        pytest.skip(f"{why}: edgeq doctor --install-provider {name}")


def saturating(path: Path, bits: int) -> Path:
    """A quantized Conv with the largest weights of ``bits`` bits: with 8, two products of u8 and s8 need 17 bits."""
    top = 2 ** (bits - 1) - 1
    filters = np.random.default_rng(1).integers(top - 3, top + 1, (8, 16, 1, 1)).astype(np.int8)
    filters[::2] *= -1
    model = parse(
        "g (float[1,16,8,8] x) => (float[1,8,8,8] y) { q = QuantizeLinear(x, xs, xz) d = DequantizeLinear(q, xs, xz)"
        "  w = DequantizeLinear(f, ws) c = Conv(d, w) p = QuantizeLinear(c, ys, yz) y = DequantizeLinear(p, ys, yz) }",
        f=filters,
        ws=np.float32(1 / top),
        xs=np.float32(1 / 255),
        xz=np.uint8(0),
        ys=np.float32(32 / 255),
        yz=np.uint8(128),
    )
    ir.save(model, path)
    return path


def outputs(outcomes: list[Outcome]) -> list[np.ndarray]:
    assert [outcome.status for outcome in outcomes] == ["ran"] * len(outcomes), [o.reason for o in outcomes]
    return [next(iter(outcome.outputs[0].values())) for outcome in outcomes]


def with_session(**entries: str) -> Provider:
    table = {f"session.{key}": value for key, value in entries.items()}
    return Provider(name=CPU.name, package=CPU.package, version=CPU.version, session=table)


@on_x86
@pytest.mark.slow
def test_avx2_saturates_in_16_bits_and_each_remedy_helps(tmp_path: Path) -> None:
    installed("x86-64")
    eight, seven = saturating(tmp_path / "eight.onnx", 8), saturating(tmp_path / "seven.onnx", 7)
    feeds = ({"x": INPUT},)
    tasks = [Task(eight, CPU, feeds), Task(eight, with_session(x64quantprecision="1"), feeds), Task(seven, CPU, feeds)]
    sandbox = find_sandbox("x86-64")
    avx2 = outputs(sandbox.run(tasks, arguments={"cpu": "Haswell"}))
    sse = outputs(sandbox.run(tasks, arguments={"cpu": "Nehalem"}))
    exact = [_exact(model) for model in (eight, eight, seven)]
    steps = [np.abs(got - want).max() / (32 / 255) for got, want in zip(avx2, exact, strict=True)]
    assert steps[0] > 20, "AVX2's kernel adds two products in 16 bits"
    assert steps[1:] == [0, 0]
    for got, want in zip(sse, exact, strict=True):
        np.testing.assert_array_equal(got, want)


def _exact(path: Path) -> np.ndarray:
    """The model in integers of 64 bits; no product is rounded."""
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    x = np.rint(INPUT.astype(np.float64) / constants["xs"]).astype(np.int64)
    sums = np.einsum("oi,bihw->bohw", constants["f"][:, :, 0, 0].astype(np.int64), x)
    q = np.rint(sums * (np.float64(constants["xs"]) * constants["ws"] / constants["ys"])) + 128
    return ((np.clip(q, 0, 255) - 128) * constants["ys"]).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a76", "max"])
def test_arm_gives_the_integers_of_this_machine(cpu: str, tmp_path: Path) -> None:
    installed("arm64")
    model = parse(
        "g (float[1,3,16,16] x) => (float[1,10] y) { a = Conv <pads = [1,1,1,1]> (x, w1) b = Relu(a)"
        "  c = Conv <pads = [1,1,1,1]> (b, w2) d = Add(b, c) e = GlobalAveragePool(d) f = Flatten(e) y = Gemm(f, w3) }",
        w1=weights(16, 3, 3, 3),
        w2=weights(16, 16, 3, 3, seed=1),
        w3=weights(16, 10, seed=2),
    )
    chain = quantized(model, "linux-arm64")
    ir.save(chain.model, tmp_path / "model.onnx")
    task = Task(tmp_path / "model.onnx", CPU, tuple(chain.feed), tmp_path / "optimized.onnx")
    (outcome,) = find_sandbox("arm64").run([task], arguments={"cpu": cpu})
    assert outcome.status == "ran", outcome.reason
    assert cpu in outcome.version
    for got, sample in zip(outcome.outputs, chain.feed, strict=True):
        np.testing.assert_array_equal(got["y"], chain.run(sample, "all")["y"])
    kernels = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert {"QLinearConv", "QLinearAdd"} <= kernels


@pytest.mark.slow
def test_a_broken_model_costs_only_itself(tmp_path: Path) -> None:
    installed("arm64")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    good = saturating(tmp_path / "good.onnx", 8)
    tasks = [Task(tmp_path / "broken.onnx", CPU), Task(good, CPU, ({"x": INPUT},))]
    broken, ran = find_sandbox("arm64").run(tasks)
    assert broken.status == "refused"
    assert "cortex-a76" in broken.version
    np.testing.assert_array_equal(ran.outputs[0]["y"], _exact(good))


@on_x86
def test_the_host_needs_no_emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path))
    task = Task(saturating(tmp_path / "m.onnx", 7), CPU, ({"x": INPUT},))
    (outcome,) = find_sandbox("x86-64").run([task], arguments={"cpu": "host"})
    np.testing.assert_array_equal(outcome.outputs[0]["y"], _exact(task.model))


@pytest.mark.parametrize("name", ["arm64", "x86-64"])
def test_what_is_missing_and_what_to_do_is_said(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    sandbox = find_sandbox(name)
    assert sandbox.missing() is not None
    with pytest.raises(ProviderError) as caught:
        sandbox.run([], arguments={"cpu": "max"})
    assert caught.value.remedy == f"edgeq doctor --install-provider {name}"


def test_an_argument_that_means_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="takes no argument 'soc'"):
        find_sandbox("arm64").run([], arguments={"soc": "69"})


def test_a_processor_that_qemu_lacks_is_refused() -> None:
    installed("arm64")
    with pytest.raises(ConfigError, match="cortex-a999") as caught:
        find_sandbox("arm64").run([], arguments={"cpu": "cortex-a999"})
    assert "cortex-a76" in str(caught.value.remedy)
