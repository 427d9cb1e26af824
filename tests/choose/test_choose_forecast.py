"""What the profile alone says of each node: as what it runs, where, and why."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from small_models import parse, quantized, weights

from edgeq.qtypes import NodeForecast, Scheme
from edgeq.stages.choose import find_layout, forecast_nodes
from edgeq.stages.tune import shape_float
from edgeq.target import Capability, Floats, TargetProfile, load_target

CPU, QNN = "CPUExecutionProvider", "QNNExecutionProvider"
CONV = "Conv<pads=[1,1,1,1]>"
CONSTANTS = {"w": weights(8, 3, 3, 3), "v": weights(8, 8, 3, 3, seed=1), "m": weights(8, 8), "low": np.float32(-0.2)}
CONSTANTS |= {"high": np.float32(0.5), "flat": np.array([0, -1]), "image": np.array([1, 8, 8, 8])}


def foresee(text: str, target: str | TargetProfile = "linux-x64", scheme: str = "w8a8") -> dict[str, NodeForecast]:
    profile = load_target(target) if isinstance(target, str) else target
    parsed = Scheme.parse(scheme)
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    model = parse(text, **{name: array for name, array in CONSTANTS.items() if name in words})
    shaped = shape_float(model, profile, parsed)
    return forecast_nodes(shaped, find_layout(shaped, profile, parsed), profile)


def kinds(found: dict[str, NodeForecast]) -> dict[str, str]:
    return {name: node.kind for name, node in found.items()}


def test_data_moves_in_integers_where_one_side_is_quantized() -> None:
    """ONNX Runtime moves a DequantizeLinear behind a Transpose, and a QuantizeLinear in front of it."""
    found = foresee(
        f"""g (float[1,8,8,3] x) => (float y) {{ i = Transpose<perm=[0,3,1,2]>(x) a = {CONV}(i, w)
            t = Transpose<perm=[0,2,3,1]>(a) y = Tanh(t) }}"""
    )
    assert kinds(found) == {"i": "moves data", "a": "integer", "t": "moves data", "y": "float"}
    assert "moves in front of it" in found["i"].why


def test_data_between_floats_moves_in_floats() -> None:
    found = foresee("g (float[2,8] x) => (float y) { a = Tanh(x) t = Transpose<perm=[1,0]>(a) y = Exp(t) }")
    assert kinds(found) == {"a": "float", "t": "float", "y": "float"}


def test_one_reader_in_floats_keeps_the_quantizer_behind() -> None:
    found = foresee(
        f"""g (float[1,3,8,8] x) => (float y, float z) {{ e = Elu(x) t = Transpose<perm=[0,1,3,2]>(e)
            y = {CONV}(t, w) z = Tanh(t) }}"""
    )
    assert found["t"].kind == "float"


def test_a_product_of_two_dequantized_tensors_is_computed_in_integers() -> None:
    text = "g (float[1,3,8,8] x) => (float y) {{ a = {conv}(x, w) b = {other} p = MatMul(a, b) y = Tanh(p) }}"
    assert foresee(text.format(conv=CONV, other=f"{CONV}(a, v)"))["p"].kind == "integer"
    assert foresee(text.format(conv=CONV, other="Tanh(a)"))["p"].kind == "float"


def test_nodes_that_read_no_floats_move_data() -> None:
    found = foresee("g (int64[2,8] i) => (float y) { c = Cast<to=1>(i) y = MatMul(c, m) }")
    assert kinds(found) == {"c": "moves data", "y": "integer"}


def changed(runs: str, *capabilities: Capability) -> TargetProfile:
    target = load_target("android-npu")
    floats = Floats(runs=runs, avoid=True, source="made up")
    held = tuple(c for c in target.capability if c.kind != "float")
    return msgspec.structs.replace(target, floats=floats, capability=(*held, *capabilities))


ERF = f"g (float[1,3,8,8] x) => (float y) {{ a = {CONV}(x, w) e = Erf(a) y = {CONV}(e, v) }}"


@pytest.mark.parametrize(
    ("target", "provider", "why"),
    [
        (changed("all"), QNN, "has no integer kernel for Erf in w8a8"),
        (changed("none"), CPU, "QNNExecutionProvider runs no floats, so it falls to the CPU"),
        (changed("listed"), CPU, "QNNExecutionProvider runs no Erf in floats, so it falls to the CPU"),
        (changed("listed", Capability(ops=("Erf",), kind="float", source="s")), QNN, "no integer kernel"),
        (changed("none", Capability(ops=("Erf",), kind="float", source="s")), CPU, "runs no floats"),
        (
            changed("all", Capability(ops=("Erf",), kind="float", provider=CPU, source="measured so")),
            CPU,
            "measured so",
        ),
    ],
)
def test_which_provider_runs_a_float_operator(target: TargetProfile, provider: str, why: str) -> None:
    found = foresee(ERF, target)
    assert (found["e"].kind, found["e"].provider) == ("float", provider)
    assert why in found["e"].why
    assert {found["a"].provider, found["y"].provider} == {QNN}


def test_a_capability_may_name_another_provider() -> None:
    target = load_target("android-npu")
    held = tuple(msgspec.structs.replace(c, provider=CPU) if "Conv" in c.ops else c for c in target.capability)
    found = foresee(ERF, msgspec.structs.replace(target, capability=held))
    assert (found["a"].kind, found["a"].provider) == ("integer", CPU)


def test_a_rank_2_product_is_parted_from_the_add_of_an_activation() -> None:
    """ONNX Runtime makes a float Gemm of both, if nothing stands between them."""
    text = "g (float[2,8] x) => (float y) {{ a = MatMul(x, m) b = {add} y = Tanh(b) }}"
    chain = quantized(parse(text.format(add="Add(a, x)"), m=weights(8, 8)))
    assert "a" in chain.layout.activations
    other = quantized(parse(text.format(add="Sub(a, x)"), m=weights(8, 8)))
    assert "a" not in other.layout.activations


def test_an_absorbed_clip_keeps_its_bounds() -> None:
    """Rounding the zero point must not stretch the integers beyond what the Clip lets through."""
    text = f"g (float[1,3,8,8] x) => (float y) {{ a = {CONV}(x, w) c = Clip(a, low, high) y = {CONV}(c, v) }}"
    chain = quantized(parse(text, **{name: CONSTANTS[name] for name in ("w", "v", "low", "high")}))
    assert chain.plan.nodes["c"].kind == "fused"
    (decision,) = [d for d in chain.plan if d.tensor == "c"]
    low, high = decision.qparams.real_range
    assert low >= -0.2 - 1e-7
    assert high <= 0.5 + 1e-7
    assert high - low > 0.99 * 0.7
