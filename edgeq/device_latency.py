"""Many runs of one model on a device, summed up: percentiles over all, and what tells the processes apart."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from edgeq.comparison import Measure
from edgeq.device_report import DeviceLatency, SessionTimes
from edgeq.devices.protocol import ModelRun
from edgeq.target import CPU_PROVIDER

__all__ = ["deciding_measure", "median_ms", "summarize_runs"]

_QUANTILES = np.linspace(0, 1, 21)


def summarize_runs(runs: Sequence[ModelRun], *, emulated: bool = False) -> DeviceLatency | None:
    """One model's runs, a ``ModelRun`` per process; None if nothing was measured.

    Load time and first run are those of the process whose load time is the median.
    """
    runs = [run for run in runs if run.wall_ms]
    if not runs:
        return None
    wall = np.concatenate([np.asarray(run.wall_ms, np.float64) for run in runs])
    cpu = np.concatenate([np.asarray(run.cpu_ms, np.float64) for run in runs])
    p50, p90, p99 = (float(value) for value in np.percentile(wall, [50, 90, 99]))
    typical = sorted(runs, key=lambda run: run.load_ms or 0.0)[len(runs) // 2]
    return DeviceLatency(
        runs=len(wall),
        warmup_runs=sum(run.warmup_runs for run in runs),
        min_ms=round(float(wall.min()), 4),
        p50_ms=round(p50, 4),
        p90_ms=round(p90, 4),
        p99_ms=round(p99, 4),
        max_ms=round(float(wall.max()), 4),
        mean_ms=round(float(wall.mean()), 4),
        per_second=round(1e3 / max(float(wall.mean()), 1e-6), 2),
        cpu_p50_ms=round(float(np.median(cpu)), 4) if len(cpu) == len(wall) else None,
        load_ms=typical.load_ms,
        first_ms=typical.first_ms,
        emulated=emulated,
        sessions=tuple(_session(run) for run in runs),
    )


def median_ms(sessions: Sequence[SessionTimes], measure: Measure) -> list[float] | None:
    """Each session's median in ms, by ``"wall"`` or ``"cpu"``; None if one of them does not tell."""
    found = [session.cpu_p50_ms if measure == "cpu" else session.p50_ms for session in sessions]
    known = [value for value in found if value is not None]
    return known if found and len(known) == len(found) else None


def deciding_measure(
    told: Collection[Measure], *, threads: int, providers: Collection[str], asked: Measure | None = None
) -> tuple[Measure, str]:
    """Which time two models are compared by, and why: that which other programs on the machine disturb least.

    ``told`` are the measures that there are, ``asked`` is the user's wish.
    """
    if asked is not None:
        return (asked, "as asked") if asked in told else ("wall", f"the device tells no {asked} time")
    if "cpu" not in told:
        return "wall", "the device tells no other"
    if threads == 1 and set(providers) == {CPU_PROVIDER}:
        return "cpu", "with one thread on a CPU it is the time that the model takes with a core of its own"
    return "wall", "several threads or another processor than the CPU do the work"


def _session(run: ModelRun) -> SessionTimes:
    wall = tuple(round(float(value), 4) for value in np.quantile(run.wall_ms, _QUANTILES))
    cpu = round(float(np.median(run.cpu_ms)), 4) if len(run.cpu_ms) == len(run.wall_ms) else None
    return SessionTimes(runs=len(run.wall_ms), wall_ms=wall, cpu_p50_ms=cpu)
