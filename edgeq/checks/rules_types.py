"""Rules of numbers: types, zero points, scales, axes and blocks of activations, weights and biases."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from edgeq.checks.rules import Rule
from edgeq.checks.view import Parameters, View
from edgeq.graph import constant_array

__all__ = ["TYPE_RULES"]

Found = Iterator[tuple[str, str]]


def _activation_pairs(view: View) -> Iterator[tuple[ir.Node, Parameters]]:
    """Every Q of a computed tensor."""
    return ((node, known) for node, known in view.pairs.items() if node.op_type == "QuantizeLinear")


def _weights(view: View) -> Iterator[tuple[ir.Node, Parameters]]:
    """Every node with a stored weight, and the weight."""
    for node in view.computing:
        known = view.weight(node)
        if known is not None:
            yield node, known


def _operand_types(view: View) -> set[str]:
    return {dtype for c in view.profile.capability for dtype in c.operand_types.values()}


def _activation_type(view: View) -> Found:
    allowed = {*view.profile.activations.types.values(), *_operand_types(view)}
    for node, known in _activation_pairs(view):
        if known.dtype not in allowed:
            yield (
                str(node.name),
                f"activations are {known.dtype}; the target has {', '.join(sorted(allowed)) or 'none'}",
            )
        elif known.per_channel:
            yield str(node.name), "activations have one scale per tensor"


def _activation_zero(view: View) -> Found:
    for node, known in _activation_pairs(view):
        converted = known.dtype in _operand_types(view) - set(view.profile.activations.types.values())
        if (view.profile.activations.symmetric or converted) and not known.symmetric:
            yield str(node.name), f"its zero point is {known.zero.ravel()[0]}, and must be {known.middle}"


def _activation_range(view: View) -> Found:
    least = view.profile.activations.min_range
    for node, known in _activation_pairs(view):
        span = float(known.scale.min()) * ((1 << known.bits) - 1)
        if span < least * 0.99:
            yield str(node.name), f"its range of {span:.3g} is below {least:g}"


def _scale(view: View) -> Found:
    for node, known in view.pairs.items():
        weight = known.stored is not None
        rule = view.profile.weights.scale if weight else view.profile.activations.scale
        if known.dtype == "int32" or rule != "power-of-two":
            continue
        exponents = np.log2(known.scale)
        if not np.array_equal(exponents, np.round(exponents)):
            yield str(node.name), f"a scale of {float(known.scale.ravel()[0]):.6g} is no power of two"


def _weight_type(view: View) -> Found:
    usual = set(view.profile.weights.types.values())
    for node, known in _weights(view):
        own = {dtype for c in view.allowed(node) for dtype in c.weight_types.values()}
        if known.dtype not in (own or usual):
            allowed = ", ".join(sorted(own or usual)) or "none"
            yield str(node.name), f"its weight is {known.dtype}; the target has {allowed}"
        bits = {b for c in view.allowed(node) for b in c.weight_bits}
        if not own and bits and known.bits not in bits:
            yield str(node.name), f"{node.op_type} takes weights of {sorted(bits)} bits, not {known.bits}"


def _weight_zero(view: View) -> Found:
    for node, known in _weights(view):
        if view.profile.weights.symmetric and not known.symmetric:
            yield str(node.name), f"a zero point of its weight is not {known.middle}"


def _weight_axis(view: View) -> Found:
    for node, known in _weights(view):
        if not known.per_channel or known.stored is None:
            continue
        wanted = view.output_axis(node, known.stored.ndim)
        if not any(c.per_channel for c in view.allowed(node)):
            yield str(node.name), f"{node.op_type} takes one scale per weight, not one per channel"
        elif known.axis != wanted:
            yield str(node.name), f"its weight has scales along axis {known.axis}, and output channels lie on {wanted}"


def _weight_range(view: View) -> Found:
    for node, known in _weights(view):
        if view.profile.weights.reduce_range and known.bits == 8 and known.stored is not None:
            levels = known.stored.astype(np.int64) - known.middle
            if levels.min() < -64 or levels.max() > 63:
                yield (
                    str(node.name),
                    f"weights reach {levels.min()} .. {levels.max()}, and products saturate beyond 7 bits",
                )


def _block(view: View) -> Found:
    for node, known in _weights(view):
        if not known.block or known.stored is None:
            continue
        capabilities = view.allowed(node)
        sizes = {size for c in capabilities for size in c.blocks}
        free = any(c.kind == "weight-only" and not c.blocks for c in capabilities)
        if not free and known.block not in sizes:
            yield str(node.name), f"blocks of {known.block}; it takes {sorted(sizes) or 'none'}"
        if known.block < 16 or known.block & (known.block - 1):
            yield str(node.name), f"blocks of {known.block}, which is no power of two from 16 on"
        if known.axis == view.output_axis(node, known.stored.ndim):
            yield str(node.name), "its blocks lie along the output channels, not along the sum"


def _bias(view: View) -> Found:
    for node in view.computing:
        value, known = view.bias_value(node), view.bias(node)
        data, weight = view.dequantized(node, 0), view.weight(node)
        if value is None or data is None or weight is None:
            continue
        if view.profile.bias.mode == "float":
            if known is not None:
                yield str(node.name), f"its bias is {known.dtype}, and the target keeps biases in float"
        elif known is None:
            if constant_array(value) is not None:
                yield str(node.name), "its bias is float, and the target adds int32"
        elif known.dtype != "int32" or known.zero.any():
            yield str(node.name), f"its bias is {known.dtype}, and must be int32 with zero point 0"
        elif not np.allclose(known.scale, data.scale * weight.scale, rtol=1e-6, atol=0):
            yield str(node.name), "the scale of its bias is not input scale x weight scale"


def _fixed(view: View) -> Found:
    for node in view.computing:
        span = view.profile.fixed_range(node.op_type)
        if span is None or not view.is_integer(node):
            continue
        low, high = span
        for known in view.quantizers(node.outputs[0]):
            if view.profile.activations.symmetric:
                scale, zero = max(abs(low), abs(high)) / 2 ** (known.bits - 1), known.middle
            else:
                scale = (high - low) / 2**known.bits
                zero = round(-low / scale) + known.lowest
            if not np.isclose(float(known.scale), scale, rtol=1e-5) or int(known.zero) != zero:
                found = f"scale {float(known.scale):.6g} and zero point {int(known.zero)}"
                yield str(node.name), f"{node.op_type} has {found} behind it, not {scale:.6g} and {zero}"


TYPE_RULES: tuple[Rule, ...] = (
    Rule("activation-type", "activations have the target's integer types, one scale per tensor", _activation_type),
    Rule("activation-zero", "zero points lie in the middle where the target is symmetric", _activation_zero),
    Rule("activation-range", "no range is narrower than the provider takes", _activation_range),
    Rule("scale", "scales are powers of two where the target shifts", _scale),
    Rule("weight-type", "weights have the types and widths that the operator takes", _weight_type),
    Rule("weight-zero", "weights are symmetric", _weight_zero),
    Rule("weight-axis", "scales per channel lie on the output channels, where there may be any", _weight_axis),
    Rule("weight-range", "weights leave one bit unused where products saturate", _weight_range),
    Rule("block", "blocks have a size that the operator takes, along the axis that is summed", _block),
    Rule("bias", "biases are int32 at input scale x weight scale, or float, as the target adds them", _bias),
    Rule("fixed", "outputs of a known range have its scale and zero point", _fixed),
)
