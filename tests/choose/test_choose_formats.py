"""Formats node by node: what targets offer, and that any mixture of it is carried out, runs, and is what was asked."""

from __future__ import annotations

import random

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from small_models import Chain, parse, quantized, weights

from edgeq.errors import ConfigError
from edgeq.metrics import sqnr_db
from edgeq.qtypes import NodeFormat, PerBlock, Scheme
from edgeq.request import parse_scheme
from edgeq.runtime import run_model
from edgeq.stages.choose import formats_of
from edgeq.stages.tune import shape_float
from edgeq.target import load_target

CONV = "Conv<pads=[1,1,1,1]>"
NET = f"""g (float[1,8,8,8] x) => (float[1,16,16] y) {{
    a = {CONV}(x, w, b) r = Relu(a) c = {CONV}(r, w2) s = Add(c, r) f = Reshape(s, shape)
    m = MatMul(f, k) n = MatMul(m, k2) t = Transpose<perm=[0,2,1]>(n) q = MatMul(n, t) p = Softmax(q)
    v = MatMul(p, n) h = Add(v, kb) y = MatMul(h, k3) }}"""
CONSTANTS = {
    "w": weights(8, 8, 3, 3),
    "w2": weights(8, 8, 3, 3, seed=1),
    "b": weights(8),
    "k": weights(32, 32, seed=3),
    "k2": weights(32, 32, seed=4),
    "k3": weights(32, 16, seed=5),
    "kb": weights(32, seed=6),
    "shape": np.array([1, 16, 32]),
}
HEAVY = ("a", "c", "m", "n", "y")
SETTINGS = [
    ("linux-x64", "w8a8"), ("linux-x64@avx2", "w8a8"), ("linux-x64", "w8a8_dynamic"), ("linux-x64", "w8"),
    ("android", "w8a8"), ("android-npu", "w8a8"), ("android-npu@v68", "w4a16_b32"), ("amd-npu@a8w8", "w8a8"),
    ("web-gpu", "w4"), ("nvidia-tensorrt", "w8a8"),
]  # fmt: skip


def offers(target: str, scheme: str) -> dict[str, tuple[NodeFormat, ...]]:
    profile, parsed = load_target(target), Scheme.parse(scheme)
    shaped = shape_float(parse(NET, **CONSTANTS), profile, parsed)
    return {str(node.name): formats_of(node, profile, parsed) for node in shaped.graph}


def names(target: str, scheme: str, node: str) -> list[str]:
    return [offer.name for offer in offers(target, scheme)[node]]


def is_as_asked(made: Chain, node: ir.Node, asked: NodeFormat) -> None:
    name = str(node.name)
    weight = next((d.qparams for d in made.plan if d.role == "weight" and d.consumers == (name,)), None)
    if asked.floating:
        assert name not in made.layout.integer
        assert made.layout.reasons[name] == "kept in float: its format says so"
        assert weight is None
        return
    assert name in made.layout.integer, made.layout.reasons.get(name)
    assert weight is not None
    assert weight.spec.dtype.bits == asked.weight_bits
    granularity = weight.spec.granularity
    assert (granularity.size if isinstance(granularity, PerBlock) else None) == asked.block
    assert (name in made.plan.dynamic) == asked.dynamic
    read = [d for d in made.plan if d.role in ("activation", "operand") and name in d.consumers and d.qparams]
    if asked.static_bits is None:
        assert made.layout.bits_in(name) is None
    else:
        widths = [d.qparams.spec.dtype.bits for d in read if d.qparams is not None]
        assert widths[-1] == asked.static_bits  # a conversion comes behind the tensor's own


@pytest.mark.parametrize(("target", "scheme"), SETTINGS)
@pytest.mark.parametrize("seed", range(3))
def test_any_mixture_of_what_is_offered_is_carried_out(target: str, scheme: str, seed: int) -> None:
    """The chain verifies the graph; here every heavy node must have what was asked, and the numbers must hold."""
    rng, offered = random.Random(seed), offers(target, scheme)
    asked = {name: rng.choice(found) for name, found in sorted(offered.items()) if rng.random() < 0.8}
    made = quantized(parse(NET, **CONSTANTS), target, scheme, formats={n: f.name for n, f in asked.items()})
    nodes = {str(node.name): node for node in made.shaped.graph}
    for name in HEAVY:
        if name in asked:
            is_as_asked(made, nodes[name], asked[name])
    exact = np.concatenate([run_model(made.shaped, sample)["y"] for sample in made.feed])
    least = 3 if "w2" in {f.name[:2] for f in asked.values()} else 8
    for optimization in ("none", "all"):
        ran = np.concatenate([made.run(sample, optimization)["y"] for sample in made.feed])
        assert sqnr_db(exact, ran) > least


