"""Why a node stays float on ONNX Runtime's CPU provider: the traps measured with version 1.32, in words."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.graph import constant_array
from edgeq.roles import is_floating

__all__ = ["ABSORBED", "HOT", "dequantized_inputs", "quantizers_behind", "reads_beside", "reads_floats", "why_float"]

HOT = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators for which a DequantizeLinear that is not fused costs more than quantizing gains."""

ABSORBED = frozenset({"Relu", "Clip"})
"""Activations that the kernel in front takes over when only a QuantizeLinear follows."""


_PARAMETERS = frozenset({"Clip", "Pad", "Resize"})
"""Operators whose further float inputs are parameters of an integer kernel, not numbers to compute with."""


def why_float(node: ir.Node, runs_as: str) -> str:
    """One sentence: why ``node`` of a QDQ model got the float kernel ``runs_as``."""
    sources = dequantized_inputs(node)
    quantizers = quantizers_behind(node)
    if not sources and not quantizers:
        return "it was left float: neither its inputs nor its outputs are quantized"
    if node.op_type in ABSORBED and sources:
        return _activation(quantizers)
    activations = [source for source in sources if constant_array(source.inputs[0]) is None]
    weights = [source for source in sources if constant_array(source.inputs[0]) is not None]
    if any(_bits(source) == 16 for source in activations):
        return "16-bit activations have no integer kernels on the CPU: it dequantizes, computes in float, quantizes"
    if activations and any(_bits(weight) < 8 or weight.attributes.get_int("block_size", 0) for weight in weights):
        return "4-bit or blocked weights beside quantized activations have no integer kernel on the CPU"
    if node.op_type in HOT:
        reason = _hot(node, runs_as, activations, weights, quantizers)
        if reason:
            return reason
    floats = [v for v in node.inputs if v is not None and constant_array(v) is None and _dequantizer(v) is None]
    if floats:
        return f"its input {floats[0].name!r} is not quantized"
    if not quantizers:
        return "its output is not quantized"
    types = f"{', '.join(_dtype(source) for source in sources)} in, {_dtype(quantizers[0])} out"
    return f"quantized on both sides, but the provider has no integer kernel for {node.op_type} ({types})"


def dequantized_inputs(node: ir.Node) -> list[ir.Node]:
    """The DequantizeLinear nodes that feed ``node`` directly."""
    return [source for value in node.inputs if (source := _dequantizer(value)) is not None]


def _hot(
    node: ir.Node, runs_as: str, activations: list[ir.Node], weights: list[ir.Node], quantizers: list[ir.Node]
) -> str | None:
    followers = [use.node for output in node.outputs for use in output.uses()]
    clipped = [follower for follower in followers if follower.op_type in ABSORBED]
    # 1. The activation behind it can be absorbed only if its lowest level is the zero point.
    if clipped and (behind := quantizers_behind(clipped[0])):
        zero, lowest = _zero_point(behind[0])
        if zero != lowest:
            return (
                f"the {clipped[0].op_type} behind it cannot be absorbed: its output's zero point is {zero}, "
                f"not {lowest}, the lowest value of its type"
            )
    # 2. and 3. What stands between a matrix product and its QuantizeLinear.
    if clipped and not quantizers and node.op_type in ("MatMul", "Gemm"):
        return f"a {clipped[0].op_type} follows without a QuantizeLinear between them, which blocks every fusion"
    if node.op_type == "MatMul" and runs_as in ("Gemm", "FusedGemm"):
        return "its output is not quantized before the bias is added, so both became a float Gemm"
    # 4. A bias in another scale than input times weight blocks the fusion without a word.
    if len(node.inputs) > 2 and activations and weights and _bias_scale_differs(node):
        return "its bias is not quantized with input scale times weight scale, which blocks the fusion"
    # 5. Weights shared by several nodes, or transposed on the way.
    if any(len(list(weight.outputs[0].uses())) > 1 for weight in weights):
        return "its weight is shared with another node, and a shared DequantizeLinear is not fused"
    if not quantizers:
        return "its output is not quantized, and this operator has an integer kernel only with a quantized output"
    # 6. On x86 int8 activations must be rewritten to uint8 first, which fails around a Relu.
    signed = [source for source in activations if _dtype(source) == "int8"]
    if signed:
        return "its activations are int8, for which x86 has no integer kernel; uint8 activations would fuse"
    return None


def _activation(quantizers: list[ir.Node]) -> str:
    if quantizers:
        zero, lowest = _zero_point(quantizers[0])
        if zero != lowest:
            return (
                f"the node before cannot absorb it: its output's zero point is {zero}, "
                f"not {lowest}, the lowest value of its type"
            )
    return "a Q/DQ pair stands between it and the node that could absorb it"


def _dequantizer(value: ir.Value | None) -> ir.Node | None:
    source = value.producer() if value is not None else None
    return source if source is not None and source.op_type == "DequantizeLinear" else None


def reads_beside(node: ir.Node) -> str | None:
    """Why the Q/DQ around ``node`` make no integer group: an input that is neither dequantized nor a parameter."""
    if node.op_type == "Cast":
        return "it converts floats"
    values = node.inputs[:1] if node.op_type in _PARAMETERS else node.inputs
    for value in values:
        if value is not None and value.dtype in (None, ir.DataType.FLOAT) and _dequantizer(value) is None:
            return f"its input {value.name!r} is not quantized"
    return None


def reads_floats(node: ir.Node) -> bool:
    """Whether an input of ``node`` is a float tensor (one of unknown type counts as one)."""
    return any(is_floating(value) for value in node.inputs)


def quantizers_behind(node: ir.Node) -> list[ir.Node]:
    """The QuantizeLinear nodes that read ``node``'s outputs directly."""
    uses = [use.node for output in node.outputs for use in output.uses()]
    return [user for user in uses if user.op_type == "QuantizeLinear"]


def _zero_point(node: ir.Node) -> tuple[int, int]:
    """Zero point of a Q (of its first channel) and the lowest value of its type."""
    zero = constant_array(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(1, np.uint8)
    if zero is None:
        return 0, 0
    name = ir.DataType.from_numpy(zero.dtype).name
    lowest = 0 if name.startswith("U") else -(1 << (int(name.removeprefix("INT")) - 1))
    return int(zero.reshape(-1)[0]), lowest


def _dtype(node: ir.Node) -> str:
    """The integer type that a Q produces or a DQ reads."""
    array = constant_array(node.inputs[0])
    if array is None:
        array = constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
    return "uint8" if array is None else ir.DataType.from_numpy(array.dtype).name.lower()


def _bits(node: ir.Node) -> int:
    digits = _dtype(node).lstrip("uint")
    return int(digits) if digits.isdigit() else 8


def _bias_scale_differs(node: ir.Node) -> bool:
    parts = [_dequantizer(value) for value in node.inputs[:3]]
    scales = [None if part is None else constant_array(part.inputs[1]) for part in parts]
    if any(scale is None for scale in scales):
        return False
    x, w, bias = (np.asarray(scale, dtype=np.float64) for scale in scales)
    return not np.allclose(bias, x * w.reshape(-1), rtol=1e-4, atol=0)
