"""Each rule of the lint catches what breaks it, and says nothing of a model that edgeq made."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from check_models import (
    before,
    behind,
    changed,
    constant,
    conv_chain,
    give,
    node,
    product,
    requantized,
    with_capability,
    with_fixed,
)
from small_models import parse, quantized, weights

from edgeq.checks.lint import RULES, lint
from edgeq.target import TargetProfile, load_target

Broken = tuple[ir.Model, TargetProfile]
X64 = load_target("linux-x64")


def opset() -> Broken:
    model = product(scheme="w4")
    model.opset_imports[""] = 17
    return model, X64


def opset_tried() -> Broken:
    model = conv_chain()
    model.opset_imports[""] = 23
    return model, X64


def ir_version() -> Broken:
    model = conv_chain()
    model.ir_version = 12
    return model, X64


def static() -> Broken:
    model = conv_chain()
    model.graph.inputs[0].shape = ir.Shape(["batch", 4, 8, 8])
    return model, changed(graph={"shapes": "static"})


def qdq_domain() -> Broken:
    return conv_chain(), changed(graph={"qdq_domain": "com.microsoft"})


def masks() -> Broken:
    text = "g (float[1,4,8] x) => (float[1,4,8] y) { a = Add(x, never) y = Softmax(a) }"
    return parse(text, never=np.array(-3.4e38, np.float32)), changed(graph={"masks": "finite"})


def linear() -> Broken:
    return product(changed(graph={"linear": "as-is"})), X64


def float_type() -> Broken:
    half = "g (float16[1,4,8] x) => (float16[1,4,8] y) { y = Relu(x) }"
    return parse(half), X64


def shared() -> Broken:
    model = conv_chain()
    last = node(model, "Conv", 2)
    last.replace_input_with(1, node(model, "Conv", 1).inputs[1])
    return model, X64


def leftover() -> Broken:
    model = conv_chain()
    quantizer = behind(model, "Relu")
    restored = next(user for user, _ in quantizer.outputs[0].uses()).outputs[0]
    again = ir.node("QuantizeLinear", [restored, *quantizer.inputs[1:]], name="again")
    model.graph.append(again)
    return model, X64


def constant_() -> Broken:
    model = conv_chain()
    quantizer = behind(model, "Relu")
    give(model, quantizer, 0, np.ones((1, 8, 8, 8), np.float32))
    return model, X64


def activation_type() -> Broken:
    return conv_chain("linux-arm64"), X64


def activation_zero() -> Broken:
    return conv_chain("linux-arm64"), changed("linux-arm64", activations={"symmetric": True})


def activation_range() -> Broken:
    return requantized(conv_chain(), "Relu", factor=1e-9), changed(activations={"min_range": 1e-4})


def scale() -> Broken:
    return conv_chain(), changed(weights={"scale": "power-of-two"})


def weight_type() -> Broken:
    model = conv_chain()
    dequantizer = before(model, "Conv", 1)
    give(model, dequantizer, 0, constant(dequantizer, 0).astype(np.int16))
    give(model, dequantizer, 2, constant(dequantizer, 2).astype(np.int16))
    return model, X64


def weight_zero() -> Broken:
    model = conv_chain()
    dequantizer = before(model, "Conv", 1)
    give(model, dequantizer, 2, constant(dequantizer, 2) + np.int8(1))
    return model, X64


def weight_axis() -> Broken:
    model = conv_chain()
    before(model, "Conv", 1, 1).attributes["axis"] = ir.AttrInt64("axis", 1)
    return model, X64


def per_channel() -> Broken:
    return conv_chain(), with_capability("Conv", "compute", per_channel=False)


def weight_range() -> Broken:
    return conv_chain(), changed(weights={"reduce_range": True})


def block() -> Broken:
    return product(scheme="w4_b32"), with_capability("MatMul", "weight-only", blocks=(64,))


def bias() -> Broken:
    model = conv_chain()
    dequantizer = before(model, "Conv", 2)
    give(model, dequantizer, 1, constant(dequantizer, 1) * np.float32(2))
    return model, X64


def float_bias() -> Broken:
    return conv_chain(), changed(bias={"mode": "float"})


def no_int32_bias() -> Broken:
    return conv_chain(changed(bias={"mode": "float"})), X64


def fixed() -> Broken:
    return conv_chain(), with_fixed("Softmax", 0.0, 2.0)


def op() -> Broken:
    return conv_chain(), msgspec.structs.replace(
        X64, capability=tuple(c for c in X64.capability if "Conv" not in c.ops)
    )


def op_float() -> Broken:
    kept = tuple(c for c in X64.capability if "Softmax" not in c.ops)
    return conv_chain(), msgspec.structs.replace(X64, capability=kept)


def _active(profile: TargetProfile) -> TargetProfile:
    """Without what the provider does with the Q/DQ of neighbours."""
    return msgspec.structs.replace(profile, capability=tuple(c for c in profile.capability if not c.passive))


def operand() -> Broken:
    text = "g (float[1,4,8,16] x, float[1,4,16,8] z) => (float[1,4,8,8] y) { y = MatMul(x, z) }"
    either = with_capability("MatMul", "compute", constant_weight=False)
    return quantized(parse(text), either).model, _active(X64)


def operand_type() -> Broken:
    text = "g (float[1,4,8,16] x, float[1,4,16,8] z) => (float[1,4,8,8] y) { y = MatMul(x, z) }"
    either = with_capability("MatMul", "compute", constant_weight=False)
    typed = with_capability("MatMul", "compute", constant_weight=False, operand_types={"8": "int8"})
    return quantized(parse(text), either).model, _active(typed)


def output() -> Broken:
    model = conv_chain()
    last = node(model, "Conv", 2)
    model.graph.outputs[0] = last.outputs[0]
    return model, X64


def absorption() -> Broken:
    return requantized(conv_chain(), "Relu", zero=np.uint8(100)), X64


def moves_data() -> Broken:
    return requantized(conv_chain(), "MaxPool", factor=1.5), X64


def weight_form() -> Broken:
    return product(scheme="w4"), changed(weights={"form": "matmulnbits"})


def nbits_form() -> Broken:
    return product(changed(weights={"form": "matmulnbits"}), scheme="w4"), X64


def accuracy_level() -> Broken:
    profile = changed(weights={"form": "matmulnbits", "accuracy_level": 1})
    return product(profile, scheme="w4"), changed(weights={"form": "matmulnbits", "accuracy_level": 4})


def matmulnbits() -> Broken:
    made = product(changed(weights={"form": "matmulnbits"}), scheme="w4_b32")
    only = with_capability("MatMul", "weight-only", blocks=(64,))
    return made, msgspec.structs.replace(only, weights=msgspec.structs.replace(only.weights, form="matmulnbits"))


def float_op() -> Broken:
    text = "g (float[1,4,8] x) => (float[1,4,8] y) { y = Erf(x) }"
    return parse(text), changed(floats={"runs": "listed"})


BREAKS: dict[str, list[Callable[[], Broken]]] = {
    "opset": [opset],
    "opset-tried": [opset_tried],
    "ir-version": [ir_version],
    "static": [static],
    "qdq-domain": [qdq_domain],
    "masks": [masks],
    "linear": [linear],
    "float-type": [float_type],
    "shared": [shared],
    "leftover": [leftover],
    "constant": [constant_],
    "activation-type": [activation_type],
    "activation-zero": [activation_zero],
    "activation-range": [activation_range],
    "scale": [scale],
    "weight-type": [weight_type],
    "weight-zero": [weight_zero],
    "weight-axis": [weight_axis, per_channel],
    "weight-range": [weight_range],
    "block": [block],
    "bias": [bias, float_bias, no_int32_bias],
    "fixed": [fixed],
    "op": [op],
    "op-float": [op_float],
    "operand": [operand, operand_type],
    "output": [output],
    "absorption": [absorption],
    "moves-data": [moves_data],
    "weight-form": [weight_form, nbits_form, accuracy_level],
    "matmulnbits": [matmulnbits],
    "float-op": [float_op],
}


def test_every_rule_has_a_model_that_breaks_it() -> None:
    assert sorted(BREAKS) == sorted(rule.name for rule in RULES)


@pytest.mark.parametrize(("rule", "broken"), [(rule, b) for rule, all_ in BREAKS.items() for b in all_])
def test_a_rule_catches_what_breaks_it(rule: str, broken: Callable[[], Broken]) -> None:
    model, profile = broken()
    found = lint(model, profile)
    assert rule in {violation.rule for violation in found}, found
    assert all(violation.text for violation in found)


@pytest.mark.parametrize("scheme", ["w8a8", "w8", "w4"])
@pytest.mark.parametrize("target", ["linux-x64", "linux-arm64", "android-npu"])
@pytest.mark.parametrize("make", [conv_chain, product])
def test_nothing_is_said_of_what_edgeq_makes(make: Callable[..., ir.Model], target: str, scheme: str) -> None:
    if target == "android-npu" and not scheme.endswith("a8"):
        pytest.skip("it takes no weights beside float activations")
    assert lint(make(target, scheme), load_target(target)) == []


def test_a_bias_of_another_rank_is_fine_where_nothing_is_quantized() -> None:
    text = "g (float[1,4,8] x) => (float[1,4,8] y) { p = MatMul(x, w) y = Add(p, b) }"
    model = parse(text, w=weights(8, 8), b=weights(8))
    assert lint(model, X64) == []
