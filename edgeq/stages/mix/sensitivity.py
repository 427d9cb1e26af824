"""What each place of a network adds to the error of its output when it alone is quantized.

A place is the weights of one group, or one quantized tensor with all that share its scale. Each is measured by
running the float model with that place quantized, on samples without labels (Pandey et al. 2023,
arXiv 2302.01382: the output's SQNR with one quantizer on). That is exact for any graph, and needs no gradients.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeq.graph import load_model, save_model, to_bytes
from edgeq.padding import counted, mask_of
from edgeq.parallel import cluster_named, map_trials
from edgeq.progress import Progress
from edgeq.qtypes import Decision, QuantPlan
from edgeq.runtime import open_session, session_options
from edgeq.stages.mix.groups import Group

__all__ = ["Effect", "Source", "activation_sources", "group_sources", "measure", "weight_sources"]

Insert = Callable[[ir.Model, QuantPlan], ir.Model]
Sample = Mapping[str, np.ndarray]

_SHARES = 64
"""Into how many parts trials are split for a cluster: each part carries the model."""


@dataclass(frozen=True)
class Source:
    """One place that adds noise: ``kind`` and ``name`` say which, ``decisions`` are those that quantize it alone."""

    kind: str
    name: str
    decisions: tuple[Decision, ...]


@dataclass(frozen=True)
class Effect:
    """What a place does to the outputs: ``noise`` is the power of the error over that of the signal, averaged over the
    outputs; ``divergence`` the mean Kullback-Leibler divergence of the class probabilities in nats, None where
    the model is no classifier.
    """

    noise: float
    divergence: float | None


def weight_sources(plan: QuantPlan, groups: Sequence[Group]) -> list[Source]:
    """The weights and biases of each group that has some, with the correction of the bias for these weights."""
    return _by_group(plan, groups, "weights", ("weight", "bias"))


def group_sources(plan: QuantPlan, groups: Sequence[Group], kind: str) -> list[Source]:
    """Everything that the plan does in each group; ``kind`` names the result, such as ``w8``."""
    return _by_group(plan, groups, kind, ("weight", "bias", "activation", "operand"))


def _by_group(plan: QuantPlan, groups: Sequence[Group], kind: str, roles: Sequence[str]) -> list[Source]:
    sources = []
    for group in groups:
        members = set(group.nodes)
        held = []
        for decision in plan.decisions:
            inside = tuple(name for name in decision.consumers if name in members)
            if inside and decision.role in roles:
                held.append(replace(decision, consumers=inside))
        if any(decision.qparams is not None for decision in held):
            sources.append(Source(kind, group.name, tuple(held)))
    return sources


def activation_sources(plan: QuantPlan, owner: Mapping[str, str]) -> list[Source]:
    """Each quantized tensor with those that share its scale, named after the tensor whose scale it is."""
    held: dict[str, list[Decision]] = {}
    for decision in plan.decisions:
        if decision.role in ("activation", "operand") and decision.qparams is not None:
            held.setdefault(owner.get(decision.tensor, decision.tensor), []).append(decision)
    return [Source("activations", name, tuple(decisions)) for name, decisions in held.items()]


def measure(
    model: ir.Model,
    plan: QuantPlan,
    sources: Sequence[Source],
    samples: Sequence[Sample],
    *,
    insert: Insert,
    progress: Progress | None = None,
) -> list[Effect]:
    """The effect of each source on the outputs, in their order; trials run on all cores (see ``edgeq.parallel``).

    Args:
        model: The float graph that ``plan`` is about.
        plan: Where the changed weights of the sources are (bias correction, rounding).
        sources: What to quantize, each alone.
        samples: Batches of inputs; a few suffice (16 to 64), as places are compared on the same ones.
        insert: How a plan is carried out; must be a function of a module, as trials may run elsewhere.
        progress: Told of every trial.
    """
    if cluster_named():
        packed = pickle.dumps((to_bytes(model), plan, tuple(sources), [dict(sample) for sample in samples], insert))
        count = min(_SHARES, len(sources))
        shares = [tuple(range(first, len(sources), count)) for first in range(count)]
        parts = map_trials(_share, [(packed, share) for share in shares], step="sensitivity", progress=progress)
        found = {
            n: effect for share, part in zip(shares, parts, strict=True) for n, effect in zip(share, part, strict=True)
        }
        return [found[number] for number in range(len(sources))]
    with tempfile.TemporaryDirectory(prefix="edgeq-mix-") as folder:
        save_model(model, Path(folder) / "float.onnx")
        with (Path(folder) / "trial.pickle").open("wb") as stream:
            pickle.dump((plan, tuple(sources), [dict(sample) for sample in samples], insert), stream)
        items = [(folder, number) for number in range(len(sources))]
        return map_trials(_effect, items, step="sensitivity", progress=progress)


@dataclass(frozen=True)
class _Setting:
    """What all trials of one call share, loaded once per process."""

    model: ir.Model
    plan: QuantPlan
    sources: tuple[Source, ...]
    samples: list[dict[str, np.ndarray]]
    insert: Insert
    references: list[list[np.ndarray]]


@lru_cache(maxsize=1)
def _setting(folder: str) -> _Setting:
    # The file is this process's own or its parent's, in a folder that only this user can write to.
    with (Path(folder) / "trial.pickle").open("rb") as stream:
        plan, sources, samples, insert = pickle.load(stream)  # noqa: S301
    model = load_model(Path(folder) / "float.onnx")
    return _Setting(model, plan, sources, samples, insert, _run(model, samples, as_floats=True))


def _share(item: tuple[bytes, tuple[int, ...]]) -> list[Effect]:
    """Some of the trials on a machine of a cluster, which sees no file of this one."""
    import onnx

    packed, numbers = item
    data, plan, sources, samples, insert = pickle.loads(packed)  # noqa: S301 (what the user's own scheduler sent)
    model = ir.from_proto(onnx.load_from_string(data))
    setting = _Setting(model, plan, sources, samples, insert, _run(model, samples, as_floats=True))
    return [_alone(setting, number) for number in numbers]


def _effect(item: tuple[str, int]) -> Effect:
    folder, number = item
    return _alone(_setting(folder), number)


def _alone(setting: _Setting, number: int) -> Effect:
    """One trial: the float model with one source quantized."""
    source = setting.sources[number]
    tensors = {decision.tensor for decision in source.decisions}
    alone = replace(setting.plan, decisions=source.decisions, produced=setting.plan.produced & tensors)
    as_floats = not setting.plan.scheme.weight_only
    outputs = _run(setting.insert(setting.model, alone), setting.samples, as_floats=as_floats)
    return _compare(setting, outputs)


def _run(model: ir.Model, samples: Sequence[Sample], *, as_floats: bool) -> list[list[np.ndarray]]:
    """The outputs; ``as_floats`` computes Q/DQ as they are written.

    ONNX Runtime else makes a product with rounded activations (MatMulNBits) of a DequantizeLinear in front of a float
    MatMul or Gemm, which is right for weights in blocks alone, and no part of any other place.
    """
    options = session_options(threads=1, config={"session.disable_quant_qdq": "1"} if as_floats else None)
    with open_session(model, options) as session:
        return [session.run(None, dict(sample)) for sample in samples]


def _compare(setting: _Setting, outputs: Sequence[Sequence[np.ndarray]]) -> Effect:
    count = len(setting.references[0])
    signal, noise = np.zeros(count), np.zeros(count)
    divergences: list[float] = []
    for sample, expected, found in zip(setting.samples, setting.references, outputs, strict=True):
        for index, (reference, output) in enumerate(zip(expected, found, strict=True)):
            if reference.dtype.kind != "f":
                continue
            wanted, found_there = (counted(array, mask_of(sample)).astype(np.float64) for array in (reference, output))
            signal[index] += float(np.square(wanted).sum())
            noise[index] += float(np.square(found_there - wanted).sum())
            if reference.ndim == 2 and reference.shape[1] > 2:
                divergences.append(_divergence(reference, output))
    told = signal > 0
    ratio = np.where(np.isfinite(noise), noise, np.inf)[told] / signal[told]
    # What is not finite is worse than anything that is; JSON and solvers need a number.
    mean = min(float(ratio.mean()), 1e6) if told.any() else 0.0
    return Effect(mean, float(np.mean(divergences)) if divergences and np.isfinite(divergences).all() else None)


def _divergence(reference: np.ndarray, output: np.ndarray) -> float:
    """KL divergence of the softmax of two ``[samples, classes]`` arrays of logits, mean over the samples, in nats."""
    p, q = (_log_softmax(x.astype(np.float64)) for x in (reference, output))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def _log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
