"""A part of the model with a place for every quantizer of the plan: readers are told apart, and so are weights."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgeq.errors import ModelError
from edgeq.graph import Names, constant_array, outer_nodes, set_initializer
from edgeq.qtypes import Decision, QuantPlan

__all__ = ["Tapped", "tap"]


@dataclass
class Tapped:
    """The part with an Identity in front of those who read a tensor quantized, so that the others read it float.

    ``reads`` maps the output of each such Identity to its decision; ``weights`` the initializers that are quantized
    to theirs, one initializer for each decision, so that two grids of one weight do not meet; ``biases`` likewise.
    ``arrays`` holds what these initializers are: float, or as the plan has changed them (corrected biases, weights
    on the grid); ``originals`` the float weights. ``outputs`` maps the part's outputs to the tensors that stand
    for them.
    """

    model: ir.Model
    reads: dict[str, Decision] = field(default_factory=dict)
    weights: dict[str, Decision] = field(default_factory=dict)
    biases: dict[str, Decision] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    originals: dict[str, np.ndarray] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)


def tap(part: ir.Model, plan: QuantPlan) -> Tapped:
    """Open ``part`` at every decision of ``plan``; ``part`` is left as it was, and computes the same.

    Raises:
        ModelError: the plan names a tensor or node that the part does not have.
    """
    tapper = _Tapper(part.clone(), plan)
    for decision in plan.decisions:
        tapper.open(decision)
    return tapper.tapped


class _Tapper:
    def __init__(self, model: ir.Model, plan: QuantPlan) -> None:
        self.plan = plan
        self.names = Names(model)
        self.nodes = {str(node.name): node for node in model.graph}
        self.outer = outer_nodes(model)
        self.values: dict[str, ir.Value] = {str(value.name): value for value in model.graph.inputs}
        self.values.update(model.graph.initializers)
        self.values.update({str(output.name): output for node in model.graph for output in node.outputs})
        self.read: dict[str, ir.Value] = {}
        outputs = [str(value.name) for value in model.graph.outputs]
        self.tapped = Tapped(model, outputs=dict(zip(outputs, outputs, strict=True)))

    def open(self, decision: Decision) -> None:
        if decision.role == "bias":
            self._bias(decision)
        elif decision.qparams is None:
            return
        elif decision.role == "weight":
            self._weight(decision)
        else:
            self._activation(decision)

    def _found(self, decision: Decision) -> ir.Value:
        if decision.tensor not in self.values:
            raise ModelError(f"the plan names the tensor {decision.tensor!r}, which the model does not have")
        return self.values[decision.tensor]

    def _consumers(self, decision: Decision) -> list[ir.Node]:
        unknown = [name for name in decision.consumers if name not in self.nodes]
        if unknown:
            raise ModelError(f"the plan names the node {unknown[0]!r}, which the model does not have")
        return [self.nodes[name] for name in decision.consumers]

    def _activation(self, decision: Decision) -> None:
        """Also an operand: what it converts is read from the Identity of the tensor's own decision."""
        value = self._found(decision)
        source = self.read.get(decision.tensor, value) if decision.role == "operand" else value
        node = ir.node("Identity", [source], name=self.names.fresh(f"{decision.tensor}_read"))
        opened, producer, graph = node.outputs[0], source.producer(), self.tapped.model.graph
        opened.name = self.names.fresh(f"{decision.tensor}_read")
        opened.shape, opened.type = value.shape, value.type
        for consumer in self._consumers(decision):
            for reader, position in list(source.uses()):
                if self.outer.get(reader, reader) is consumer:
                    reader.replace_input_with(position, opened)
        if producer is not None:
            graph.insert_after(producer, [node])
        else:
            graph.insert_before(graph[0], [node])
        self.tapped.reads[opened.name] = decision
        if decision.role == "activation":
            self.read[decision.tensor] = opened
            # What leaves an integer kernel is quantized for whoever reads it; what float code computes is not.
            if decision.tensor in self.tapped.outputs and decision.tensor in self.plan.produced:
                self.tapped.outputs[decision.tensor] = opened.name

    def _weight(self, decision: Decision) -> None:
        value = self._found(decision)
        original = constant_array(value)
        if original is None:
            raise ModelError(f"the plan calls {decision.tensor!r} a weight, but it is no constant")
        own = self._own(decision.tensor, self.plan.weights.get(decision.tensor, original))
        self.tapped.originals[str(own.name)] = original
        for node in self._consumers(decision):
            for position, operand in enumerate(node.inputs):
                if operand is value:
                    node.replace_input_with(position, own)
        self.tapped.weights[str(own.name)] = decision

    def _bias(self, decision: Decision) -> None:
        """Of a layer, or of the Add behind one, whose constant it is."""
        node = self._consumers(decision)[0]
        position = 2
        if node.op_type == "Add":
            constant = [i for i, value in enumerate(node.inputs) if constant_array(value) is not None]
            position = constant[0] if constant else 1
        array = self.plan.weights.get(decision.tensor)
        if array is None:
            array = constant_array(node.inputs[position] if len(node.inputs) > position else None)
        if array is None:  # computed at run time
            return
        own = self._own(decision.tensor, array)
        if len(node.inputs) <= position:
            node.resize_inputs(position + 1)
        node.replace_input_with(position, own)
        self.tapped.biases[str(own.name)] = decision

    def _own(self, tensor: str, array: np.ndarray) -> ir.Value:
        own = set_initializer(
            self.tapped.model, self.names.fresh(f"{tensor}_own"), array.astype(np.float32, copy=False)
        )
        self.tapped.arrays[str(own.name)] = array
        return own
