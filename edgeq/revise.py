"""Change a complete plan, and keep it consistent: tensors that share a scale, conversions, and scales of biases.

Each function returns a new plan; nothing is changed in place. A bias is stored at ``data scale * weight scale``,
so it follows whenever one of them changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgeq.affine import range_to_qparams
from edgeq.bias import bias_decision, bias_name
from edgeq.graph import constant_array
from edgeq.qtypes import Decision, QParams, QuantPlan
from edgeq.roles import roles_of

__all__ = [
    "BiasHome",
    "bias_home",
    "merge",
    "sharing",
    "weight_of",
    "with_activation",
    "with_bias",
    "with_weight",
]

_OWN_BIAS = ("Conv", "ConvTranspose", "Gemm")


@dataclass(frozen=True)
class BiasHome:
    """Where the bias of a layer is: ``holder`` is the node that adds it, the layer itself or an Add behind it.

    ``array`` is the bias as it is now, float32 ``[channels]``; ``tensor`` the key of it in ``QuantPlan.weights``.
    ``tap`` is the tensor to which it is added, in the float model, and ``axis`` the one of its channels.
    """

    holder: str
    tensor: str
    array: np.ndarray
    shape: tuple[int, ...]
    tap: str
    axis: int


def weight_of(plan: QuantPlan, model: ir.Model, node: str) -> Decision | None:
    """The decision about the quantized weight of ``node``; None where it has none of its own.

    A table that is looked up, and a constant beside an activation, are no weights here.
    """
    found = _node(model, node)
    position = roles_of(found.op_type).weight
    if position is None or len(found.inputs) <= position or found.inputs[position] is None:
        return None
    name = str(found.inputs[position].name)  # type: ignore[union-attr]
    for decision in plan:
        if decision.role == "weight" and decision.tensor == name and node in decision.consumers:
            return decision if decision.qparams is not None else None
    return None


def sharing(plan: QuantPlan, tensor: str) -> frozenset[str]:
    """``tensor`` and all others that must have its scale, as the data only moves between them."""
    owners = {d.tensor: d.shares or d.tensor for d in plan if d.role == "activation"}
    owner = owners.get(tensor, tensor)
    return frozenset(name for name, other in owners.items() if other == owner) | {tensor}


def with_activation(plan: QuantPlan, model: ir.Model, tensor: str, qparams: QParams) -> QuantPlan:
    """``tensor``, and all that share its scale, quantized by ``qparams``; conversions and biases follow.

    Raises:
        ValueError: the tensor is not quantized, shares the scale of a constant, or ``qparams`` is of another type.
    """
    held = {d.tensor: d for d in plan if d.role == "activation" and d.qparams is not None}
    decision = held.get(tensor)
    if decision is None or decision.qparams is None:
        raise ValueError(f"the plan does not quantize {tensor!r}")
    if decision.shares is not None and decision.shares not in held:
        raise ValueError(f"{tensor!r} shares the scale of the constant {decision.shares!r}")
    if decision.qparams.spec != qparams.spec:
        raise ValueError(f"{tensor!r} is quantized as {decision.qparams.spec}, not as {qparams.spec}")
    group = sharing(plan, tensor)
    decisions = []
    for known in plan:
        if known.tensor in group and known.qparams is not None:
            if known.role == "activation":
                known = replace(known, qparams=qparams)
            elif known.role == "operand":
                known = replace(known, qparams=_converted(known.qparams, decision.qparams, qparams))
        decisions.append(known)
    changed = replace(plan, decisions=tuple(decisions))
    readers = [str(n.name) for n in model.graph if n.inputs and n.inputs[0] is not None and n.inputs[0].name in group]
    return _rescale(changed, model, readers)


def _converted(operand: QParams | None, before: QParams, after: QParams) -> QParams:
    """A conversion covers what its tensor does; one of the same type was widened by a hair, and stays so."""
    assert operand is not None
    low, high = after.real_range
    factor = float(operand.scale) / float(before.scale) if operand.spec == before.spec else 1.0
    return range_to_qparams(low * factor, high * factor, operand.spec)


def with_weight(
    plan: QuantPlan, model: ir.Model, node: str, qparams: QParams, array: np.ndarray | None = None
) -> QuantPlan:
    """The weight of ``node`` quantized by ``qparams``, from the float ``array`` if one is given; its bias follows.

    Raises:
        ValueError: the node has no quantized weight, others read the same weight, or ``qparams`` is of another type.
    """
    decision = weight_of(plan, model, node)
    if decision is None or decision.qparams is None:
        raise ValueError(f"the plan quantizes no weight of {node!r}")
    if decision.qparams.spec != qparams.spec:
        raise ValueError(f"the weight of {node!r} is quantized as {decision.qparams.spec}, not as {qparams.spec}")
    if _readers(model, decision.tensor) > 1:
        raise ValueError(f"the weight {decision.tensor!r} of {node!r} has other readers, too")
    decisions = tuple(replace(d, qparams=qparams) if d is decision else d for d in plan)
    weights = dict(plan.weights)
    if array is not None:
        weights[decision.tensor] = array.astype(np.float32)
    return _rescale(replace(plan, decisions=decisions, weights=weights), model, [node])


def bias_home(plan: QuantPlan, model: ir.Model, node: str) -> BiasHome | None:
    """Where a correction of the outputs of a layer can go; None if it has no place, or shares it.

    Conv, ConvTranspose and Gemm take one even if they have none yet; a MatMul where an Add of one number per
    column is its only reader, and the only reader of the numbers.
    """
    layer = _node(model, node)
    if layer.op_type in _OWN_BIAS:
        return _own_home(plan, layer)
    if layer.op_type != "MatMul" or layer.outputs[0].is_graph_output():
        return None
    uses = list(layer.outputs[0].uses())
    if len(uses) != 1 or uses[0][0].op_type != "Add" or uses[0][0].graph is not layer.graph:
        return None
    add, position = uses[0]
    value = add.inputs[1 - position]
    array, weight = constant_array(value), constant_array(layer.inputs[1])
    if value is None or array is None or weight is None or weight.ndim != 2 or len(value.uses()) != 1:
        return None
    # An initializer alone can be changed, and it must be one number per column, or one for all.
    if str(value.name) not in model.graph.initializers or array.size != weight.shape[1] != 1:
        return None
    if array.shape[-1] != weight.shape[1]:
        return None
    held = plan.weights.get(str(value.name), array)
    return BiasHome(
        str(add.name), str(value.name), held.ravel().astype(np.float32), array.shape, str(add.outputs[0].name), -1
    )


def _own_home(plan: QuantPlan, layer: ir.Node) -> BiasHome | None:
    weight = constant_array(layer.inputs[1])
    bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    array = constant_array(bias)
    if weight is None or (bias is not None and array is None):
        return None
    plain = layer.attributes.get_float("alpha", 1.0) == 1.0 and layer.attributes.get_float("beta", 1.0) == 1.0
    if layer.op_type == "Gemm" and not plain:
        return None
    if layer.op_type == "Conv":
        channels = weight.shape[0]
    elif layer.op_type == "ConvTranspose":
        channels = weight.shape[1] * layer.attributes.get_int("group", 1)
    else:
        channels = weight.shape[0 if layer.attributes.get_int("transB", 0) else 1]
    name = bias_name(layer, bias)
    held = plan.weights.get(name, np.zeros(channels, np.float32) if array is None else array)
    if held.shape != (channels,):
        return None
    return BiasHome(str(layer.name), name, held.astype(np.float32), (channels,), str(layer.outputs[0].name), 1)


def with_bias(plan: QuantPlan, model: ir.Model, node: str, array: np.ndarray, *, mode: str) -> QuantPlan:
    """The bias of the layer ``node`` replaced by ``array``, float32 ``[channels]``, stored as it was.

    ``mode`` is the target's (``target.bias.mode``), for layers that had none.

    Raises:
        ValueError: there is no place for it (`bias_home`), or not this many channels.
    """
    home = bias_home(plan, model, node)
    if home is None or home.array.shape != array.shape:
        raise ValueError(f"{node!r} takes no bias of the shape {list(array.shape)}")
    plan = replace(plan, weights={**plan.weights, home.tensor: array.astype(np.float32).reshape(home.shape)})
    if home.holder == node:
        return _rescale(plan, model, [node], mode=mode)
    decisions, found = [], False
    for decision in plan:
        if decision.tensor == home.tensor and home.holder in decision.consumers:
            found = True
            if decision.qparams is not None:
                low, high = float(array.min(initial=0.0)), float(array.max(initial=0.0))
                decision = replace(decision, qparams=range_to_qparams(low, high, decision.qparams.spec))
        decisions.append(decision)
    if not found:
        why = "it is added in float"
        decisions.append(Decision(home.tensor, "bias", (home.holder,), "corrected bias", skip_reason=why))
    return replace(plan, decisions=tuple(decisions))


def _rescale(plan: QuantPlan, model: ir.Model, nodes: Iterable[str], *, mode: str | None = None) -> QuantPlan:
    """The biases of ``nodes`` stored at the scales that their data and weights have now.

    Where one would overflow, the scale of its weight is raised (see ``bias_decision``).
    """
    wanted = set(nodes)
    biases = {n: d for d in plan if d.role == "bias" for n in d.consumers if n in wanted}
    replaced: dict[int, Decision] = {}
    added: dict[int, Decision] = {}
    for node in model.graph:
        name = str(node.name)
        if name not in wanted or node.op_type not in _OWN_BIAS:
            continue
        known = biases.get(name)
        weight, data = weight_of(plan, model, name), _read(plan, node)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        array = plan.weights.get(bias_name(node, bias), constant_array(bias))
        if weight is None or weight.qparams is None or array is None:
            continue
        if known is None and mode is None:
            continue
        kept = known is not None and known.qparams is None
        if data is None or kept:
            if known is None:
                why = "activations stay float"
                floating = Decision(bias_name(node, bias), "bias", (name,), "float bias", skip_reason=why)
                added[id(weight)] = floating
            continue
        qparams, decision = bias_decision(node, bias, array, data, weight.qparams, mode or "int32")
        assert decision is not None
        if known is None:
            added[id(weight)] = decision
        elif decision.qparams is not None:
            replaced[id(known)] = replace(known, qparams=decision.qparams)
        if qparams is not weight.qparams:
            replaced[id(weight)] = replace(weight, qparams=qparams)
    decisions = []
    for decision in plan:
        decisions.append(replaced.get(id(decision), decision))
        if id(decision) in added:
            decisions.append(added[id(decision)])
    return replace(plan, decisions=tuple(decisions))


def _read(plan: QuantPlan, node: ir.Node) -> QParams | None:
    """The integers that ``node`` reads its data in."""
    value = node.inputs[0]
    found = None
    for decision in plan:
        if value is not None and decision.tensor == value.name and str(node.name) in decision.consumers:
            if decision.role == "operand":
                return decision.qparams
            if decision.role == "activation":
                found = decision.qparams
    return found


def merge(plan: QuantPlan, model: ir.Model, part: QuantPlan) -> QuantPlan:
    """``plan`` with the numbers of ``part``, a changed plan for a part of the model (see ``restrict_plan``).

    Raises:
        ValueError: ``part`` quantizes a tensor that ``plan`` does not, or as another type.
    """
    known = {(d.tensor, d.role): d for d in plan if d.role in ("activation", "operand")}
    for decision in part:
        if decision.qparams is None:
            continue
        if decision.role == "activation":
            held = known.get((decision.tensor, "activation"))
            if held is None or not _same(held.qparams, decision.qparams):
                plan = with_activation(plan, model, decision.tensor, decision.qparams)
        elif decision.role == "weight":
            array = part.weights.get(decision.tensor)
            for node in decision.consumers:
                plan = _merge_weight(plan, model, node, decision, array)
    biases = {d.tensor: d for d in part if d.role == "bias"}
    weights = dict(plan.weights)
    weights.update({name: array for name, array in part.weights.items() if name in biases})
    known_biases = {d.tensor for d in plan if d.role == "bias"}
    new = tuple(d for name, d in biases.items() if name not in known_biases)
    plan = replace(plan, weights=weights, decisions=(*plan.decisions, *new))
    return _rescale(plan, model, [node for d in biases.values() for node in d.consumers], mode="int32")


def _merge_weight(
    plan: QuantPlan, model: ir.Model, node: str, decision: Decision, array: np.ndarray | None
) -> QuantPlan:
    assert decision.qparams is not None
    weight = weight_of(plan, model, node)
    changed = array is not None and array is not plan.weights.get(decision.tensor)
    if weight is not None and weight.tensor == decision.tensor:
        alike = not changed and _same(weight.qparams, decision.qparams)
        return plan if alike else with_weight(plan, model, node, decision.qparams, array)
    # A constant beside an activation, such as the bias in an Add.
    decisions = tuple(
        replace(d, qparams=decision.qparams) if d.tensor == decision.tensor and node in d.consumers else d for d in plan
    )
    weights = plan.weights if array is None else {**plan.weights, decision.tensor: array}
    return replace(plan, decisions=decisions, weights=weights)


def _same(one: QParams | None, other: QParams) -> bool:
    if one is None or one.spec != other.spec:
        return False
    return np.array_equal(one.scale, other.scale) and np.array_equal(one.zero_point, other.zero_point)


def _node(model: ir.Model, name: str) -> ir.Node:
    for node in model.graph:
        if node.name == name:
            return node
    raise ValueError(f"the model has no node {name!r}")


def _readers(model: ir.Model, tensor: str) -> int:
    value = model.graph.initializers.get(tensor)
    return 1 if value is None else len(value.uses()) + value.is_graph_output()
