"""Matrix products that read one tensor, and the change of that tensor's channels that leaves them as they are.

    y = x W + b = ((x - d) / s) (s W) + (b + d W)

with a scale ``s`` and a shift ``d`` for each channel. A LayerNormalization whose only readers these are
takes the change into its own scale and bias, at no cost; elsewhere a Sub and a Mul are put in front.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.affine import fake_quantize, range_to_qparams
from edgeq.graph import Names, constant_array, set_initializer
from edgeq.qtypes import IntType, PerAxis, Scheme, TensorSpec
from edgeq.stages.equalize.alternative import set_constant

__all__ = ["LinearGroup", "change_channels", "find_groups", "group_rows", "product_error"]


@dataclass(frozen=True)
class LinearGroup:
    """MatMul and Gemm nodes with a constant weight ``[K, N]`` that read ``tensor`` over its last axis, by name.

    ``norm`` names the LayerNormalization that can take a change, None if something else computes ``tensor`` or
    reads it. ``shiftable`` tells whether each product has a constant bias, or can have one, that takes a shift.
    """

    tensor: str
    readers: tuple[str, ...]
    norm: str | None
    shiftable: bool


def find_groups(model: ir.Model, integer: Container[str]) -> list[LinearGroup]:
    """All groups among the nodes that ``integer`` names, in graph order."""
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in model.graph:
        value = node.inputs[0] if node.inputs else None
        if node.op_type not in ("MatMul", "Gemm") or str(node.name) not in integer or value is None:
            continue
        weight = constant_array(node.inputs[1])
        if weight is None or weight.ndim != 2 or node.attributes.get_int("transA", 0) == 1:
            continue
        found.setdefault(value, []).append(node)
    return [
        LinearGroup(
            str(value.name),
            tuple(str(node.name) for node in group),
            _foldable_norm(value, group),
            all(_takes_shift(node) for node in group),
        )
        for value, group in found.items()
    ]


def group_rows(model: ir.Model, group: LinearGroup) -> np.ndarray:
    """All weights of the group side by side, float32 ``[K, N1 + N2 + ...]``."""
    return np.concatenate([_matrix(node) for node in _readers(model, group)], axis=1)


def change_channels(
    model: ir.Model, group: LinearGroup, scale: np.ndarray | None = None, shift: np.ndarray | None = None
) -> None:
    """Let the group read ``(x - shift) / scale``, in place; both are ``[K]``, None leaves that part out.

    The products stay what they are. A ``shift`` needs a group that is ``shiftable``.
    """
    readers = _readers(model, group)
    value = readers[0].inputs[0]
    assert value is not None
    if group.norm is not None:
        _change_norm(model, next(node for node in model.graph if node.name == group.norm), scale, shift)
    else:
        _change_in_front(model, value, readers, scale, shift)
    for node in readers:
        if shift is not None:
            _add_to_bias(model, node, shift.astype(np.float64) @ _matrix(node).astype(np.float64))
        if scale is not None:
            weight = constant_array(node.inputs[1])
            assert weight is not None
            set_constant(model, node, 1, weight * (scale[None, :] if _transposed(node) else scale[:, None]))


def product_error(
    x: np.ndarray, rows: np.ndarray, scheme: Scheme, scale: np.ndarray | None = None, shift: np.ndarray | None = None
) -> float:
    """Mean squared error of the products from rounding both operands, after a change of the channels.

    ``x`` are rows of the tensor ``[R, K]``, ``rows`` the weights side by side ``[K, N]``. Ranges are the extrema, and
    weights have a scale for each column: enough to tell which changes are worth measuring.
    """
    scale = np.ones(x.shape[1]) if scale is None else scale
    changed = ((x - (0 if shift is None else shift)) / scale).astype(np.float32)
    weight = (rows * scale[:, None]).astype(np.float32)
    spec = TensorSpec(IntType(scheme.activation_bits or 8, False), symmetric=False)
    rounded = fake_quantize(changed, range_to_qparams(changed.min(), changed.max(), spec))
    spec = TensorSpec(IntType(scheme.weight_bits, True), True, PerAxis(1))
    most = np.abs(weight).max(axis=0)
    error = rounded @ fake_quantize(weight, range_to_qparams(-most, most, spec)) - changed @ weight
    return float(np.square(error, dtype=np.float64).mean())


def _readers(model: ir.Model, group: LinearGroup) -> list[ir.Node]:
    wanted = set(group.readers)
    return [node for node in model.graph if node.name in wanted]


def _transposed(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1


def _matrix(node: ir.Node) -> np.ndarray:
    """``[K, N]``."""
    weight = constant_array(node.inputs[1])
    assert weight is not None
    return weight.T if _transposed(node) else weight


def _foldable_norm(value: ir.Value, group: list[ir.Node]) -> str | None:
    """The LayerNormalization behind ``value`` if the group is its only reader."""
    producer = value.producer()
    if producer is None or producer.op_type != "LayerNormalization" or value.is_graph_output():
        return None
    constants = [constant_array(operand) for operand in producer.inputs[1:3] if operand is not None]
    # The scale and the bias are of the channels alone if the last axis alone is normalized.
    if not constants or any(array is None or array.ndim != 1 for array in constants):
        return None
    return str(producer.name) if {user for user, _ in value.uses()} == set(group) else None


def _takes_shift(node: ir.Node) -> bool:
    if node.op_type == "Gemm":
        plain = node.attributes.get_float("alpha", 1.0) == 1.0 and node.attributes.get_float("beta", 1.0) == 1.0
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        array = constant_array(bias)
        return plain and (bias is None or (array is not None and array.shape == (_matrix(node).shape[1],)))
    return _bias_add(node) is not None


def _bias_add(node: ir.Node) -> tuple[ir.Node, int] | None:
    """The Add of a constant behind a MatMul, and where that constant stands."""
    output, width = node.outputs[0], _matrix(node).shape[1]
    uses = list(output.uses())
    if len(uses) != 1 or output.is_graph_output() or uses[0][0].op_type != "Add":
        return None
    add, position = uses[0]
    array = constant_array(add.inputs[1 - position])
    fits = array is not None and array.shape[-1:] == (width,) and array.size == width
    return (add, 1 - position) if fits and add.graph is node.graph else None


def _add_to_bias(model: ir.Model, node: ir.Node, added: np.ndarray) -> None:
    if node.op_type == "Gemm":
        held = constant_array(node.inputs[2] if len(node.inputs) > 2 else None)
        set_constant(model, node, 2, added if held is None else held + added)
        return
    found = _bias_add(node)
    assert found is not None, "the group is not shiftable"
    add, position = found
    held = constant_array(add.inputs[position])
    assert held is not None
    set_constant(model, add, position, held + added.reshape(held.shape))


def _change_norm(model: ir.Model, norm: ir.Node, scale: np.ndarray | None, shift: np.ndarray | None) -> None:
    gamma, beta = (constant_array(value) for value in (*norm.inputs[1:3], None)[:2])
    assert gamma is not None
    divisor = np.ones(len(gamma)) if scale is None else scale
    if scale is not None:
        set_constant(model, norm, 1, gamma / divisor)
    if shift is not None or beta is not None:
        base = np.zeros(len(gamma)) if beta is None else beta.astype(np.float64)
        set_constant(model, norm, 2, (base - (0 if shift is None else shift)) / divisor)


def _change_in_front(
    model: ir.Model, value: ir.Value, readers: list[ir.Node], scale: np.ndarray | None, shift: np.ndarray | None
) -> None:
    names, nodes, current = Names(model), [], value
    steps = [("Sub", "shift", shift), ("Mul", "smoothing", None if scale is None else 1 / scale)]
    for operator, word, constant in steps:
        if constant is None:
            continue
        operand = set_initializer(model, names.fresh(f"{value.name}_{word}"), constant.astype(np.float32))
        node = ir.node(operator, [current, operand], name=f"{value.name}_{word}")
        current = node.outputs[0]
        done = "smoothed" if operator == "Mul" else "shifted"
        current.name, current.shape, current.type = names.fresh(f"{value.name}_{done}"), value.shape, value.type
        nodes.append(node)
    producer = value.producer()
    if producer is not None:
        model.graph.insert_after(producer, nodes)
    else:
        model.graph.insert_before(readers[0], nodes)
    for node in readers:
        node.replace_input_with(0, current)
