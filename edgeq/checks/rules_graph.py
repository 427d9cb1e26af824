"""Rules of the graph as a whole: versions, shapes, the Q/DQ domain, float types, forms that fuse."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from edgeq.checks.rules import Rule
from edgeq.checks.view import HEAVY, PLUMBING, View
from edgeq.graph import constant_array

__all__ = ["GRAPH_RULES"]

_MASK = -1e30
_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

Found = Iterator[tuple[str, str]]


def _opset_needed(view: View) -> int:
    """The first opset in which Q and DQ of the standard domain have the model's types."""
    needed = 10
    for node, known in view.pairs.items():
        wide = known.bits == 16 or known.bits == 4
        if known.bits == 2:
            needed = max(needed, 25)
        elif known.block or (wide and node.domain in ("", "ai.onnx")):
            needed = max(needed, 21)
        elif known.per_channel:
            needed = max(needed, 13)
    return needed


def _too_old(view: View) -> Found:
    opset, needed = view.model.opset_imports.get("", 0), _opset_needed(view)
    if opset < needed:
        yield "", f"opset {opset}, but its integer types exist since {needed}"


def _too_new(view: View) -> Found:
    opset, most = view.model.opset_imports.get("", 0), max(view.profile.graph.opset, _opset_needed(view))
    if opset > most:
        yield "", f"opset {opset}, and the profile speaks of {view.profile.graph.opset}"


def _ir_version(view: View) -> Found:
    newest = max(view.profile.graph.ir_version, 13 if _opset_needed(view) >= 25 else 0)
    if view.model.ir_version > newest:
        yield "", f"IR version {view.model.ir_version}, and the profile speaks of {newest}"


def _static(view: View) -> Found:
    if view.profile.graph.shapes != "static":
        return
    values = [*view.model.graph.inputs, *(output for node in view.nodes for output in node.outputs)]
    for value in values:
        if value.shape is not None and not all(isinstance(dim, int) for dim in value.shape):
            yield str(value.name), f"its shape is {list(map(str, value.shape))}, and all must be static"


def _domain(view: View) -> Found:
    wanted = view.profile.graph.qdq_domain
    for node in view.nodes:
        if node.op_type in PLUMBING and (node.domain or "ai.onnx") != wanted:
            yield str(node.name), f"{node.op_type} is of the domain {node.domain or 'ai.onnx'}, not {wanted}"


def _masks(view: View) -> Found:
    if view.profile.graph.masks != "finite":
        return
    for node in view.computing:
        for value in node.inputs:
            array = constant_array(value)
            if array is not None and array.dtype.kind == "f" and node.op_type in ("Add", "Mul", "Where", "Expand"):
                lowest = float(np.min(array, initial=0.0))
                if lowest <= _MASK:
                    yield str(node.name), f"a mask of {lowest:.3g}, which no integer grid can reach"


def _linear(view: View) -> Found:
    """A MatMul and a bias that ONNX Runtime merges into a float Gemm before its integer rules run."""
    if view.profile.graph.linear != "guarded-add":
        return
    for node in view.nodes:
        readers = [user for user, _ in node.outputs[0].uses()] if node.op_type == "MatMul" else []
        if len(readers) != 1 or readers[0].op_type != "Add" or view.dequantized(node, 1) is None:
            continue
        biases = [array for value in readers[0].inputs if (array := constant_array(value)) is not None]
        shape = node.outputs[0].shape
        if biases and shape is not None and (biases[0].ndim < len(shape) or len(shape) == 2):
            yield str(node.name), f"its bias {list(biases[0].shape)} is added without the rank of the product"


def _float_type(view: View) -> Found:
    half = view.profile.floats.type == "float16"
    for node in view.computing:
        if node.op_type == "Cast":
            continue
        types = {value.dtype for value in (*node.inputs, *node.outputs) if value is not None}
        if not half and types & set(_HALVES):
            yield str(node.name), f"{node.op_type} computes in 16-bit floats, and the target's floats are float32"
        if half and node.op_type in HEAVY and ir.DataType.FLOAT in types and not view.is_integer(node):
            yield str(node.name), f"{node.op_type} computes in float32, and the target's floats are float16"


def _shared(view: View) -> Found:
    for node, known in view.pairs.items():
        readers = {user for user, _ in node.outputs[0].uses()}
        if node.op_type == "DequantizeLinear" and known.stored is not None and len(readers) > 1:
            yield str(node.name), f"{len(readers)} nodes read it: a shared DequantizeLinear fuses into none of them"


def _leftover(view: View) -> Found:
    for node, known in view.pairs.items():
        source = node.inputs[0].producer() if node.op_type == "QuantizeLinear" and node.inputs[0] else None
        before = None if source is None or source.op_type != "DequantizeLinear" else view.pairs.get(source)
        if before is not None and before.same_as(known):
            yield str(node.name), "it repeats the quantization of the tensor that it reads"


def _constant(view: View) -> Found:
    for node in view.nodes:
        if node.op_type == "QuantizeLinear" and constant_array(node.inputs[0]) is not None:
            yield str(node.name), "it quantizes a constant at every inference"


GRAPH_RULES: tuple[Rule, ...] = (
    Rule("opset", "the opset has the Q/DQ types that the model uses", _too_old),
    Rule("opset-tried", "the opset is no newer than the profile's", _too_new, "warning"),
    Rule("ir-version", "the IR version is no newer than the profile's", _ir_version, "warning"),
    Rule("static", "all shapes are static where the provider compiles ahead of time", _static),
    Rule("qdq-domain", "Q and DQ are of the domain that the provider takes", _domain),
    Rule("masks", "attention masks are finite where integers are to hold them", _masks),
    Rule("linear", "a bias behind MatMul has the product's rank where ONNX Runtime would make a Gemm of both", _linear),
    Rule("float-type", "floats have the target's type; heavy operators are no islands", _float_type),
    Rule("shared", "each reader of a stored weight has a DequantizeLinear of its own", _shared),
    Rule("leftover", "no pair of DQ and Q that changes nothing", _leftover),
    Rule("constant", "constants are stored as integers, not quantized at run time", _constant),
)
