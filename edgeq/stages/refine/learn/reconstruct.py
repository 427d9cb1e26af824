"""Learn a part of the model: from its plan and samples to a plan with learned roundings, scales and biases.

AdaRound (Nagel et al. 2020, arXiv 2004.10568) layer by layer, BRECQ (Li et al. 2021, arXiv 2102.05426) on a block,
and QDrop (Wei et al. 2022, arXiv 2203.05740) on a block whose activations are quantized at random, are one engine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir
import torch

from edgeq.blocks import restrict_plan
from edgeq.errors import ConfigError
from edgeq.progress import Progress, Silent
from edgeq.qtypes import QuantPlan
from edgeq.stages.refine.learn.data import Arrays, Data
from edgeq.stages.refine.learn.layers import by_layer
from edgeq.stages.refine.learn.part import Part
from edgeq.stages.refine.learn.settings import Settings, default_settings
from edgeq.stages.refine.learn.train import measure, train
from edgeq.stages.refine.learn.windows import find_windows
from edgeq.torch_graph import TorchGraph

__all__ = ["ENGINE_GRANULARITIES", "Learned", "reconstruct"]

ENGINE_GRANULARITIES = ("layer", "block", "drop")


@dataclass(frozen=True)
class Learned:
    """The plan of the part with what was learned, and the relative error of its outputs before and after.

    A loss is ``sum w (y - t)^2 / sum w t^2`` on the samples it was fitted on, with all weights on their grids. It
    can grow: the caller judges on other samples, and keeps the better plan. Layer by layer it is the mean of the
    layers' losses, each at its own output.
    """

    plan: QuantPlan
    loss_before: float
    loss_after: float


def reconstruct(
    part: ir.Model,
    plan: QuantPlan,
    float_inputs: Arrays,
    quantized_inputs: Arrays,
    float_outputs: Arrays,
    *,
    iterations: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    granularity: Literal["layer", "block", "drop"] = "block",
    drop: float = 0.5,
    fisher: Mapping[str, np.ndarray] | None = None,
    masks: Sequence[np.ndarray | None] | None = None,
    settings: Settings | None = None,
    frozen: Container[str] = (),
    fixed_rounding: Container[str] = (),
    device: str | None = None,
    progress: Progress | None = None,
) -> Learned:
    """Learn ``plan`` for ``part`` so that the outputs come close to the float ones, given quantized inputs.

    Args:
        part: a part of the float model (``edgeq.blocks.extract_block``).
        plan: its plan (``restrict_plan``). A weight that lies on its grid already, say by GPTQ, is where its rounding
            starts.
        float_inputs: for every input of ``part`` one array per sample, in the tensor's own shape: a list, or an
            array ``[samples, *shape]``; memory maps will do, one batch is read at a time.
        quantized_inputs: the same, from the quantized model up to here.
        float_outputs: for every output of ``part``, from the float model.
        iterations: steps; by default as many as pay at the width of the weights (``default_settings``).
        batch: samples in one step.
        seed: of the order of samples and of what is dropped. The same seed gives the same plan, on a CPU with the
            same number of threads of torch, and on a GPU as far as its kernels are deterministic. torch's global
            generator is neither used nor changed.
        granularity: ``"block"`` learns all of ``part`` against its outputs; ``"drop"`` the same, with every quantized
            element of inputs and activations left float with probability ``drop``, which helps below 8 bits of
            activations; ``"layer"`` each layer alone against its own output, behind its activation function, with
            the scales of activations as they are.
        drop: that probability.
        fisher: for each output what its squared errors count, broadcast to one sample
            (the diagonal of the Fisher information, BRECQ's eq. 10); None: all alike. Not used layer by layer.
        masks: for each sample its tokens, bool ``[N, L]``, or None where all count: errors at padding do not count.
        settings: rates and what is learned at all, in place of the defaults for the width of the weights.
        frozen: tensors whose scale, rounding or bias must stay: activations that an earlier part has settled (and all
            that share their scale), weights that nodes outside of ``part`` read, too.
        fixed_rounding: weights whose levels must stay, such as those kept within a limit on pairs; scales may move.
        device: torch's name of one; None takes a GPU where there is one.
        progress: told of every step; the caller starts and finishes it.

    Raises:
        ConfigError: a granularity that does not exist.
        ModelError: a node of ``part`` has no form in torch (``edgeq.torch_graph.unsupported`` tells).
    """
    if granularity not in ENGINE_GRANULARITIES:
        raise ConfigError(
            f"unknown granularity {granularity!r}", remedy=f"choose one of: {', '.join(ENGINE_GRANULARITIES)}"
        )
    chosen = settings or default_settings(_weight_bits(plan))
    chosen = replace(chosen, iterations=iterations or chosen.iterations, batch=batch or chosen.batch)
    chosen = replace(chosen, drop=drop if granularity == "drop" else 0.0)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    session = _Session(chosen, seed, frozen, fixed_rounding, place, progress or Silent())
    if granularity == "layer":
        session = replace(session, settings=replace(chosen, activation_scales=False))
        return _by_layer(part, plan, float_inputs, quantized_inputs, masks, session)
    data = Data(float_inputs, quantized_inputs, float_outputs, fisher, place, masks)
    return session.learn(part, plan, data)


@dataclass(frozen=True)
class _Session:
    """What does not change from one part to the next."""

    settings: Settings
    seed: int
    frozen: Container[str]
    fixed_rounding: Container[str]
    device: torch.device
    progress: Progress

    def learn(self, part: ir.Model, plan: QuantPlan, data: Data) -> Learned:
        settings = self.settings
        module = Part(part, plan, settings, frozen=self.frozen, fixed_rounding=self.fixed_rounding, device=self.device)
        data.flat = _is_flat(part, data)
        if settings.window and data.flat:
            first = {name: np.asarray(arrays[0]) for name, arrays in data.float_inputs.items()}
            outputs = {name: np.asarray(arrays[0]) for name, arrays in data.float_outputs.items()}
            data.windows = find_windows(part, first, outputs, size=settings.window)
        before = measure(module, data, settings.batch)
        after = train(module, data, before, seed=self.seed, progress=self.progress)
        return Learned(module.decided() if after < before else restrict_plan(plan, part), before, after)


def _by_layer(
    part: ir.Model,
    plan: QuantPlan,
    float_inputs: Arrays,
    quantized_inputs: Arrays,
    masks: Sequence[np.ndarray | None] | None,
    session: _Session,
) -> Learned:
    """Layer after layer, each with the inputs that the layers before it, learned already, give."""
    before, after = [], []
    for layer in by_layer(part, plan):
        data = layer.data(part, plan, float_inputs, quantized_inputs, session.device, masks)
        learned = session.learn(layer.part, plan, data)
        plan = layer.merged(part, plan, learned.plan)
        before.append(learned.loss_before)
        after.append(learned.loss_after)
    if not before:
        return Learned(plan, 0.0, 0.0)
    return Learned(plan, float(np.mean(before)), float(np.mean(after)))


def _weight_bits(plan: QuantPlan) -> int:
    """The width of most weights, the smaller one if two are as frequent."""
    bits = Counter(d.qparams.spec.dtype.bits for d in plan if d.role == "weight" and d.qparams is not None)
    return min(bits, key=lambda width: (-bits[width], width)) if bits else plan.scheme.weight_bits


@torch.no_grad()
def _is_flat(part: ir.Model, data: Data) -> bool:
    """Whether two samples put together along the first axis give what each gives by itself.

    A Reshape to constant sizes fails, one to wrong sizes mixes samples: so it is tried, in float.
    """
    if data.count < 2:
        return False
    arrays = [*data.float_inputs.values(), *data.float_outputs.values()]
    if any(np.ndim(a[0]) == 0 or np.shape(a[0])[0] != np.shape(a[1])[0] for a in arrays):
        return False
    graph, names = TorchGraph(part), list(data.float_outputs)
    feeds = [{n: torch.from_numpy(np.array(a[row])) for n, a in data.float_inputs.items()} for row in (0, 1)]
    try:
        together = graph.run({name: torch.cat([feeds[0][name], feeds[1][name]]) for name in feeds[0]}, names)
    except Exception:  # whatever torch says about shapes: then sample by sample
        return False
    alone = [graph.run(feed, names) for feed in feeds]
    wanted = {name: torch.cat([alone[0][name], alone[1][name]]) for name in names}
    return all(
        together[n].shape == wanted[n].shape and torch.allclose(together[n], wanted[n], 1e-4, 1e-5) for n in names
    )
