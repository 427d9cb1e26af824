"""Latency of one or more models on this machine, measured in turn so that all meet the same disturbances."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgeq.errors import ModelError
from edgeq.report import Latency, LatencyComparison
from edgeq.runtime import open_session, session_options
from edgeq.target import CPU_PROVIDER

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnxruntime as ort

    from edgeq.target import Provider

__all__ = ["Lane", "Timing", "compare_latency", "take_turns"]

_WARMUP_RUNS = 3
_MAX_RUNS = 5000


@dataclass
class Lane:
    """One model under measurement; times in ms, one for every turn."""

    session: ort.InferenceSession
    provider: str
    load_ms: float
    first_ms: float = 0.0
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Timing:
    """How long is measured.

    ``threads``: intra-op threads, 0 for all cores. ``warmup_s``: each model runs at least this long, and at
    least three times, before anything counts. ``min_runs``: runs per model that are made however long they
    take; measuring goes on until each model has run for ``seconds`` (or 5000 times).
    """

    threads: int = 1
    warmup_s: float = 0.3
    min_runs: int = 20
    seconds: float = 3.0


def compare_latency(
    quantized: ir.Model | str | os.PathLike[str],
    float_model: ir.Model | str | os.PathLike[str] | None,
    inputs: Mapping[str, np.ndarray],
    *,
    provider: Provider | None = None,
    timing: Timing | None = None,
) -> LatencyComparison:
    """Both models in turn; see ``take_turns`` for the arguments and errors."""
    timing = timing or Timing()
    models = {"quantized": quantized, **({"float": float_model} if float_model is not None else {})}
    with take_turns(models, inputs, provider=provider, timing=timing) as lanes:
        ours = _summary(lanes["quantized"], timing.threads)
        if float_model is None:
            return LatencyComparison(quantized=ours)
        theirs = _summary(lanes["float"], timing.threads)
        pairs = np.array(lanes["float"].cpu) / np.maximum(lanes["quantized"].cpu, 1e-6)
        return LatencyComparison(
            quantized=ours,
            float_model=theirs,
            speedup=round(theirs.p50_ms / ours.p50_ms, 3),
            cpu_speedup=round(float(np.median(pairs)), 3),
        )


@contextmanager
def take_turns(
    models: Mapping[str, ir.Model | str | os.PathLike[str]],
    inputs: Mapping[str, np.ndarray],
    *,
    provider: Provider | None = None,
    timing: Timing | None = None,
) -> Iterator[dict[str, Lane]]:
    """Every single time by name, one run of each model in turn: A B A B.

    Args:
        models: Models with the same inputs.
        inputs: One batch, by input name.
        provider: Where they run (default: the CPU).
        timing: How long, and on how many threads.

    Raises:
        ModelError: a model does not load or run.
        ProviderError: the provider is not available on this machine.
    """
    timing = timing or Timing()
    with ExitStack() as stack:
        lanes: dict[str, Lane] = {}
        for name, model in models.items():
            start = time.perf_counter()
            options = session_options(threads=timing.threads, config=provider.session if provider else None)
            session = stack.enter_context(open_session(model, options, provider))
            where = provider.name if provider else CPU_PROVIDER
            lanes[name] = Lane(session, where, (time.perf_counter() - start) * 1e3)
        for lane in lanes.values():
            _warm_up(lane, inputs, timing.warmup_s)
        until = timing.seconds * 1e3
        while any(len(lane.wall) < timing.min_runs or sum(lane.wall) < until for lane in lanes.values()):
            for lane in lanes.values():
                _run(lane, inputs)
            if len(next(iter(lanes.values())).wall) >= max(_MAX_RUNS, timing.min_runs):
                break
        yield lanes


def _warm_up(lane: Lane, inputs: Mapping[str, np.ndarray], warmup_s: float) -> None:
    _run(lane, inputs)
    lane.first_ms = lane.wall[0]
    start = time.perf_counter()
    while len(lane.wall) < _WARMUP_RUNS or time.perf_counter() - start < warmup_s:
        _run(lane, inputs)
    lane.wall.clear()
    lane.cpu.clear()


def _run(lane: Lane, inputs: Mapping[str, np.ndarray]) -> None:
    cpu, wall = time.process_time_ns(), time.perf_counter_ns()
    try:
        lane.session.run(None, dict(inputs))
    except Exception as error:  # ONNX Runtime's exceptions share no public base class
        raise ModelError(
            f"the model fails while its latency is measured: {str(error)[:300]}",
            remedy="check the names, types and shapes of the inputs",
        ) from None
    lane.wall.append((time.perf_counter_ns() - wall) / 1e6)
    lane.cpu.append((time.process_time_ns() - cpu) / 1e6)


def _summary(lane: Lane, threads: int) -> Latency:
    p50, p90, p99 = np.percentile(lane.wall, [50, 90, 99])
    return Latency(
        provider=lane.provider,
        threads=threads or lane.session.get_session_options().intra_op_num_threads,
        runs=len(lane.wall),
        min_ms=round(min(lane.wall), 4),
        p50_ms=round(float(p50), 4),
        p90_ms=round(float(p90), 4),
        p99_ms=round(float(p99), 4),
        mean_ms=round(float(np.mean(lane.wall)), 4),
        cpu_p50_ms=round(float(np.median(lane.cpu)), 4),
        load_ms=round(lane.load_ms, 3),
        first_ms=round(lane.first_ms, 4),
    )
