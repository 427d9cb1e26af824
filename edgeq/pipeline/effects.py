"""What each place of a model does to its outputs: measured and kept in the cache, or from gradients."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import onnx_ir as ir

from edgeq import __version__
from edgeq.errors import ModelError
from edgeq.graph import fingerprint
from edgeq.output import atomic_file
from edgeq.pipeline.job import Job
from edgeq.pipeline.planning import runnable
from edgeq.qtypes import QuantPlan
from edgeq.stages.mix import Effect, Source, measure

__all__ = ["check_samples", "effects_by_gradients", "measured_effects", "remember"]

CHECK_SAMPLES = 16
"""How many calibration samples sensitivities are measured on: places are compared on the same ones."""

EFFECTS_VERSION = 2
"""Raised whenever the same trials would give other effects, so that old caches are not used."""

T = TypeVar("T")


def check_samples(job: Job) -> list[dict[str, np.ndarray]]:
    """Every fourth calibration sample, which no method fits to; the example inputs where there is no data."""
    feed = job.feeds[0]
    if feed is None:
        return [dict(job.source.example_inputs)]
    rows = [dict(sample) for number, sample in enumerate(feed) if number % 4 == 3 or len(feed) < 8]
    return rows[:CHECK_SAMPLES]


def remember(folder: Path | None, name: str, key: str, kind: Any, make: Callable[[], T]) -> T:
    """What ``make`` returns, kept as JSON in the cache under its key; anything unreadable is made again."""
    path = None if folder is None else folder / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    if path is not None and path.is_file():
        try:
            found: T = msgspec.json.decode(path.read_bytes(), type=kind)
            return found
        except (msgspec.DecodeError, OSError):
            pass
    made = make()
    if path is not None:
        with atomic_file(path) as work:
            work.write_bytes(msgspec.json.encode(made))
    return made


def measured_effects(job: Job, shaped: ir.Model, plan: QuantPlan, sources: Sequence[Source]) -> list[Effect]:
    """Each place quantized alone and run, on all cores."""
    samples = check_samples(job)

    def run() -> list[Effect]:
        return measure(shaped, plan, sources, samples, insert=runnable, progress=job.progress)

    return remember(job.cache, "sensitivity", _digest(shaped, plan, sources, samples), list[Effect], run)


def effects_by_gradients(job: Job, shaped: ir.Model, plan: QuantPlan, sources: Sequence[Source]) -> list[Effect] | None:
    """Taylor scores of the same places; None where torch is missing, or cannot run the graph."""
    if importlib.util.find_spec("torch") is None:
        return None
    from edgeq.stages.mix.taylor import score

    try:
        return score(shaped, plan, sources, check_samples(job))
    except ModelError:
        return None


def _digest(
    shaped: ir.Model, plan: QuantPlan, sources: Sequence[Source], samples: Sequence[Mapping[str, np.ndarray]]
) -> str:
    """Identity of a set of trials: the graph, every number of the decisions, the samples, and this edgeq."""
    digest = hashlib.sha256(f"{__version__} {EFFECTS_VERSION} {fingerprint(shaped)}".encode())
    for source in sources:
        for decision in source.decisions:
            held = decision.qparams
            digest.update(repr((source.kind, source.name, decision.tensor, decision.role, decision.consumers)).encode())
            if held is not None:
                digest.update(repr(held.spec).encode() + held.scale.tobytes() + held.zero_point.tobytes())
    for name in sorted(plan.weights):
        digest.update(name.encode() + np.ascontiguousarray(plan.weights[name]).tobytes())
    for sample in samples:
        for name, array in sample.items():
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
