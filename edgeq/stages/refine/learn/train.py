"""The loop that learns: batches of samples, the error of the part's outputs, Adam, the schedule of the rounding."""

from __future__ import annotations

import math

import numpy as np
import torch

from edgeq.progress import Progress
from edgeq.stages.refine.learn.data import Data, Tensors
from edgeq.stages.refine.learn.part import Part
from edgeq.stages.refine.learn.rounding import beta_at, regularizer

__all__ = ["error", "measure", "train"]

_LOOKS = 8
"""How often the part is measured as it would be stored; all of them cost as much as a tenth of the steps."""


def run(part: Part, data: Data, feeds: Tensors, *, hard: bool) -> Tensors:
    """The part's outputs ``[samples, ...]`` for feeds ``[samples, ...]``."""
    weights, count = part.weights(hard=hard), len(next(iter(feeds.values())))
    if data.flat:
        merged = {name: tensor.flatten(0, 1) for name, tensor in feeds.items()}
        return {name: t.unflatten(0, (count, -1)) for name, t in part.run(merged, weights=weights).items()}
    each = [part.run({name: tensor[row] for name, tensor in feeds.items()}, weights=weights) for row in range(count)]
    return {name: torch.stack([found[name] for found in each]) for name in each[0]}


def error(found: Tensors, wanted: Tensors, data: Data, rows: np.ndarray) -> torch.Tensor:
    """The weighted squared error of all outputs per sample, relative to their energy: ``sum w (y - t)^2 / energy``.

    With Fisher information as ``w`` it is BRECQ's equation 10 (Li et al. 2021, arXiv 2102.05426).
    """
    total = torch.zeros((), device=data.device)
    for name, target in wanted.items():
        total = total + data.weighted(name, data.inner(name, found[name]) - target, rows).sum() / data.energy[name]
    return total / (len(next(iter(wanted.values()))) * data.covered(wanted))


@torch.no_grad()
def measure(part: Part, data: Data, batch: int) -> float:
    """The relative error of the part as it would be stored, over all samples (and a fixed window of each batch)."""
    random, total = np.random.default_rng(0), 0.0
    dropped, part.grids.drop = part.grids.drop, 0.0
    for begin in range(0, data.count, batch):
        rows = np.arange(begin, min(begin + batch, data.count))
        data.look(random)
        found = run(part, data, data.inputs(rows, 0.0, None), hard=True)
        total += float(error(found, data.outputs(rows), data, rows)) * len(rows)
    data.window, part.grids.drop = None, dropped
    return total / data.count


def train(part: Part, data: Data, start: float, *, seed: int, progress: Progress) -> float:
    """Learn what ``part`` has to learn; ``start`` is its error before, in which losses are measured.

    What is stored has its weights on the grid, which the loss of soft weights does not see. So the part is measured as
    it would be stored, `_LOOKS` times on the way, and is left as it was at the best of these and the start.
    Returned is the error there.

    Adam with its usual constants. Roundings keep their rate to the end, when they are driven to 0 or 1; the rates of
    scales and biases fall to zero by a cosine.
    """
    settings, kinds = part.settings, part.rates()
    if not kinds:
        return start
    learned = [parameter for _, parameters, _ in kinds for parameter in parameters]
    best, kept = start, [parameter.detach().clone() for parameter in learned]
    looks = {settings.iterations * (look + 1) // _LOOKS for look in range(_LOOKS)}
    generator = torch.Generator(device=data.device).manual_seed(seed)
    optimizer = torch.optim.Adam([{"params": parameters, "lr": rate} for _, parameters, rate in kinds])
    random, batches, soft = np.random.default_rng(seed), data.batches(settings.batch, seed), part.soft()
    part.grids.generator, part.grids.drop = generator, settings.drop
    for iteration in range(settings.iterations):
        done = iteration / settings.iterations
        for group, (kind, _, rate) in zip(optimizer.param_groups, kinds, strict=True):
            group["lr"] = rate if kind == "rounding" else rate * 0.5 * (1.0 + math.cos(math.pi * done))
        rows = next(batches)
        data.look(random)
        found = run(part, data, data.inputs(rows, settings.drop, generator), hard=False)
        loss = error(found, data.outputs(rows), data, rows) / max(start, 1e-12)
        beta = beta_at(done, warm_up=settings.warm_up)
        if beta is not None:
            for rounding in soft:
                loss = loss + settings.pressure * regularizer(rounding.share(), beta) / len(soft)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        part.grids.project()
        progress.advance()
        if iteration + 1 in looks:
            now = measure(part, data, settings.batch)
            if now < best:
                best, kept = now, [parameter.detach().clone() for parameter in learned]
    data.window, part.grids.generator, part.grids.drop = None, None, 0.0
    with torch.no_grad():
        for parameter, array in zip(learned, kept, strict=True):
            parameter.copy_(array)
    return best
