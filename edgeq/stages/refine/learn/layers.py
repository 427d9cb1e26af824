"""A part layer by layer, for AdaRound as its authors describe it: each layer with the activation function behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from edgeq.blocks import extract, restrict_plan
from edgeq.graph import constant_array
from edgeq.qtypes import QuantPlan
from edgeq.revise import merge, weight_of
from edgeq.stages.refine.learn.data import Arrays, Data
from edgeq.stages.refine.learn.part import Part
from edgeq.stages.refine.learn.settings import Settings
from edgeq.torch_graph import TorchGraph

__all__ = ["Layer", "by_layer"]

_ACTIVATIONS = frozenset(
    {"Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Softplus", "Tanh"}
)


@dataclass(frozen=True)
class Layer:
    """One layer of a part, its one input that is no constant, and its output behind an activation function."""

    part: ir.Model
    source: str
    output: str

    def data(
        self,
        whole: ir.Model,
        plan: QuantPlan,
        float_inputs: Arrays,
        quantized_inputs: Arrays,
        device: torch.device,
        masks: Sequence[np.ndarray | None] | None = None,
    ) -> Data:
        """What the layer reads in the float part and, as ``plan`` has it, in the quantized one; what it should give."""
        quiet = Settings(0, rounding=False, activation_scales=False, weight_scales=False, biases=False)
        quantized, exact = Part(whole, plan, quiet, device=device), TorchGraph(whole).to(device)
        weights, count = quantized.weights(hard=True), len(next(iter(float_inputs.values())))
        found: dict[str, list[np.ndarray]] = {"float": [], "quantized": [], "output": []}
        with torch.no_grad():
            for row in range(count):
                feeds = _feeds(float_inputs, row, device)
                held = exact.run(feeds, [self.source, self.output])
                feeds = _feeds(quantized_inputs, row, device)
                read = quantized.graph.run(feeds, [self.source], hook=quantized.grids, weights=weights)
                found["float"].append(held[self.source].cpu().numpy())
                found["quantized"].append(read[self.source].cpu().numpy())
                found["output"].append(held[self.output].cpu().numpy())
        inputs = ({self.source: found["float"]}, {self.source: found["quantized"]})
        return Data(*inputs, {self.output: found["output"]}, None, device, masks)

    @staticmethod
    def merged(whole: ir.Model, plan: QuantPlan, learned: QuantPlan) -> QuantPlan:
        """The plan of the part with what the layer has learned."""
        return merge(plan, whole, learned)


def _feeds(inputs: Arrays, row: int, device: torch.device) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(arrays[row])).to(device) for name, arrays in inputs.items()}


def by_layer(part: ir.Model, plan: QuantPlan) -> Iterator[Layer]:
    """The layers of ``part`` whose weights are quantized, in graph order, if they read one activation."""
    plan = restrict_plan(plan, part)
    for node in part.graph:
        if weight_of(plan, part, str(node.name)) is None or constant_array(node.inputs[0]) is not None:
            continue
        end = node.outputs[0]
        while len(end.uses()) == 1 and not end.is_graph_output():
            reader = next(iter(end.uses()))[0]
            if reader.op_type not in _ACTIVATIONS:
                break
            end = reader.outputs[0]
        source = str(node.inputs[0].name)  # type: ignore[union-attr]
        yield Layer(extract(part, [source], [str(end.name)]), source, str(end.name))
