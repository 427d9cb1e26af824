"""Rewrites of the float graph that change no result, only whether integer kernels fuse."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.graph import Names, constant_array, set_initializer
from edgeq.qtypes import Scheme
from edgeq.stages.tune.opset import lower_opset
from edgeq.stages.tune.pad_channels import pad_channels
from edgeq.stages.tune.through_sigmoid import write_through_sigmoid
from edgeq.target import TargetProfile

__all__ = ["FINITE_MASK", "shape_float"]

FINITE_MASK = -50.0
"""What a mask of -3.4e38 becomes: ``exp(-50) = 2e-22`` hides a token as well, and integers can hold it."""

_MASK_THRESHOLD = -1e30

_MASKING = frozenset({"Add", "Expand", "Mul", "Where"})
"""Where such a number masks. In Clip, Max or Pad it means "no bound", and must stay what it is."""

_CARRYING = _MASKING | {"Concat", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
"""What may lie between a mask and its Softmax. Anything else, such as ReduceMax, sees the number itself."""


_BROADCASTING = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min", "Pow"})


def shape_float(model: ir.Model, target: TargetProfile, scheme: Scheme) -> ir.Model:
    """A copy of ``model`` in the forms that ``target.graph`` asks for; arrays are shared."""
    model = model.clone()
    names = Names(model)
    if scheme.block is not None:
        for node in [n for n in model.graph if n.op_type == "Gemm"]:
            _gemm_to_matmul(model, node, names)
    if target.graph.linear == "guarded-add":
        for node in [n for n in model.graph if n.op_type == "MatMul"]:
            _guard_bias(model, node, names, to_gemm=not scheme.weight_only)
    if target.graph.masks == "finite":
        _make_masks_finite(model)
    if target.graph.scalars == "vectors":
        _widen_scalars(model, names)
    if target.graph.pad_channels:
        pad_channels(model, names)
    write_through_sigmoid(model, target, scheme, names)
    return lower_opset(model, target, scheme)


def _widen_scalars(model: ir.Model, names: Names) -> None:
    """A constant operand of shape ``[]`` -> ``[1]``, beside one that has dimensions: the result keeps its shape."""
    for node in model.graph:
        if node.op_type not in _BROADCASTING or not any(v is not None and v.shape for v in node.inputs):
            continue
        for position, value in enumerate(node.inputs):
            array = constant_array(value)
            if value is not None and array is not None and array.ndim == 0:
                widened = set_initializer(model, names.fresh(f"{value.name}_vector"), array.reshape(1))
                node.replace_input_with(position, widened)


def _gemm_to_matmul(model: ir.Model, node: ir.Node, names: Names) -> None:
    """Gemm -> MatMul + Add: only MatMul takes weights in blocks (measured, ONNX Runtime 1.32)."""
    weight, bias = constant_array(node.inputs[1]), node.inputs[2] if len(node.inputs) > 2 else None
    plain = (
        node.attributes.get_float("alpha", 1.0) == 1.0
        and (bias is None or node.attributes.get_float("beta", 1.0) == 1.0)
        and not node.attributes.get_int("transA", 0)
    )
    if weight is None or not plain or node.inputs[1] is None or node.inputs[0] is None:
        return
    matrix: ir.Value = node.inputs[1]
    if node.attributes.get_int("transB", 0):
        matrix = set_initializer(model, names.fresh(f"{matrix.name}_transposed"), np.ascontiguousarray(weight.T))
    product = ir.node("MatMul", [node.inputs[0], matrix], name=node.name)
    replacement = [product]
    result = product.outputs[0]
    if bias is not None:
        result.name = names.fresh(f"{node.name}_product")
        result.shape, result.type = node.outputs[0].shape, node.outputs[0].type
        add = ir.node("Add", [result, bias], name=f"{node.name}_bias")
        replacement.append(add)
        result = add.outputs[0]
    _replace(model, [node], replacement, node.outputs[0], result)


def _guard_bias(model: ir.Model, node: ir.Node, names: Names, *, to_gemm: bool) -> None:
    """Keep ONNX Runtime's MatMulAddFusion from making a float Gemm of MatMul + bias.

    Rank 2: write the Gemm ourselves, which QGemm takes with its bias; or, where only weights are
    integers, subtract the negated bias (or write Sum for what is no constant), as the fusion knows Add
    only. Higher ranks: give the bias the
    rank of the output, ``[N]`` -> ``[1, 1, N]``; the fusion then leaves both nodes alone.
    """
    weight, output = constant_array(node.inputs[1]), node.outputs[0]
    uses = list(output.uses())
    if weight is None or weight.ndim != 2 or len(uses) != 1 or output.is_graph_output() or output.shape is None:
        return
    add = uses[0][0]
    bias = next((value for value in add.inputs if value is not output), None)
    array = constant_array(bias)
    if add.op_type == "Add" and add.graph is node.graph and array is None and len(output.shape) == 2 and not to_gemm:
        total = ir.node("Sum", list(add.inputs), name=add.name)
        _replace(model, [add], [total], add.outputs[0], total.outputs[0])
        return
    if (
        add.op_type != "Add"
        or add.graph is not node.graph
        or array is None
        or bias is None
        or array.size != weight.shape[1]
    ):
        return
    rank = len(output.shape)
    if array.ndim < 1 or array.shape[-1] != array.size or array.ndim > rank:
        return
    if rank == 2 and to_gemm:
        flat = set_initializer(model, names.fresh(f"{bias.name}_row"), array.reshape(-1))
        gemm = ir.node("Gemm", [node.inputs[0], node.inputs[1], flat], name=node.name)
        _replace(model, [node, add], [gemm], add.outputs[0], gemm.outputs[0])
    elif rank == 2:
        negated = set_initializer(model, names.fresh(f"{bias.name}_negated"), -array)
        subtract = ir.node("Sub", [output, negated], name=add.name)
        _replace(model, [add], [subtract], add.outputs[0], subtract.outputs[0])
    elif rank > array.ndim:
        shape = (1,) * (rank - 1) + (array.size,)
        guarded = set_initializer(model, names.fresh(f"{bias.name}_guarded"), array.reshape(shape))
        add.replace_input_with(list(add.inputs).index(bias), guarded)


def _make_masks_finite(model: ir.Model) -> None:
    for value in list(model.graph.initializers.values()):
        array = value.const_value.numpy() if value.const_value is not None else None
        if array is None or array.dtype != np.float32 or array.size > 1 << 24 or not (array <= _MASK_THRESHOLD).any():
            continue
        if not all(node.op_type in _MASKING for node, _ in value.uses()) or not _reaches_softmax_only(value):
            continue
        set_initializer(model, str(value.name), np.where(array <= _MASK_THRESHOLD, np.float32(FINITE_MASK), array))


def _reaches_softmax_only(value: ir.Value) -> bool:
    """Whether all that becomes of ``value`` ends in a Softmax, where ``FINITE_MASK`` hides as much."""
    waiting, seen = [value], {value}
    while waiting:
        current = waiting.pop()
        if current.is_graph_output():
            return False
        for node, _ in current.uses():
            if node.op_type == "Softmax":
                continue
            if node.op_type not in _CARRYING:
                return False
            waiting.extend(output for output in node.outputs if output not in seen)
            seen.update(node.outputs)
    return True


def _replace(
    model: ir.Model, old: list[ir.Node], new: list[ir.Node], old_output: ir.Value, new_output: ir.Value
) -> None:
    name = old_output.name
    new_output.shape, new_output.type = old_output.shape, old_output.type
    ir.convenience.replace_nodes_and_values(model.graph, old[0], old, new, [old_output], [new_output])
    new_output.name = name
