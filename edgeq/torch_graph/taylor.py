"""What a change of an inner tensor does to the outputs, from gradients: Taylor scores.

A model's Fisher information at a tensor is E[g gᵀ], g the gradient of the log-likelihood of labels drawn from the
model's own prediction (not of the true labels, which nobody needs here). To second order it is the divergence
between the outputs before and after a small change d of the tensor: KL = ½ dᵀ E[g gᵀ] d (Kunstner et al. 2019,
arXiv 1905.12558, section 2). The gradient of the KL itself would not do: it is zero at the float point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from edgeq.errors import ModelError
from edgeq.padding import mask_of, token_weights
from edgeq.torch_graph.graph import TorchGraph

__all__ = ["Likelihood", "Perturbation", "taylor_scores"]

Likelihood = Literal["gaussian", "categorical"]
"""What the outputs stand for.

``gaussian``: means of normal distributions of variance 1, so that the information is JᵀJ and the divergence half
the squared error of the outputs: for embeddings, regressions, and whatever is judged by SQNR. A drawn label is the
output plus noise. ``categorical``: logits, the last axis the classes (axis 1 for images of logits, rank 4)."""


@dataclass(frozen=True)
class Perturbation:
    """A change of some nodes: fake-quantized tensors between ``inputs`` and ``outputs``, and other weights.

    Args:
        inputs: Computed (or fed) tensors that the nodes read; their float values go in.
        outputs: Tensors that the nodes compute, at which the change is measured.
        quantizers: What to do with tensors between them, by name: inputs and outputs included.
        weights: Constants that replace the model's, by name.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    quantizers: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)

    def run(self, graph: TorchGraph, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs as they become, given the float values of the inputs."""

        def hook(name: str, tensor: Tensor) -> Tensor:
            quantizer = self.quantizers.get(name)
            return tensor if quantizer is None else quantizer(tensor)

        return graph.run({name: known[name] for name in self.inputs}, self.outputs, hook=hook, weights=self.weights)


def taylor_scores(
    graph: TorchGraph,
    feeds: Iterable[Mapping[str, Tensor]],
    perturbations: Mapping[str, Perturbation],
    *,
    likelihood: Likelihood = "gaussian",
    outputs: Sequence[str] | None = None,
    seed: int = 0,
    draws: int = 1,
) -> dict[str, float]:
    """How much each perturbation changes the outputs, the mean over samples: one backward pass a draw for all.

    With g the gradient at the perturbed tensors and d their change, the score of a sample is ``(sum g d)²``:
    unbiased for dᵀ E[g gᵀ] d, which for ``gaussian`` is the squared error that reaches the outputs, and for
    ``categorical`` twice the KL divergence, both to second order. Errors of equal direction add up in it. The
    diagonal alone, ``sum (g d)²``, as ModelOpt's auto_quantize scores, has less noise, but an error that is the same
    everywhere (a shifted mean) counts as little as a random one.
    Over the 50 layers of EfficientNet-Lite0 with weights of 4 bits, one draw for each of 32 pictures: rank correlation
    with the measured squared error of the logits 0.98, ratio 0.97; the diagonal alone had 0.96 and 0.19.

    Args:
        graph: The float model.
        feeds: One or more samples each, along the first axis of every tensor.
        perturbations: By any names, such as ``"group/format"``; the names of the result.
        likelihood: See ``Likelihood``.
        outputs: The outputs that matter; all float ones if None.
        seed: Labels are drawn by it, on the CPU: the same on every device.
        draws: Labels drawn for each sample, each costs a backward pass.

    Raises:
        ModelError: a tensor does not exist, is not float, or its first axis does not hold the samples; or a
            perturbation cannot be run from its inputs.
    """
    places = tuple(dict.fromkeys(name for change in perturbations.values() for name in change.outputs))
    read = tuple(dict.fromkeys(name for change in perturbations.values() for name in change.inputs))
    scores = dict.fromkeys(perturbations, 0.0)
    count = 0
    for feed, gradients, known in _gradients(graph, feeds, places, likelihood, outputs, seed, draws, keep=read):
        samples = _samples(feed)
        count += samples
        with torch.no_grad():
            for key, change in perturbations.items():
                changed = change.run(graph, known)
                # All in float64 and one number per sample and draw: the sum must not lose small parts.
                parts = [
                    _by_sample(name, gradients[name] * (changed[name] - known[name]), samples).flatten(2).double()
                    for name in change.outputs
                ]
                score = torch.stack([part.sum(2) for part in parts]).sum(0).square()
                scores[key] += float(score.mean(0).sum())
    if not count:
        raise ModelError("no sample to take gradients on", remedy="feed at least one")
    return {key: score / count for key, score in scores.items()}


def _gradients(
    graph: TorchGraph,
    feeds: Iterable[Mapping[str, Tensor]],
    tensors: Sequence[str],
    likelihood: Likelihood,
    outputs: Sequence[str] | None,
    seed: int,
    draws: int,
    keep: Sequence[str] = (),
) -> Iterator[tuple[Mapping[str, Tensor], dict[str, Tensor], dict[str, Tensor]]]:
    """For each feed: the gradients ``[draws, *shape]``, and the values of these tensors and of ``keep``."""
    constants = {name: tensor.detach() for name, tensor in graph.weights.items()}
    ends = tuple(graph.outputs if outputs is None else outputs)
    wanted = dict.fromkeys(tensors)

    seeds = np.random.SeedSequence(seed)
    for feed in feeds:
        generators = [torch.Generator().manual_seed(_seed(s)) for s in seeds.spawn(_samples(feed))]
        places: dict[str, Tensor] = {}

        def hook(name: str, tensor: Tensor, places: dict[str, Tensor] = places) -> Tensor:
            if name in wanted:
                tensor = places[name] = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
            return tensor

        with torch.enable_grad():
            found = graph.run(feed, [*ends, *wanted, *keep], hook=hook, weights=constants)
            missing = [name for name in wanted if name not in places]
            if missing:
                raise ModelError(f"no gradient at {', '.join(missing)}: not computed, or not float")
            final = {name: _read(found[name], feed) for name in ends if found[name].is_floating_point()}
            drawn = []
            for draw in range(draws):
                loss = sum(
                    (_log_likelihood(tensor, likelihood, generators) for tensor in final.values()), torch.zeros(())
                )
                drawn.append(
                    torch.autograd.grad(
                        loss, list(places.values()), retain_graph=draw < draws - 1, materialize_grads=True
                    )
                )
        stacked = {name: torch.stack(parts) for name, parts in zip(places, zip(*drawn, strict=True), strict=True)}
        yield feed, stacked, {name: found[name].detach() for name in (*wanted, *keep)}


def _read(output: Tensor, feed: Mapping[str, Tensor]) -> Tensor:
    """What anybody reads of an output: tokens, not the padding behind them."""
    mask = feed.get("attention_mask")
    if mask is None:
        return output
    weights = token_weights(output.detach().cpu().numpy(), mask_of({"attention_mask": mask.cpu().numpy()}))
    return output if weights is None else output * torch.from_numpy(weights).to(output.device, output.dtype)


def _seed(sequence: np.random.SeedSequence) -> int:
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def _log_likelihood(output: Tensor, likelihood: Likelihood, generators: Sequence[torch.Generator]) -> Tensor:
    """The log-likelihood, up to a constant, of a label drawn from what ``output`` predicts; summed over samples.

    Each sample has a generator of its own, so that the labels do not depend on how samples are batched.
    """
    if not output.ndim or output.shape[0] % len(generators):
        generators = generators[:1]
    if likelihood == "gaussian":
        # d/df of -(f + noise - f)²/2 is the noise: a product with it has the same gradient.
        shape = (output.shape[0] // len(generators), *output.shape[1:]) if output.ndim else ()
        noise = torch.stack([torch.randn(shape, generator=g, dtype=torch.float64) for g in generators])
        return (output * noise.reshape(output.shape).to(output.device, output.dtype)).sum()
    log_p = torch.log_softmax(output.movedim(1, -1) if output.ndim == 4 else output, -1).flatten(0, -2)
    shares = log_p.detach().double().exp().cpu().chunk(len(generators))
    labels = torch.cat([torch.multinomial(share, 1, generator=g) for share, g in zip(shares, generators, strict=True)])
    return log_p.gather(1, labels.to(log_p.device)).sum()


def _samples(feed: Mapping[str, Tensor]) -> int:
    return next((tensor.shape[0] for tensor in feed.values() if tensor.ndim), 1)


def _by_sample(name: str, values: Tensor, samples: int) -> Tensor:
    """``[draws, rows, ...]`` as ``[draws, samples, ...]``, with one more axis where a sample has several rows."""
    rows = values.shape[1] if values.ndim > 1 else 1
    if rows == samples:
        return values.reshape(values.shape[0], samples, *values.shape[2:])
    if rows % samples:
        raise ModelError(
            f"the first axis of {name!r} has {rows} elements for {samples} samples", remedy="feed one sample at a time"
        )
    return values.reshape(values.shape[0], samples, rows // samples, *values.shape[2:])
