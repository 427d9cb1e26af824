"""What float16 can hold, and which operators have a form in it: read from ONNX's own type rules."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import onnx_ir as ir

__all__ = [
    "LARGEST",
    "NO_BOUND",
    "HalfForm",
    "half_form",
    "half_scale",
    "lost",
    "to_float32",
    "to_half",
    "with_rounding",
]

LARGEST = 65504.0
"""The largest float16."""

NO_BOUND = 1e30
"""Constants of this magnitude and more are no numbers to compute with, but mean "no bound" or "masked"."""

_MASK = 32752.0
"""What they become where they are added to something: half of the largest, so that no sum overflows."""

_BOUNDS = frozenset({"Clip", "Max", "Min"})

_CONTRIB: dict[str, frozenset[int]] = {
    "MatMulNBits": frozenset({0, 2, 5}),
    "GatherBlockQuantized": frozenset({2}),
}
"""Operators of com.microsoft that edgeq itself writes: the inputs that follow the type of the output."""

_TYPED_BY_ATTRIBUTE = frozenset({"Cast", "CastLike", "ConstantOfShape"})

_FLOAT32_INPUTS = {"Resize": frozenset({1, 2})}
"""Inputs that place, not measure: ``roi`` may be float16 in ONNX, but kernels read float32."""


@dataclass(frozen=True, slots=True)
class HalfForm:
    """Positions of inputs and outputs that become float16 together; all others keep their types."""

    inputs: frozenset[int]
    outputs: frozenset[int]


def to_half(array: np.ndarray, consumers: frozenset[str] = frozenset()) -> np.ndarray:
    """float32 -> float16, to the nearest, ties to even. What is too large becomes the largest; infinities stay.

    Magnitudes of ``NO_BOUND`` and more become half of the largest, unless only ``consumers`` that
    compare (Clip, Max, Min) read them.
    """
    mask = LARGEST if consumers and consumers <= _BOUNDS else _MASK
    bounded = np.where(np.abs(array) >= NO_BOUND, np.copysign(np.float32(mask), array), array)
    bounded = np.clip(bounded, -LARGEST, LARGEST)
    return np.where(np.isinf(array), array, bounded).astype(np.float16)


def lost(array: np.ndarray, *, each: bool = False) -> float:
    """The largest part of a constant that float16 loses: 0.0005 for ordinary rounding, 1.0 for what becomes zero.

    Relative to the largest magnitude in ``array``, or with ``each`` to each element's own (for what is
    divided by, say). Magnitudes of ``NO_BOUND`` and more count for nothing.
    """
    kept = array[np.isfinite(array) & (np.abs(array) < NO_BOUND) & (array != 0)].astype(np.float64)
    if not kept.size:
        return 0.0
    error = np.abs(kept - np.clip(kept, -LARGEST, LARGEST).astype(np.float16))
    return float((error / np.abs(kept)).max() if each else error.max() / np.abs(kept).max())


def half_scale(scale: np.ndarray) -> np.ndarray:
    """The nearest scale that float16 holds, float32 of the same shape.

    Weights that are quantized with it lose nothing to its storage. Not below 2^-14: GPUs may flush smaller
    numbers to zero, and weights that small weigh nothing beside others.
    """
    return np.maximum(scale.astype(np.float16), np.float16(2.0**-14)).astype(np.float32)


def half_form(node: ir.Node, opset: int) -> HalfForm | str:
    """How ``node`` is written with float16, or why it cannot be.

    An operator has such a form if ONNX lets every float32 tensor that it computes with be float16;
    inputs that ONNX types float32 alone (the scales of Resize) stay.
    """
    inputs, outputs = range(len(node.inputs)), range(len(node.outputs))
    values = [value for value in (*node.inputs, *node.outputs) if value is not None and value.type is not None]
    if not all(isinstance(value.type, ir.TensorType) for value in values):
        return f"{node.op_type} reads or makes a sequence"
    if node.domain == "com.microsoft" and node.op_type in _CONTRIB:
        return HalfForm(_CONTRIB[node.op_type], frozenset(outputs))
    if node.domain not in ("", "ai.onnx"):
        return f"{node.domain}::{node.op_type} is outside ONNX, so its types are unknown"
    signature = _signature(node.op_type, opset)
    if isinstance(signature, str):
        return signature
    own = _FLOAT32_INPUTS.get(node.op_type, frozenset())
    return HalfForm(
        frozenset(i for i in inputs if signature[0][min(i, len(signature[0]) - 1)] and i not in own),
        frozenset(i for i in outputs if signature[1][min(i, len(signature[1]) - 1)]),
    )


@lru_cache(maxsize=512)
def _signature(op_type: str, opset: int) -> tuple[tuple[bool, ...], tuple[bool, ...]] | str:
    """Per formal input and output whether its type may be float32 and float16 alike."""
    import onnx

    if not onnx.defs.has(op_type):
        return f"{op_type} is no operator of ONNX"
    schema = onnx.defs.get_schema(op_type, opset, "")
    kinds = {c.type_param_str: frozenset(c.allowed_type_strs) for c in schema.type_constraints}
    both = {name for name, types in kinds.items() if {"tensor(float)", "tensor(float16)"} <= types}
    inputs = tuple(p.type_str in both for p in schema.inputs)
    outputs = tuple(p.type_str in both for p in schema.outputs)
    if op_type not in _TYPED_BY_ATTRIBUTE:
        if both & {p.type_str for p in schema.outputs} - {p.type_str for p in schema.inputs}:
            return f"an attribute of {op_type} sets its type"
        formal = (*schema.inputs, *schema.outputs)
        if not any(inputs) and any("tensor(float)" in kinds.get(p.type_str, {p.type_str}) for p in formal):
            return f"ONNX has no {op_type} in float16"
    return inputs or (False,), outputs


def to_float32(model: ir.Model) -> bool:
    """Widen every float16 tensor of ``model`` to float32, in place; False if there was none.

    The same numbers in a type that every device has: a device without float16 can run the graph. Casts
    between the two types stay where they are and do nothing.
    """
    widened = False
    for graph in model.graphs():
        values = [*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)]
        for value in values:
            if value.dtype == ir.DataType.FLOAT16 and isinstance(value.type, ir.TensorType):
                value.type = ir.TensorType(ir.DataType.FLOAT)
                widened = True
            if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT16:
                value.const_value = _widen(value.const_value)
                widened = True
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == ir.DataType.FLOAT16:
                    node.attributes[name] = ir.AttrTensor(name, _widen(attribute.as_tensor()))
                    widened = True
            if node.op_type == "Cast" and node.attributes.get_int("to", 0) == ir.DataType.FLOAT16:
                node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
                widened = True
    return widened


def with_rounding(model: ir.Model) -> ir.Model:
    """A float32 copy of a float16 ``model`` that rounds each tensor of the main graph to float16.

    That is what kernels do that compute in float32 and store float16. ONNX Runtime's CPU provider does
    less: it widens the graph, and keeps float32 from one operator to the next (measured, 1.32: the
    product of two tensors may exceed 65504 there). Arrays that are no float16 are shared.
    """
    copy = model.clone()
    # Outputs without a name are left out by their node.
    halves = [v for node in copy.graph for v in node.outputs if v.dtype == ir.DataType.FLOAT16 and v.name]
    to_float32(copy)
    for value in halves:
        uses, producer = list(value.uses()), value.producer()
        assert producer is not None
        rounded = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT16)})
        restored = ir.node("Cast", [rounded.outputs[0]], {"to": int(ir.DataType.FLOAT)})
        copy.graph.insert_after(producer, [rounded, restored])
        for node, position in uses:
            node.replace_input_with(position, restored.outputs[0])
    return copy


def _widen(tensor: ir.TensorProtocol) -> ir.Tensor:
    return ir.Tensor(tensor.numpy().astype(np.float32), name=tensor.name)
