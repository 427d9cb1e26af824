"""16-bit islands in an 8-bit network: where the widths change, what is converted, and that it helps and runs."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from small_models import Chain, parse, quantized, weights

from edgeq.graph import save_model
from edgeq.metrics import sqnr_db
from edgeq.runtime import run_model
from edgeq.sandbox import Task, find_sandbox
from edgeq.stages.insert import verify_qdq
from edgeq.target import TargetProfile, load_target

CONV = "Conv<pads=[1,1,1,1]>"
NPU = "android-npu"

CONSTANTS = {
    "w": weights(8, 3, 3, 3),
    "w2": weights(8, 8, 3, 3, seed=1),
    "w3": weights(8, 8, 3, 3, seed=2),
    "b": weights(8),
    "big": np.float32(60),
}
RESIDUAL = f"""g (float[1,3,8,8] x) => (float[1,8,8,8] y) {{
    a = {CONV}(x, w, b) r = Relu(a) c = {CONV}(r, w2) s = Mul(c, big) d = Add(s, r) m = Sub(d, s)
    p = MaxPool<kernel_shape=[1,1]>(m) y = {CONV}(p, w3, b) }}"""
"""``d - s`` is ``r`` again, but only if the sum of large and small numbers is kept in fine steps."""
PRODUCT = "g (float[1,4,8] x) => (float[1,4,4] y) { a = MatMul(x, k) t = Transpose<perm=[0,2,1]>(a) y = MatMul(a, t) }"
ISLAND = {"s": 16, "d": 16, "m": 16}


def chain(
    bits: dict[str, int] | None, target: str | TargetProfile = NPU, text: str = RESIDUAL, **more: object
) -> Chain:
    used = {name: array for name, array in {**CONSTANTS, **more}.items() if name in text}
    return quantized(parse(text, **used), target, formats={name: f"a{width}" for name, width in (bits or {}).items()})


def types(made: Chain) -> dict[str, str]:
    return {d.tensor: d.qparams.spec.dtype.name for d in made.plan if d.role == "activation" and d.qparams is not None}


def conversions(made: Chain) -> dict[tuple[str, ...], str]:
    return {
        (d.tensor, *d.consumers): d.qparams.spec.dtype.name
        for d in made.plan
        if d.role == "operand" and d.qparams is not None
    }


def quality(made: Chain, outputs: list[dict[str, np.ndarray]] | None = None) -> float:
    exact = np.concatenate([run_model(made.shaped, sample)["y"] for sample in made.feed])
    ran = outputs or [made.run(sample) for sample in made.feed]
    return sqnr_db(exact, np.concatenate([out["y"] for out in ran]))


def test_a_kernel_reads_and_writes_one_width_and_the_edges_are_converted() -> None:
    made = chain(ISLAND)
    assert types(made) == {
        "x": "uint8", "r": "uint8", "c": "uint8", "s": "uint16", "d": "uint16", "m": "uint16", "p": "uint16",
        "y": "uint8",
    }  # fmt: skip
    # Into the island at r and c, out of it behind the MaxPool, which takes the width of what it moves.
    assert conversions(made) == {("r", "d"): "uint16", ("c", "s"): "uint16", ("p", "y"): "uint8"}
    assert made.layout.node_bits == {**ISLAND, "p": 16}
    constant = next(d for d in made.plan if d.tensor == "big")
    assert constant.qparams is not None
    assert constant.qparams.spec.dtype.name == "uint16"


def test_an_island_brings_back_what_8_bits_lose() -> None:
    assert quality(chain(ISLAND)) > quality(chain(None)) + 6


def test_the_bias_has_the_scale_of_what_its_node_reads() -> None:
    made = chain(ISLAND)
    read = next(d.qparams for d in made.plan if d.role == "operand" and d.consumers == ("y",))
    found = {d.tensor: d.qparams for d in made.plan if d.consumers == ("y",) and d.role in ("weight", "bias")}
    assert np.allclose(found["y/bias"].scale, read.scale * found["w3"].scale, rtol=1e-6)
    verify_qdq(made.model)  # checks the same of every node
    wide = chain({"y": 16})
    assert conversions(wide) == {("p", "y"): "uint16"}
    verify_qdq(wide.model)


def test_readers_of_one_width_share_a_conversion() -> None:
    text = f"g (float[1,3,8,8] x) => (float y, float z) {{ a = {CONV}(x, w) y = Tanh(a) z = Sigmoid(a) }}"
    made = chain({"y": 16, "z": 16}, text=text)
    assert conversions(made) == {("a", "y", "z"): "uint16"}
    pairs = [node for node in made.model.graph if node.op_type == "QuantizeLinear"]
    assert len(pairs) == 5  # x, a, a as 16 bits, y, z


def test_floats_are_quantized_once_and_as_finely_as_any_reader_wants() -> None:
    text = f"g (float[1,3,8,8] x) => (float y, float z) {{ y = {CONV}(x, w) z = Mul(x, big) }}"
    made = chain({"z": 16}, text=text)
    assert types(made)["x"] == "uint16"
    assert conversions(made) == {("x", "y"): "uint8"}


def test_a_second_operand_is_converted_straight_to_its_own_type() -> None:
    made = chain({"y": 16}, text=PRODUCT, k=weights(8, 8))
    assert conversions(made) == {("a", "y"): "uint16", ("t", "y"): "int16"}
    assert quality(made) > 35


def test_fixed_ranges_have_the_width_of_their_tensor() -> None:
    text = f"g (float[1,3,8,8] x) => (float y) {{ a = {CONV}(x, w) s = Sigmoid(a) y = Mul(s, big) }}"
    made = chain({"s": 16}, text=text)
    scale = next(float(d.qparams.scale) for d in made.plan if d.tensor == "s" and d.role == "activation")
    assert scale == pytest.approx(2.0**-16, rel=1e-6)


def test_a_node_with_16_bit_kernels_only_becomes_an_island() -> None:
    text = f"g (float[1,3,8,8] x) => (float y) {{ a = {CONV}(x, w) t = Tanh(a) y = {CONV}(t, w3) }}"
    made = chain(None, "amd-npu@a8w8", text)
    assert types(made) == {"x": "int8", "a": "int8", "t": "int16", "y": "int8"}
    assert conversions(made) == {("a", "t"): "int16", ("t", "y"): "int8"}
    assert made.plan.nodes["t"].kind == "integer"
    assert {node.domain for node in made.model.graph if "Linear" in node.op_type} == {"com.microsoft"}
    assert quality(made) > 30


def test_what_cannot_have_the_width_stays_float_and_says_so() -> None:
    made = chain({"a": 16}, "linux-x64", f"g (float[1,3,8,8] x) => (float y) {{ a = {CONV}(x, w) y = {CONV}(a, w3) }}")
    assert made.layout.reasons["a"] == "linux-x64 has no 16-bit integer kernel for Conv"
    target = load_target(NPU)
    moves = tuple(
        msgspec.structs.replace(c, activation_bits=(8,)) if "MaxPool" in c.ops else c for c in target.capability
    )
    made = chain(ISLAND, msgspec.structs.replace(target, capability=moves))
    assert "no 16-bit integer kernel for MaxPool" in made.layout.reasons["p"]
    assert types(made)["p"] == "uint8"  # quantized for the convolution behind it, from floats


def test_without_islands_nothing_changes() -> None:
    assert chain({}).layout == chain(None).layout
    assert not conversions(chain(None))


@pytest.mark.parametrize("soc", ["43", "69"])
def test_the_emulator_runs_an_island_as_the_specification_says(soc: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_qnn", reason="the HTP emulator is in the package onnxruntime-qnn (edgeq[npu])")
    sandbox = find_sandbox("qnn")
    target = load_target(NPU)
    provider = msgspec.structs.replace(target.provider, options={**target.provider.options, "soc_model": soc})
    made = [chain(bits) for bits in (ISLAND, {"y": 16}, None)]
    made.append(chain({"y": 16}, text=PRODUCT, k=weights(8, 8)))
    tasks = []
    for index, one in enumerate(made):
        path = tmp_path / f"{index}.onnx"
        save_model(one.model, path)
        tasks.append(Task(path, provider, tuple(one.feed)))
    outcomes = sandbox.run(tasks)
    for one, outcome in zip(made, outcomes, strict=True):
        assert outcome.status == "ran", outcome.reason
        assert set((outcome.assigned or {}).values()) == {"QNNExecutionProvider"}
        spec = np.concatenate([one.run(sample)["y"] for sample in one.feed])
        assert sqnr_db(spec, np.concatenate([out["y"] for out in outcome.outputs])) > 30
    island, plain = (quality(made[i], list(outcomes[i].outputs)) for i in (0, 2))
    assert island > plain + 6


def test_a_kernel_of_fewer_bits_is_taken_where_floats_are_to_be_avoided() -> None:
    """Between Q and DQ the HTP takes Log for an integer operator, and that of 16 bits is wrong."""
    body = f"{{ a = {CONV}(x, w, b) s = Sigmoid(a) l = Log(s) y = {CONV}(l, w2) }}"
    model = parse(
        f"g (float[1,3,8,8] x) => (float[1,8,8,8] y) {body}", w=CONSTANTS["w"], w2=CONSTANTS["w2"], b=CONSTANTS["b"]
    )
    layout = quantized(model, NPU, "w8a16").layout
    assert layout.bits_in("l") == 8
    assert [layout.bits_in(name) for name in "asy"] == [16, 16, 16]
    profile = load_target(NPU)
    floats = msgspec.structs.replace(profile.floats, avoid=False)
    assert "l" not in quantized(model, msgspec.structs.replace(profile, floats=floats), "w8a16").layout.integer
