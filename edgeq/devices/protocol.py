"""What every device takes and gives: bundles in, raw times and outputs back.

A device carries a job out: it brings the bundles there, runs them, and brings one result back. It judges
nothing: percentiles, accuracy and comparisons are made of what it brings, the same way for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from edgeq.device_report import DeviceInfo, DeviceState, NodeTime

if TYPE_CHECKING:
    from edgeq.bundle import Bundle, GraphEntry
    from edgeq.progress import Progress

__all__ = ["THIS_MACHINE", "Arrays", "Device", "Entry", "Job", "ModelRun", "Outcome"]

Arrays = Mapping[str, np.ndarray]
"""One batch: arrays by the model's own names."""

THIS_MACHINE = "this machine"
"""``Device.machine`` of all that runs on the processor of the host."""


@dataclass(frozen=True)
class Entry:
    """One graph of a bundle to run; ``name`` tells it from the others of a job."""

    name: str
    bundle: Bundle
    graph: GraphEntry


@dataclass(frozen=True)
class Job:
    """What is to be run, and for how long.

    Several ``entries`` take turns in one process, one run each: A B A B, so that all meet the same disturbances.

    ``threads``: intra-op threads, 0 for all cores of the mask. ``cores``: the cores it is pinned to, where the
    device can: ``"all"``, ``"big"`` (all but the slowest kind), ``"little"``, or numbers such as ``"0,4-7"``.
    Each model runs at least ``warmup_runs`` times and ``warmup_s`` seconds before anything counts, then at least
    ``min_runs`` times, until it has run for ``seconds`` in all or ``max_runs`` times. ``measure`` false: outputs
    only. ``profile``: afterwards, time each node in a session of its own (profiling slows the runs it watches).
    ``feeds`` are the batches whose outputs are wanted; latency is measured with the first.
    ``timeout_s`` is for the whole job; a device that is silent for longer is given up.
    """

    entries: tuple[Entry, ...]
    feeds: tuple[Arrays, ...]
    threads: int = 1
    cores: str = "all"
    warmup_runs: int = 3
    warmup_s: float = 0.3
    min_runs: int = 20
    seconds: float = 3.0
    max_runs: int = 5000
    measure: bool = True
    profile: bool = False
    timeout_s: float = 600.0


@dataclass(frozen=True)
class ModelRun:
    """What one entry did.

    ``wall_ms`` and ``cpu_ms`` hold one number per measured run, in order; turn ``i`` of all entries belongs
    together (``cpu_ms`` is empty where the device does not tell). ``load_ms`` is the time to make the session,
    ``first_ms`` that of the first run. ``peak_mb`` and ``baseline_mb``: resident memory at its most, and before
    the model was loaded (None with several entries, which share a process). ``energy_mj`` is per inference.
    ``assigned`` maps nodes of the model to the provider that took them (None where the device does not tell);
    ``outputs`` holds one batch per feed.
    """

    name: str
    provider: str
    load_ms: float | None = None
    first_ms: float | None = None
    warmup_runs: int = 0
    wall_ms: tuple[float, ...] = ()
    cpu_ms: tuple[float, ...] = ()
    peak_mb: float | None = None
    baseline_mb: float | None = None
    energy_mj: float | None = None
    nodes: tuple[NodeTime, ...] = ()
    assigned: Mapping[str, str] | None = None
    outputs: tuple[Arrays, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What a device brought back. ``notes`` say why something is "n/a"; nothing is guessed.

    ``runtime`` names what ran it with its version, ``core_mask`` the cores it was pinned to in hexadecimal.
    """

    info: DeviceInfo
    runtime: str
    runs: tuple[ModelRun, ...]
    threads: int
    core_mask: str | None = None
    before: DeviceState = field(default_factory=DeviceState)
    after: DeviceState = field(default_factory=DeviceState)
    notes: tuple[str, ...] = ()


class Device(Protocol):
    """One device that can be reached; ``spelling`` is what ``--device`` takes, such as ``adb:SERIAL``."""

    @property
    def spelling(self) -> str: ...

    @property
    def machine(self) -> str:
        """Whose processor it is: two devices of one machine never measure at the same time."""

    def missing(self) -> str | None:
        """Why it cannot be used now, in words and with what to do; None if it can. Quick: no model is run."""

    def describe(self) -> DeviceInfo:
        """What it is; raises ProviderError if it cannot be reached."""

    def run(self, job: Job, progress: Progress | None = None) -> Outcome:
        """Bring the bundles there, run them, bring the result back; leaves nothing behind but cached files.

        Raises:
            ProviderError: it cannot be reached, has no room, is of another kind than the runner, or lacks the
                execution provider; with what to do.
            ModelError: the model does not load or run there, in the runtime's own words.
        """
