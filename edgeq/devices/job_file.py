"""The host's side of the native runner's files: job and feeds in, result, outputs and profiles out.

``runner/job.c`` reads the job, ``runner/main.c`` writes the result. Arrays travel as ``.npy`` streams one behind
another in one file, so that names from a model never become names of files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import msgspec
import numpy as np

from edgeq.device_report import DeviceState
from edgeq.devices.protocol import Arrays, Entry, Job, ModelRun
from edgeq.errors import ConfigError, ProviderError
from edgeq.node_times import NodeTime

__all__ = [
    "FEEDS",
    "JOB",
    "RESULT",
    "EntryResult",
    "RunnerError",
    "RunnerResult",
    "files_of",
    "outputs_name",
    "read_outputs",
    "read_result",
    "write_feeds",
    "write_job",
]

SCHEMA = 1
FEEDS, JOB, RESULT = "feeds.npys", "job.json", "result.json"
PROFILE_S = 0.5


class RunnerError(msgspec.Struct, frozen=True):
    """Why the runner ended early; the codes are those of ``runner/runner.h``."""

    code: int
    text: str


class EntryResult(msgspec.Struct, frozen=True):
    """What ``ModelRun`` holds, with the names of outputs and the file of ONNX Runtime's profile."""

    name: str
    provider: str
    load_ms: float
    first_ms: float
    warmup_runs: int
    wall_ms: tuple[float, ...]
    cpu_ms: tuple[float, ...]
    peak_mb: float | None
    baseline_mb: float | None
    energy_mj: float | None
    outputs: tuple[str, ...]
    profile: str | None

    def model_run(self, outputs: tuple[Arrays, ...], nodes: tuple[NodeTime, ...]) -> ModelRun:
        """With what was brought back beside the result."""
        return ModelRun(
            self.name,
            self.provider,
            load_ms=self.load_ms,
            first_ms=self.first_ms,
            warmup_runs=self.warmup_runs if self.wall_ms else 0,
            wall_ms=self.wall_ms,
            cpu_ms=self.cpu_ms,
            peak_mb=self.peak_mb,
            baseline_mb=self.baseline_mb,
            energy_mj=self.energy_mj,
            nodes=nodes,
            outputs=outputs,
        )


class RunnerResult(msgspec.Struct, frozen=True):
    """The runner's ``result.json``; ``error`` alone where it ended early."""

    schema: int
    runtime: str = ""
    providers: tuple[str, ...] = ()
    machine: str = ""
    features: str = ""
    threads: int = 0
    core_mask: str | None = None
    before: DeviceState | None = None
    after: DeviceState | None = None
    notes: tuple[str, ...] = ()
    entries: tuple[EntryResult, ...] = ()
    error: RunnerError | None = None


def write_feeds(feeds: Sequence[Arrays], file: Path) -> list[str]:
    """All batches into one file; returns the names of the inputs in the order in which each batch was written.

    Raises:
        ConfigError: an array of strings or objects, which the runner cannot take.
    """
    names = list(feeds[0])
    with file.open("wb") as stream:
        for feed in feeds:
            for name in names:
                array = np.asarray(feed[name], order="C")
                if array.dtype.kind not in "fiub":
                    raise ConfigError(
                        f"input {name!r} has type {array.dtype}, which the native runner cannot take",
                        remedy="validate this bundle on this machine, without --device",
                    )
                np.save(stream, array.astype(array.dtype.newbyteorder("<"), copy=False), allow_pickle=False)
    return names


def write_job(
    job: Job,
    names: Sequence[str],
    bundles: Mapping[str, PurePosixPath],
    *,
    work: PurePosixPath,
    runtime: PurePosixPath,
    plugins: Mapping[str, PurePosixPath],
    sensors: bool,
    timeout_s: float,
) -> bytes:
    """The job with paths of the device: ``bundles`` by name of an entry, ``plugins`` by that of an execution provider,
    ``work`` for what is made.
    """
    entries = [
        {
            "name": entry.name,
            "bundle": str(bundles[entry.name]),
            "model": entry.graph.model,
            "outputs": str(work / outputs_name(index)),
            "profile": str(work / f"profile-{index}") if job.profile else None,
            "plugin": str(plugins[name]) if (name := entry.graph.provider.name) in plugins else None,
        }
        for index, entry in enumerate(job.entries)
    ]
    settings = {
        "schema": SCHEMA,
        "runtime": str(runtime),
        "cores": job.cores,
        "threads": job.threads,
        "timeout_s": round(timeout_s),
        "warmup_runs": job.warmup_runs,
        "warmup_s": job.warmup_s,
        "min_runs": job.min_runs,
        "max_runs": job.max_runs,
        "seconds": job.seconds,
        "profile_s": PROFILE_S,
        "measure": job.measure,
        "sensors": sensors,
        "feeds": {"file": str(work / FEEDS), "names": list(names), "count": len(job.feeds)},
        "entries": entries,
    }
    return msgspec.json.encode(settings)


def outputs_name(index: int) -> str:
    """The file of an entry's outputs."""
    return f"outputs-{index}.npys"


def read_result(text: bytes) -> RunnerResult:
    """Raises ProviderError for anything but a result of this schema."""
    try:
        found = msgspec.json.decode(text.decode("utf-8", errors="replace"), type=RunnerResult)
    except msgspec.DecodeError as error:
        raise ProviderError(f"the runner's result cannot be read: {error}", remedy="run it again") from None
    if found.schema != SCHEMA:
        raise ProviderError(f"the runner wrote a result of schema {found.schema}, this edgeq reads {SCHEMA}")
    return found


def read_outputs(file: Path, names: Sequence[str], count: int) -> tuple[Arrays, ...]:
    """One batch of outputs per feed.

    Raises:
        ProviderError: the file does not hold as many arrays.
    """
    try:
        with file.open("rb") as stream:
            return tuple({name: np.load(stream, allow_pickle=False) for name in names} for _ in range(count))
    except (OSError, ValueError, EOFError) as error:
        raise ProviderError(f"the outputs that the runner brought back cannot be read: {error}") from None


def files_of(entry: Entry) -> list[str]:
    """The files of a bundle that running one of its graphs needs: the manifest, the model, and its external data."""
    model = entry.graph.model
    beside = [name for name in entry.bundle.manifest.files if name.startswith(f"{model}.")]
    return ["manifest.json", model, *sorted(beside)]
