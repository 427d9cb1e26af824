"""What each place adds to the error of the outputs, from gradients: one pass for all places instead of one for each.

The change of a place is computed by itself, from the float activations in front of it; the gradient of the outputs
says how much of it arrives there (``edgeq.torch_graph.taylor_scores``). It needs torch, and a graph that torch can
run; ``edgeq.stages.mix.measure`` needs neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from edgeq.affine import fake_quantize
from edgeq.errors import ModelError
from edgeq.graph import constant_array
from edgeq.padding import mask_of, token_weights
from edgeq.qtypes import QParams, QuantPlan
from edgeq.stages.mix.sensitivity import Effect, Source
from edgeq.torch_graph import Perturbation, TorchGraph, taylor_scores

__all__ = ["score"]

_DRAWS = 4
"""Labels drawn for each sample: with 16 samples the score is known to about 1 dB."""


def score(
    model: ir.Model,
    plan: QuantPlan,
    sources: Sequence[Source],
    samples: Sequence[Mapping[str, np.ndarray]],
    *,
    draws: int = _DRAWS,
) -> list[Effect]:
    """The effect of each source on the outputs, in their order, to second order of its change.

    Args:
        model: The float graph that ``plan`` is about.
        plan: Where the changed weights of the sources are.
        sources: Weights of groups and quantized tensors; no other kinds.
        samples: Batches of inputs; what is computed for padding does not count.
        draws: Backward passes for each sample.

    Raises:
        ModelError: a node cannot run in torch, or a place has no gradient.
    """
    graph = TorchGraph(model)
    changes = {str(number): _perturbation(model, plan, source) for number, source in enumerate(sources)}
    feeds = [{name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in s.items()} for s in samples]
    signals, classes = _signals(graph, samples, feeds)
    noise = np.zeros(len(sources))
    for name, power in signals.items():
        scores = taylor_scores(graph, feeds, changes, outputs=[name], draws=draws)
        noise += np.array([scores[str(number)] for number in range(len(sources))]) / power / len(signals)
    divergence: dict[str, float] = {}
    if classes is not None:
        divergence = taylor_scores(graph, feeds, changes, outputs=[classes], likelihood="categorical", draws=draws)
    return [
        # The categorical score is twice the divergence.
        Effect(float(noise[n]), divergence[str(n)] / 2 if divergence else None)
        for n in range(len(sources))
    ]


def _signals(
    graph: TorchGraph, samples: Sequence[Mapping[str, np.ndarray]], feeds: Sequence[Mapping[str, Tensor]]
) -> tuple[dict[str, float], str | None]:
    """The mean power of each float output, and the name of the logits of a classifier."""
    sums: dict[str, float] = {}
    classes = None
    count = 0
    with torch.no_grad():
        for sample, feed in zip(samples, feeds, strict=True):
            count += next((tensor.shape[0] for tensor in feed.values() if tensor.ndim), 1)
            for name, tensor in graph.run(feed, graph.outputs).items():
                if not tensor.is_floating_point():
                    continue
                array = tensor.numpy().astype(np.float64)
                weights = token_weights(array, mask_of(sample))
                sums[name] = sums.get(name, 0.0) + float(np.square(array if weights is None else array * weights).sum())
                classes = name if array.ndim == 2 and array.shape[1] > 2 else classes
    return {name: total / count for name, total in sums.items() if total > 0}, classes


def _perturbation(model: ir.Model, plan: QuantPlan, source: Source) -> Perturbation:
    nodes = {str(node.name): node for node in model.graph}
    return _of_tensors(nodes, source) if source.kind == "activations" else _of_weights(model, nodes, plan, source)


def _of_tensors(nodes: Mapping[str, ir.Node], source: Source) -> Perturbation:
    """Each tensor rounded where it is computed; those that only move another one of the place are rounded with it."""
    held = {d.tensor: d.qparams for d in source.decisions if d.qparams is not None}
    makers = {str(value.name): node for node in nodes.values() for value in node.outputs}
    first = tuple(
        name
        for name in held
        if name not in makers or not any(value is not None and value.name in held for value in makers[name].inputs)
    )
    return Perturbation(first, first, {name: _rounding(held[name]) for name in first})


def _rounding(qparams: QParams) -> Callable[[Tensor], Tensor]:
    def rounded(tensor: Tensor) -> Tensor:
        return torch.from_numpy(fake_quantize(tensor.detach().numpy(), qparams))

    return rounded


def _of_weights(model: ir.Model, nodes: Mapping[str, ir.Node], plan: QuantPlan, source: Source) -> Perturbation:
    """The layers with their weights as they are stored, and their biases as they were corrected."""
    weights: dict[str, Tensor] = {}
    shifts: dict[str, Callable[[Tensor], Tensor]] = {}
    layers: dict[str, ir.Node] = {}
    for decision in source.decisions:
        layers.update({name: nodes[name] for name in decision.consumers})
        value = model.graph.initializers.get(decision.tensor)
        stored, changed = constant_array(value), plan.weights.get(decision.tensor)
        if decision.role == "bias" and changed is not None:
            if stored is not None:
                weights[decision.tensor] = torch.from_numpy(np.ascontiguousarray(changed))
            for name in decision.consumers if stored is None else ():
                shifts[str(nodes[name].outputs[0].name)] = _shift(nodes[name], changed)
        elif decision.role != "bias" and decision.qparams is not None:
            array = changed if changed is not None else stored
            if array is None:
                raise ModelError(f"{decision.tensor!r} is no constant of the graph")
            weights[decision.tensor] = torch.from_numpy(fake_quantize(array, decision.qparams))
    read = [v for node in layers.values() for v in node.inputs if v is not None and constant_array(v) is None]
    inputs = tuple(dict.fromkeys(str(value.name) for value in read))
    outputs = tuple(str(node.outputs[0].name) for node in layers.values())
    return Perturbation(inputs, outputs, shifts, weights)


def _shift(node: ir.Node, bias: np.ndarray) -> Callable[[Tensor], Tensor]:
    """Adds what a layer's own bias has become: it had none, or shares it with others."""
    before = constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
    change = torch.from_numpy(np.ascontiguousarray(bias if before is None else bias - before))

    def shifted(tensor: Tensor) -> Tensor:
        spatial = tensor.ndim - 2 if node.op_type in ("Conv", "ConvTranspose") else 0
        return tensor + change.reshape(-1, *[1] * spatial)

    return shifted
