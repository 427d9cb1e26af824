"""Write Tanh with Sigmoid where a provider's kernel for Tanh is wrong."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.graph import Names, set_initializer
from edgeq.qtypes import Scheme
from edgeq.target import TargetProfile

__all__ = ["write_through_sigmoid"]


def write_through_sigmoid(model: ir.Model, target: TargetProfile, scheme: Scheme, names: Names) -> None:
    """``tanh(x) = 2 sigmoid(2 x) - 1``, in place, at the widths that ``capability.through_sigmoid`` names.

    The last node has the name and the output of the Tanh that it replaces.
    """
    if not any(scheme.activation_bits in c.through_sigmoid for c in target.capabilities("Tanh")):
        return
    for node in [n for n in model.graph if n.op_type == "Tanh" and n.domain in ("", "ai.onnx")]:
        _rewrite(model, node, names)


def _rewrite(model: ir.Model, node: ir.Node, names: Names) -> None:
    two = set_initializer(model, names.fresh(f"{node.name}_two"), np.array(2, np.float32))
    one = set_initializer(model, names.fresh(f"{node.name}_one"), np.array(1, np.float32))
    doubled = ir.node("Mul", [node.inputs[0], two], name=f"{node.name}_doubled")
    sigmoid = ir.node("Sigmoid", [doubled.outputs[0]], name=f"{node.name}_sigmoid")
    stretched = ir.node("Mul", [sigmoid.outputs[0], two], name=f"{node.name}_stretched")
    shifted = ir.node("Sub", [stretched.outputs[0], one], name=node.name)
    old, new = node.outputs[0], shifted.outputs[0]
    for made in (doubled, sigmoid, stretched):
        made.outputs[0].name = names.fresh(f"{made.name}_output")
        made.outputs[0].shape, made.outputs[0].type = old.shape, old.type
    new.shape, new.type = old.shape, old.type
    name = old.name
    ir.convenience.replace_nodes_and_values(
        model.graph, node, [node], [doubled, sigmoid, stretched, shifted], [old], [new]
    )
    new.name = name
