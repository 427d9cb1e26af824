"""What a device brought back -> what it is worth: percentiles, closeness to the reference, and what to know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeq.bundle import GraphEntry
from edgeq.device_latency import summarize_runs
from edgeq.device_report import DeviceLatency, DeviceResult, DeviceState
from edgeq.devices.protocol import ModelRun, Outcome
from edgeq.interface import BoxesOutput
from edgeq.report import Finding
from edgeq.stages.run.closeness import closeness_metrics, compare_outputs

__all__ = ["References", "judge_device"]

_SHARED = 1.25
"""Wall time over CPU time of one thread from which on other programs are said to have had the processor."""

_UNEVEN = 1.5
_FREQUENCY = 0.05


@dataclass(frozen=True)
class References:
    """What was fed, the float model's answers to it, in words what it was, and which outputs are boxes."""

    inputs: Sequence[Mapping[str, np.ndarray]]
    outputs: Sequence[Mapping[str, np.ndarray]]
    text: str
    boxes: BoxesOutput | None = None


def judge_device(
    outcome: Outcome, run: ModelRun, graph: GraphEntry, references: References, *, tolerance_db: float = 3.0
) -> DeviceResult:
    """One run of a bundle's samples on a device, judged against the bundle's manifest as ``validate`` does it.

    Each output must come as close to the float model's as the manifest says, less ``tolerance_db``; otherwise
    the result has an ``error``, with the exit code of ``ValidationError``.

    Raises:
        ValidationError: an output is missing or has another shape than its reference.
    """
    closeness = compare_outputs(references.inputs, references.outputs, run.outputs, references.boxes)
    missed = [
        f"{found.noun} of {name} is {found.value:.1f} {found.unit}, but the manifest says {recorded:.1f} {found.unit} "
        f"(tolerance {recorded - found.asked(recorded, tolerance_db):g} {found.unit})"
        for name, found in closeness.items()
        if (recorded := graph.recorded.get(name)) is not None and found.value < found.asked(recorded, tolerance_db)
    ]
    latency = summarize_runs([run], emulated=outcome.info.emulated)
    return DeviceResult(
        device=outcome.info,
        target=graph.target,
        precision=graph.precision,
        provider=run.provider,
        runtime=outcome.runtime,
        threads=outcome.threads,
        core_mask=outcome.core_mask,
        latency=latency,
        peak_mb=_rounded(run.peak_mb, 2),
        baseline_mb=_rounded(run.baseline_mb, 2),
        energy_mj=_rounded(run.energy_mj, 4),
        before=outcome.before,
        after=outcome.after,
        metrics=tuple(closeness_metrics(closeness, source=references.text)),
        nodes=run.nodes,
        placement=dict(Counter((run.assigned or {}).values())),
        findings=tuple(_findings(outcome, graph, latency)),
        notes=(*outcome.notes, *_not_told(outcome, run)),
        error="; ".join(missed) or None,
        remedy="compare the device's processor and ONNX Runtime with the manifest's, or allow more with --tolerance"
        if missed
        else None,
        exit_code=6 if missed else 0,
    )


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _findings(outcome: Outcome, graph: GraphEntry, latency: DeviceLatency | None) -> list[Finding]:
    if latency is None:
        return []
    if outcome.info.emulated:
        return [Finding(severity="info", text="emulated: its integers are the device's, its times say nothing of it")]
    found = []
    if outcome.info.kind == "local" and graph.verification is not None and not graph.verification.latency_here:
        machines = " or ".join(graph.verification.machines)
        text = f"this machine is not of the kind that {graph.target} is for: its times say nothing of that"
        text += f" ({machines})" if machines else ""
        found.append(Finding(severity="info", text=text))
    if outcome.before.throttled or outcome.after.throttled:
        found.append(
            Finding(
                severity="warning",
                text="the device slowed itself down because it was hot: the times are those of a throttled processor",
                remedy="let it cool down, take it out of its case, and measure again",
            )
        )
    before, after = (_mean_mhz(state) for state in (outcome.before, outcome.after))
    if before and after and abs(after - before) > _FREQUENCY * before:
        found.append(
            Finding(
                severity="warning",
                text=f"the cores' mean frequency changed while it was measured, from {before:.0f} to {after:.0f} MHz",
                remedy="measure longer, or fix the frequency (the governor `performance`)",
            )
        )
    if outcome.threads == 1 and latency.cpu_p50_ms and latency.p50_ms > _SHARED * latency.cpu_p50_ms:
        found.append(
            Finding(
                severity="warning",
                text=f"the processor was shared: one inference takes {latency.p50_ms:.3g} ms, "
                f"of which it computes {latency.cpu_p50_ms:.3g} ms",
                remedy="end other programs, or go by the CPU time",
            )
        )
    elif latency.p90_ms > _UNEVEN * latency.p50_ms:
        found.append(
            Finding(
                severity="warning",
                text=f"the times vary: p90 is {latency.p90_ms / latency.p50_ms:.1f} times p50",
                remedy="end other programs, pin it to one kind of cores with --cores big, and measure longer",
            )
        )
    return found


def _mean_mhz(state: DeviceState) -> float | None:
    return float(np.mean(state.frequency_mhz)) if state.frequency_mhz else None


def _not_told(outcome: Outcome, run: ModelRun) -> list[str]:
    """What a reader would look for in vain, and why."""
    if not run.wall_ms or outcome.info.emulated:
        return []
    told = {
        "temperature": outcome.after.temperature_c is not None,
        "frequency": bool(outcome.after.frequency_mhz),
        "memory": run.peak_mb is not None,
    }
    absent = [name for name, there in told.items() if not there]
    return [f"n/a, as the device does not tell: {', '.join(absent)}"] if absent else []