def test_targets_offer_what_their_profiles_say() -> None:
    assert names("linux-x64", "w8a8", "a") == ["w8a8", "float"]
    assert names("linux-x64", "w8a8", "m") == ["w8a8", "w8a8_dynamic", "w2_b32", "w4_b32", "w8_b32", "float"]
    assert names("linux-x64", "w8a8", "s") == ["a8", "float"]
    assert names("linux-x64", "w8a8", "q") == ["float"]
    # Floats are slow or impossible beside integers there.
    assert names("android-npu", "w8a8", "a") == ["w4a8", "w8a8", "w4a16", "w8a16"]
    assert "w4a16_b32" in names("android-npu", "w4a16_b32", "m")
    assert names("web-gpu", "w4", "m") == ["w4_b32", "w8_b32", "float"]
    assert names("nvidia-tensorrt", "w8a8", "m") == ["w8a8", "float"]
    assert names("ios-npu", "fp16", "m") == ["float"]


def test_weights_alone_need_a_form_beside_integers() -> None:
    made = quantized(parse(NET, **CONSTANTS), "nvidia-tensorrt", "w8a8", formats={"m": "w4_b128"})
    assert made.layout.reasons["m"] == "nvidia-tensorrt takes no weights alone beside integer activations"
    made = quantized(parse(NET, **CONSTANTS), "linux-x64", "w8a8", formats={"m": "w4_b32"})
    assert "MatMulNBits" in [node.op_type for node in made.model.graph]


def test_a_format_of_its_own_overrules_the_edges() -> None:
    """Below 8 bits the first and last layers keep 8, unless someone asked otherwise."""
    model = parse(NET, **CONSTANTS)
    bits = [
        next(d.qparams.spec.dtype.bits for d in made.plan if d.tensor == "w" and d.qparams is not None)
        for made in (quantized(model, "android-npu", "w4a8", formats=own) for own in ({}, {"a": "w4a8"}))
    ]
    assert bits == [8, 4]


def test_layers_with_next_to_no_weights_keep_8_bits() -> None:
    """A depthwise layer between wide ones: 4 bits of its weights save nothing; asked for, they are had."""
    text = """g (float[1,8,8,8] x) => (float[1,8,8,8] y) {
        a = Conv(x, w1) d = Conv<group=64, kernel_shape=[1,1]>(a, w2) c = Conv(d, w3)
        e = Conv(c, w4) y = Conv(e, w5) }"""
    sizes = {
        "w1": (64, 8, 1, 1),
        "w2": (64, 1, 1, 1),
        "w3": (256, 64, 1, 1),
        "w4": (64, 256, 1, 1),
        "w5": (8, 64, 1, 1),
    }
    model = parse(text, **{name: weights(*shape) for name, shape in sizes.items()})

    def widths(scheme: str, **own: str) -> list[int]:
        made = quantized(model, "android-npu", scheme, formats=own)
        found = {d.tensor: d.qparams.spec.dtype.bits for d in made.plan if d.role == "weight" and d.qparams is not None}
        return [found[name] for name in sizes]

    assert widths("w4a8") == [8, 8, 4, 4, 8]
    assert widths("w4a8", d="w4a8") == [8, 4, 4, 4, 8]
    assert widths("w8a8") == [8, 8, 8, 8, 8]
    rules = [d.rule for d in quantized(model, "android-npu", "w4a8").plan if d.tensor == "w2"]
    assert rules == ["mse weight scale, 8 bits: few weights"]


