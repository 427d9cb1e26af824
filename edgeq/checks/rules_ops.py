"""Rules of operators: what may read quantized tensors, what must stand behind it, what runs in floats at all."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from edgeq.checks.rules import Rule
from edgeq.checks.view import HEAVY, Parameters, View
from edgeq.graph import constant_array, feeds_relu

__all__ = ["OPERATOR_RULES"]

Found = Iterator[tuple[str, str]]

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_NBITS = "MatMulNBits"


def _listed(view: View) -> Found:
    for node, text in _unlisted(view):
        if node.op_type in HEAVY:
            yield str(node.name), f"{text}, and the profile does not list that"


def _between(view: View) -> Found:
    for node, text in _unlisted(view):
        if node.op_type not in HEAVY:
            yield str(node.name), f"{text}: it runs in floats, behind a DequantizeLinear of its own"


def _unlisted(view: View) -> Iterator[tuple[ir.Node, str]]:
    for node in view.computing:
        if view.allowed(node) or _absorbed(view, node):
            continue
        reads, weight = view.activations(node), view.weight(node)
        if reads:
            yield node, f"{node.op_type} reads {min(known.bits for known in reads)}-bit activations"
        elif weight is not None:
            yield node, f"{node.op_type} reads a weight of {weight.bits} bits beside float activations"


def _runs_in_floats(view: View, node: ir.Node) -> bool:
    runs = view.profile.floats.runs
    return runs == "all" or (
        runs == "listed" and any(c.kind == "float" for c in view.profile.capabilities(node.op_type))
    )


def _operand(view: View) -> Found:
    """Two activations where the profile wants a constant, or the second in a type of its own."""
    for node in view.computing:
        second = view.dequantized(node, 1) if node.op_type in ("MatMul", "Gemm", "Conv", "ConvTranspose") else None
        if second is None or second.stored is not None or not view.is_integer(node):
            continue
        if any(c.passive for c in view.allowed(node)):
            continue
        capabilities = [c for c in view.allowed(node) if c.kind == "compute"]
        if capabilities and all(c.constant_weight for c in capabilities):
            yield str(node.name), "both operands are activations, and its weight must be a constant"
        first = view.dequantized(node, 0)
        wanted = {c.operand_types.get(str(first.bits)) for c in capabilities} - {None} if first is not None else set()
        if wanted and second.dtype not in wanted:
            yield str(node.name), f"its second operand is {second.dtype}, not {', '.join(map(str, wanted))}"


def _output(view: View) -> Found:
    for node in view.computing:
        if not view.is_integer(node) or not any(c.output == "required" for c in view.allowed(node)):
            continue
        # Between floats, elementwise kernels are left float on purpose, unless the target avoids floats.
        light = all(c.kind != "compute" for c in view.allowed(node)) and not view.profile.floats.avoid
        if light or any(c.output == "optional" or c.passive for c in view.allowed(node)):
            continue
        for output in node.outputs:
            if output.dtype is not None and output.dtype not in _FLOATS:
                continue
            if output.is_graph_output() or not _ends_in_quantizers(view, output):
                yield str(node.name), f"{node.op_type} has no QuantizeLinear behind it, without which it stays float"
                break


def _ends_in_quantizers(view: View, value: ir.Value) -> bool:
    """Whether every reader quantizes, at once or behind an activation that the kernel takes over."""
    readers = [user for user, _ in value.uses()]
    for reader in readers:
        if reader.op_type == "QuantizeLinear":
            continue
        if reader.op_type not in view.profile.absorbs or len(readers) != 1:
            return False
        absorbed = reader.outputs[0]
        if absorbed.is_graph_output() or not all(user.op_type == "QuantizeLinear" for user, _ in absorbed.uses()):
            return False
    return True


def _absorbed(view: View, node: ir.Node) -> bool:
    """Whether ``node`` is a Relu or Clip right behind an integer kernel."""
    source = None if not node.inputs or node.inputs[0] is None else node.inputs[0].producer()
    return node.op_type in view.profile.absorbs and source is not None and view.is_integer(source)


def _absorption(view: View) -> Found:
    """Where the integers' ends are to cut, their range must lie within the activation's bounds."""
    if view.profile.activations.absorption != "range":
        return
    for node in view.computing:
        if node.op_type not in ("Relu", "Clip") or not _absorbed(view, node):
            continue
        low, high = (0.0, np.inf) if node.op_type == "Relu" else _bounds(node)
        for known in view.quantizers(node.outputs[0]):
            least, most = _span(known)
            step = float(known.scale)
            if least < low - step / 2 or most > high + step / 2:
                text = f"{node.op_type} cannot be absorbed: the integers reach {least:.4g} .. {most:.4g}"
                yield str(node.name), f"{text}, beyond {low:.4g} .. {high:.4g}"


def _bounds(node: ir.Node) -> tuple[float, float]:
    low, high = (constant_array(value) for value in (*node.inputs[1:], None, None)[:2])
    return (-np.inf if low is None else float(low), np.inf if high is None else float(high))


def _span(known: Parameters) -> tuple[float, float]:
    scale, zero = float(known.scale), int(known.zero)
    return (known.lowest - zero) * scale, (known.lowest + (1 << known.bits) - 1 - zero) * scale


def _moved(view: View) -> Found:
    for node in view.computing:
        data = view.dequantized(node, 0)
        capabilities = view.allowed(node)
        if data is None or data.stored is not None or not capabilities or capabilities[0].kind != "moves-data":
            continue
        for output in node.outputs:
            for known in view.quantizers(output):
                if not known.same_as(data):
                    yield (
                        str(node.name),
                        f"{node.op_type} only moves data, but its output has another grid than its input",
                    )


def _weight_form(view: View) -> Found:
    form, level = view.profile.weights.form, view.profile.weights.accuracy_level
    for node in view.computing:
        if node.op_type == _NBITS and form == "qdq":
            if not feeds_relu(node):
                yield str(node.name), "MatMulNBits, and the target takes DequantizeLinear in front of MatMul"
        elif node.op_type == _NBITS and node.attributes.get_int("accuracy_level", 0) != level:
            found = node.attributes.get_int("accuracy_level", 0)
            yield str(node.name), f"accuracy level {found}, and the profile says {level}"
        elif node.op_type == "MatMul" and form == "matmulnbits" and not view.is_integer(node) and view.weight(node):
            yield str(node.name), "DequantizeLinear in front of MatMul, and the target takes MatMulNBits"


def _nbits(view: View) -> Found:
    for node in view.computing:
        if node.op_type != _NBITS:
            continue
        bits, size = node.attributes.get_int("bits", 4), node.attributes.get_int("block_size", 0)
        listed = [c for c in view.profile.capabilities("MatMul") if c.kind == "weight-only" and bits in c.weight_bits]
        if not listed:
            yield str(node.name), f"weights of {bits} bits, which the profile does not list"
        elif not any(not c.blocks or size in c.blocks for c in listed):
            yield str(node.name), f"blocks of {size}; it takes {sorted({b for c in listed for b in c.blocks})}"


def _float_op(view: View) -> Found:
    for node in view.computing:
        if view.is_integer(node) or _absorbed(view, node) or view.allowed(node) or _runs_in_floats(view, node):
            continue
        if any(value is not None and value.dtype in _FLOATS for value in node.inputs):
            yield str(node.name), f"{node.op_type} runs in floats, which the provider leaves to the CPU"


OPERATOR_RULES: tuple[Rule, ...] = (
    Rule("op", "heavy operators read integers only as listed", _listed),
    Rule("op-float", "no float operator stands between integer ones", _between, "warning"),
    Rule("operand", "an activation stands in the weight's place only where it may, in its type", _operand),
    Rule("output", "what needs a QuantizeLinear behind it has one", _output),
    Rule("absorption", "a Relu or Clip in front of Q cuts where the integers end", _absorption),
    Rule("moves-data", "operators that move data keep the grid", _moved),
    Rule("weight-form", "weights alone are written in the target's form", _weight_form),
    Rule("matmulnbits", "MatMulNBits has listed widths and blocks", _nbits),
    Rule("float-op", "the provider runs what stays float", _float_op, "warning"),
)
