"""Store the weights of float kernels in 16 bits, where the runtime turns them back while it loads the model."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.affine import quantize, range_to_qparams
from edgeq.graph import Names, constant_array, set_initializer
from edgeq.qtypes import IntType, PerAxis, QParams, TensorSpec
from edgeq.roles import channel_axis, roles_of

__all__ = ["store_floats"]

_LEAST = 4096
"""Smaller weights stay as they are: there is nothing to win."""

_LEAST_PER_SCALE = 16
"""A channel of fewer weights gains little beside its scale of 4 bytes."""


def store_floats(model: ir.Model) -> ir.Model:
    """Replace the float32 weights of Conv, ConvTranspose, Gemm and MatMul by ``Mul(Cast(int16), scale)``, in place.

    The scales are one per output channel, float32, so that no weight moves by more than 1/65534 of the largest of
    its channel: about 48 dB less noise than 8 bits have. Both nodes have constant inputs, and are computed while
    loading: the kernels, their speed and their memory stay those of floats, only the file halves. It is not a
    DequantizeLinear, as ONNX Runtime keeps that to run at every inference (see ``targets/providers/cpu.toml``).
    """
    names = Names(model)
    for value in list(model.graph.initializers.values()):
        axis = _axis(value)
        array = constant_array(value)
        if axis is not None and array is not None and _worth(array, axis):
            _store(model, value, array, axis, names)
    return model


def _axis(value: ir.Value) -> int | None:
    """The axis of output channels of a weight that only float kernels read, all of them alike; else None."""
    uses = list(value.uses())
    if not uses or value.dtype != ir.DataType.FLOAT or value.is_graph_output() or value.shape is None:
        return None
    axes = set()
    for node, position in uses:
        alone = node.domain in ("", "ai.onnx") and roles_of(node.op_type).weight == position
        axes.add(channel_axis(node, len(value.shape)) if alone and node.graph is value.graph else None)
    return axes.pop() if len(axes) == 1 else None


def _worth(array: np.ndarray, axis: int) -> bool:
    per_scale = array.size // max(array.shape[axis], 1)
    return array.size >= _LEAST and per_scale >= _LEAST_PER_SCALE and bool(np.isfinite(array).all())


def _store(model: ir.Model, value: ir.Value, array: np.ndarray, axis: int, names: Names) -> None:
    spec = TensorSpec(IntType(16, True), True, PerAxis(axis))
    others = tuple(other for other in range(array.ndim) if other != axis)
    found = range_to_qparams(array.min(axis=others), array.max(axis=others), spec)
    levels = quantize(array, QParams(found.scale, found.zero_point, spec))
    shape = [-1 if position == axis else 1 for position in range(array.ndim)]
    name = str(value.name)
    stored = set_initializer(model, names.fresh(f"{name}_int16"), levels)
    scale = set_initializer(model, names.fresh(f"{name}_scale"), found.scale.reshape(shape).astype(np.float32))
    cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT.value}, name=names.fresh(f"{name}_Cast"))
    restored = ir.node("Mul", [cast.outputs[0], scale], name=names.fresh(f"{name}_Mul"))
    for node in (cast, restored):
        node.outputs[0].name = names.fresh(f"{node.name}_output")
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(array.shape)
    model.graph.insert_before(model.graph[0], [cast, restored])
    for node, position in list(value.uses()):
        if node is not cast:
            node.replace_input_with(position, restored.outputs[0])
    del model.graph.initializers[name]