@pytest.mark.parametrize(("count", "bits"), [(3, 8), (4, 4)])
def test_the_smallest_layers_keep_8_bits_while_they_hold_a_tenth_of_the_weights(count: int, bits: int) -> None:
    """Layers of one size do so all or not at all: which of them matters most is not known."""
    layers = [
        ("wide", 8, 32),
        *[(f"s{i}", 32, 32) for i in range(count)],
        ("up", 32, 512),
        ("down", 512, 32),
        ("y", 32, 8),
    ]
    named = {f"w_{name}": weights(outputs, inputs, 1, 1) for name, inputs, outputs in layers}
    sources = ["x", *[name for name, *_ in layers]]
    body = " ".join(f"{name} = Conv({source}, w_{name})" for source, (name, *_) in zip(sources, layers, strict=False))
    model = parse(f"g (float[1,8,8,8] x) => (float[1,8,8,8] y) {{ {body} }}", **named)
    plan = quantized(model, "android-npu", "w4a8").plan
    found = {d.tensor: d.qparams.spec.dtype.bits for d in plan if d.role == "weight" and d.qparams is not None}
    assert {found[f"w_s{i}"] for i in range(count)} == {bits}
    assert found["w_up"] == found["w_down"] == 4


def test_a_weight_that_no_kernel_has_so_narrow_is_taken_in_8_bits_and_the_plan_says_so() -> None:
    text = "g (float[1,8,16] x) => (float y) { m = MatMul(x, k) y = LayerNormalization<axis=-1>(m, g, g) }"
    made = quantized(
        parse(text, k=weights(16, 16), g=weights(16)), "android-npu", "w8a8", formats={"m": "w4a8", "y": "w4a8"}
    )
    found = {d.consumers: d.rule for d in made.plan if d.role == "weight"}
    assert found[("m",)] == "mse weight scale"
    assert found[("y",)] == "mse weight scale, 8 bits: no 4-bit kernel"


def test_blocks_that_a_layer_cannot_have_are_told() -> None:
    made = quantized(parse(NET, **CONSTANTS), "android-npu", "w4a16_b32")
    found = {d.tensor: d.rule for d in made.plan if d.role == "weight"}
    assert found["w2"] == "mse weight scale, one scale per channel: no 4-bit kernel for blocks of 32"
    assert found["k"] == "mse weight scale"
    assert "8 bits: first or last layer" in found["w"]


def test_activations_of_4_bits_where_a_profile_has_them() -> None:
    """An experiment: no target of ours lists them."""
    npu = load_target("android-npu")
    types = msgspec.structs.replace(npu.activations, types={**npu.activations.types, "4": "uint4"})
    wider = tuple(
        msgspec.structs.replace(c, activation_bits=(4, *c.activation_bits)) if "Conv" in c.ops else c
        for c in npu.capability
    )
    profile = msgspec.structs.replace(npu, activations=types, capability=wider, precisions=("w4a4",))
    made = quantized(parse(NET, **CONSTANTS), profile, "w4a4")
    assert {made.layout.bits_in(name) for name in HEAVY} == {4}
    held = {d.tensor: d.qparams.spec.dtype.name for d in made.plan if d.role == "activation" and d.qparams}
    assert held["c"] == "uint4"
    assert made.layout.bits_in("q") == 4  # MatMul of two activations has the same kernel
    assert made.layout.bits_in("p") == 8  # Softmax has none of 4 bits
    exact = np.concatenate([run_model(made.shaped, sample)["y"] for sample in made.feed])
    ran = np.concatenate([made.run(sample)["y"] for sample in made.feed])
    assert 0 < sqnr_db(exact, ran) < 20
    with pytest.raises(ConfigError, match="has no 4-bit activations"):
        parse_scheme("w4a4", npu)


@pytest.mark.parametrize("name", ["float", "w8a8", "w4a16", "w8_b32", "w4_b128", "w4a16_b32", "w8a8_dynamic", "a16"])
def test_names_read_back(name: str) -> None:
    assert NodeFormat.parse(name).name == name
    assert NodeFormat.parse("w8") == NodeFormat(8, None) == NodeFormat.parse("w8_b32")


@pytest.mark.parametrize("name", ["", "w3", "a8_b32", "w8_dynamic", "w8a8_dynamic_b32", "w4_b20", "fp16", "W8A8"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"format|block"):
        NodeFormat.parse(name)


@pytest.mark.parametrize("scheme", ["w8a8", "w4_b64", "w4a16_b32", "w8a8_dynamic", "w8_b32"])
def test_a_scheme_is_the_format_of_every_node(scheme: str) -> None:
    assert Scheme.parse(scheme).format == NodeFormat.parse(scheme)
    assert Scheme.parse(scheme).name == scheme
