"""Constant nodes become initializers, and initializers stop being optional inputs."""

from __future__ import annotations

import onnx_ir as ir

from edgeq.stages.prep.rewrite import PrepPass, bypass, is_node, register_initializer

__all__ = ["LiftConstants"]


class LiftConstants(PrepPass):
    """After this pass a constant has one form.

    Models of IR version 3 list every initializer as an input too, which would let a caller
    replace it; those inputs are dropped. Sparse and string constants stay as they are.
    """

    name = "lift constants"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = _drop_initializer_inputs(model)
        for node in model.graph:
            if is_node(node, "Constant"):
                modified |= _lift(model, node)
        return ir.passes.PassResult(model, modified)


def _drop_initializer_inputs(model: ir.Model) -> bool:
    inputs = model.graph.inputs
    kept = [value for value in inputs if value.name not in model.graph.initializers]
    if len(kept) == len(inputs):
        return False
    inputs.clear()
    inputs.extend(kept)
    model.ir_version = max(model.ir_version or 0, 4)
    return True


def _lift(model: ir.Model, node: ir.Node) -> bool:
    output = node.outputs[0]
    if output.is_graph_output() or not {"value", "value_int", "value_ints", "value_float", "value_floats"} & set(
        node.attributes
    ):
        return False
    tensor = ir.convenience.get_const_tensor(output)
    if tensor is None or tensor.dtype == ir.DataType.STRING:
        return False
    name, output.name = str(output.name), None
    return bypass(node, register_initializer(model.graph, name, tensor))
