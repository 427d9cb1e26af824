"""Weight-only layers in ONNX Runtime's own operators: MatMulNBits and GatherBlockQuantized."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from edgeq.affine import blocks, pack
from edgeq.graph import Names, constant_array, set_initializer
from edgeq.qtypes import IntType, PerBlock

__all__ = ["use_nbits"]

_DOMAIN = "com.microsoft"


def use_nbits(model: ir.Model, accuracy_level: int, *, wanted: Callable[[ir.Node], bool] | None = None) -> ir.Model:
    """Replace each DequantizeLinear of a constant in blocks, and the MatMul or Gather that reads it, in place.

    With ``wanted`` only those nodes for which it says so.

    ``DequantizeLinear(W [K, N], axis 0) -> MatMul(x, .)`` becomes ``MatMulNBits(x, B, scales)`` with B
    ``[N, ceil(K / block), block * bits / 8]`` uint8 and scales ``[N, ceil(K / block)]``; the last block is
    filled with zeros. ``DequantizeLinear(T [V, D], axis 1) -> Gather(., rows)`` becomes
    ``GatherBlockQuantized`` with T ``[V, D * bits / 8]`` uint8. Zero points other than the middle are kept.
    Formats as in ONNX Runtime's ContribOperators.md; everything else stays as it is.
    """
    names = Names(model)
    for node in list(model.graph):
        if wanted is not None and not wanted(node):
            continue
        if node.op_type == "MatMul":
            stored = _blocked(node.inputs[1], axis=0)
            if stored is not None:
                _replace(model, node, _matmul(model, node, stored, accuracy_level, names))
        elif node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0:
            stored = _blocked(node.inputs[0], axis=1)
            if stored is not None:
                _replace(model, node, _gather(model, node, stored, names))
    return model


class _Stored:
    """A constant matrix behind a DequantizeLinear: levels as unsigned numbers, and what they mean."""

    def __init__(self, node: ir.Node, levels: np.ndarray, scale: np.ndarray, zero: np.ndarray, axis: int) -> None:
        name = ir.DataType.from_numpy(levels.dtype).name.lower()
        dtype = IntType.parse(name)
        self.name = str(node.inputs[0].name)  # type: ignore[union-attr]
        self.bits, self.size = dtype.bits, node.attributes.get_int("block_size", 0)
        self.granularity = PerBlock(axis, self.size)
        # A signed level -2^(b-1) is the unsigned level 0, so that the zero point 0 becomes the middle.
        middle = 1 << (dtype.bits - 1) if dtype.signed else 0
        self.levels = (levels.astype(np.int16) + middle).astype(np.uint8)
        self.zero = (zero.astype(np.int16) + middle).astype(np.uint8)
        self.scale = scale

    @property
    def centred(self) -> bool:
        """Whether all zero points are the middle, which is what both operators take if none are given."""
        return bool((self.zero == 1 << (self.bits - 1)).all())


def _blocked(value: ir.Value | None, *, axis: int) -> _Stored | None:
    """The matrix behind ``value``, if that is a constant of rank 2 dequantized in blocks along ``axis``."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear" or value is None or len(list(value.uses())) != 1:
        return None
    levels, scale = constant_array(node.inputs[0]), constant_array(node.inputs[1])
    if levels is None or scale is None or levels.ndim != 2 or not node.attributes.get_int("block_size", 0):
        return None
    if node.attributes.get_int("axis", 1) % 2 != axis or levels.dtype.itemsize > 1:
        return None
    zero = constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
    return _Stored(node, levels, scale, np.zeros(scale.shape, levels.dtype) if zero is None else zero, axis)


def _matmul(model: ir.Model, node: ir.Node, stored: _Stored, accuracy_level: int, names: Names) -> ir.Node:
    rows, columns = stored.levels.shape
    # [K, N] -> [K / block, N, block]; beyond the last row zero is whatever level the block calls zero.
    split = blocks(stored.levels, stored.granularity)
    short = split.shape[0] * stored.size - rows
    if short:
        split[-1, :, stored.size - short :] = stored.zero[-1][:, None]
    packed = pack(np.ascontiguousarray(np.moveaxis(split, 0, 1)), stored.bits)
    inputs: list[ir.Value | None] = [
        node.inputs[0],
        set_initializer(model, names.fresh(f"{stored.name}_packed"), packed),
        set_initializer(model, names.fresh(f"{stored.name}_scales"), np.ascontiguousarray(stored.scale.T)),
    ]
    if not stored.centred:
        zero = pack(np.ascontiguousarray(stored.zero.T), stored.bits)
        inputs.append(set_initializer(model, names.fresh(f"{stored.name}_zero_points"), zero))
    attributes = {
        "K": rows,
        "N": columns,
        "bits": stored.bits,
        "block_size": stored.size,
        "accuracy_level": accuracy_level,
    }
    return ir.node("MatMulNBits", inputs, attributes, domain=_DOMAIN, name=node.name)


def _gather(model: ir.Model, node: ir.Node, stored: _Stored, names: Names) -> ir.Node:
    inputs: list[ir.Value | None] = [
        set_initializer(model, names.fresh(f"{stored.name}_packed"), pack(stored.levels, stored.bits)),
        node.inputs[1],
        set_initializer(model, names.fresh(f"{stored.name}_scales"), stored.scale),
    ]
    if not stored.centred:
        zero = pack(stored.zero, stored.bits)
        inputs.append(set_initializer(model, names.fresh(f"{stored.name}_zero_points"), zero))
    attributes = {"bits": stored.bits, "block_size": stored.size, "gather_axis": 0, "quantize_axis": 1}
    return ir.node("GatherBlockQuantized", inputs, attributes, domain=_DOMAIN, name=node.name)


def _replace(model: ir.Model, old: ir.Node, new: ir.Node) -> None:
    position = 1 if old.op_type == "MatMul" else 0
    restore = old.inputs[position].producer()  # type: ignore[union-attr]
    name = old.outputs[0].name
    new.outputs[0].shape, new.outputs[0].type = old.outputs[0].shape, old.outputs[0].type
    ir.convenience.replace_nodes_and_values(model.graph, old, [old], [new], [old.outputs[0]], [new.outputs[0]])
    new.outputs[0].name = name
    assert restore is not None
    held = [value for value in restore.inputs if value is not None]
    model.graph.remove(restore, safe=True)
    for value in held:
        if not value.uses() and value.name in model.graph.initializers:
            del model.graph.initializers[str(value.name)]
    model.opset_imports[_DOMAIN] = 1
