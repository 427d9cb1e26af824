"""The browser as a device: onnxruntime-web in a headless Chromium of this machine, on WebAssembly or WebGPU.

One page runs all models of a job in turns. It is isolated from other origins, so that it may have threads,
a clock with steps of 5 microseconds and its memory told.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from edgeq.device_report import DeviceInfo
from edgeq.devices.made_for import made_for
from edgeq.devices.protocol import THIS_MACHINE, Entry, Job, ModelRun, Outcome
from edgeq.devices.web_profile import read_web_profile
from edgeq.errors import ConfigError, ModelError, ProviderError
from edgeq.machine import describe_machine
from edgeq.progress import Progress, Silent
from edgeq.sandbox import Task
from edgeq.sandbox.browser import Backend, missing_parts, open_browser, remedy_for_missing
from edgeq.sandbox.process import DeadWorkerError, Worker, load_arrays, save_arrays
from edgeq.sandbox.widened import widen
from edgeq.target import Provider

__all__ = ["BrowserDevice", "find_browsers"]

_PROVIDERS: dict[Backend, str] = {"wasm": "CPUExecutionProvider", "webgpu": "WebGpuExecutionProvider"}
_TARGETS: dict[Backend, str] = {"wasm": "web", "webgpu": "web-gpu"}
_ABOUT_S = 60.0
_PROFILE = {"least": 5, "ms": 500, "most": 50}


class _Adapter(msgspec.Struct, frozen=True):
    """The GPU as WebGPU names it; ``software``: the processor computes its work."""

    name: str
    software: bool
    float16: bool


class _Page(msgspec.Struct, frozen=True):
    """What the page tells of itself."""

    version: str
    isolated: bool
    cores: int
    adapter: _Adapter | None = None


class _Run(msgspec.Struct, frozen=True):
    """What the page did with one entry."""

    names: tuple[str, ...]
    load_ms: float
    first_ms: float
    assigned: dict[str, str] | None = None
    warmup_runs: int = 0
    wall_ms: tuple[float, ...] = ()
    events: str | None = None


class _Answer(msgspec.Struct, frozen=True):
    """What the page did with a job; memory in bytes, before the models and after all runs."""

    status: str
    reason: str = ""
    entry: int | None = None
    version: str = ""
    runs: tuple[_Run, ...] = ()
    runtime_ms: float | None = None
    baseline: float | None = None
    peak: float | None = None


@dataclass(frozen=True)
class BrowserDevice:
    """``browser:wasm`` or ``browser:webgpu``, which takes the machine's GPU, or else SwiftShader for one."""

    backend: Backend

    @classmethod
    def parse(cls, value: str) -> BrowserDevice:
        """``""`` and ``"wasm"`` -> WebAssembly, ``"webgpu"`` -> WebGPU; raises ConfigError for anything else."""
        if value not in ("", *_PROVIDERS):
            raise ConfigError(f"a browser has no {value!r}", remedy="write browser:wasm or browser:webgpu")
        return cls("webgpu" if value == "webgpu" else "wasm")

    @property
    def spelling(self) -> str:
        return f"browser:{self.backend}"

    @property
    def machine(self) -> str:
        return THIS_MACHINE

    def missing(self) -> str | None:
        why = missing_parts()
        return why and f"{why}: {remedy_for_missing(self.backend)}"

    def describe(self) -> DeviceInfo:
        """Opens an empty page, which takes a second or two.

        Raises:
            ProviderError: a part is missing, the browser does not start, or it offers no WebGPU.
        """
        with open_browser(self.backend) as worker:
            return self._described(_about(worker))

    def run(self, job: Job, progress: Progress | None = None) -> Outcome:
        """See ``Device.run``. Models with 16-bit floats are widened for a GPU that has none, and a note says so."""
        progress = progress or Silent()
        with open_browser(self.backend) as worker, tempfile.TemporaryDirectory(prefix="edgeq-device-") as folder:
            page = _about(worker)
            info = self._described(page)
            progress.start(f"running on {self.spelling}", None)
            if info.emulated:  # seconds per run, that say nothing
                job = replace(job, measure=False, profile=False)
            try:
                tasks = [self._task(entry) for entry in job.entries]
                narrow = page.adapter is not None and not page.adapter.float16
                taken = widen(tasks, Path(folder)) if narrow else tasks
                threads = job.threads or page.cores
                answer = _ask(worker, _request(job, taken, threads, Path(folder)), job)
                if answer.status != "ran":
                    raise self._refused(answer, job)
                widened = [entry for entry, a, b in zip(job.entries, tasks, taken, strict=True) if a.model != b.model]
                return Outcome(
                    info,
                    answer.version,
                    tuple(self._model_run(job, number, answer, Path(folder)) for number in range(len(taken))),
                    threads,
                    notes=tuple(self._notes(answer, job, page, threads, widened)),
                )
            finally:
                progress.finish()

    def _described(self, page: _Page) -> DeviceInfo:
        machine = describe_machine()
        gpu = page.adapter if self.backend == "webgpu" else None
        if self.backend == "webgpu" and gpu is None:
            raise ProviderError(
                f"{page.version} offers no WebGPU on this machine",
                remedy="use a Chromium or Chrome with SwiftShader or a graphics driver, or run it on browser:wasm",
            )
        return DeviceInfo(
            spelling=self.spelling,
            kind="browser",
            model=page.version.rpartition(", ")[2],
            soc=gpu.name if gpu else machine.cpu,
            abi="wasm32",
            os=machine.os,
            cores=page.cores,
            emulated=gpu is not None and gpu.software,
            providers=tuple(dict.fromkeys((_PROVIDERS[self.backend], "CPUExecutionProvider"))),
        )

    def _task(self, entry: Entry) -> Task:
        """The graph with the settings that were made for this provider; those for others mean nothing here."""
        name, made = _PROVIDERS[self.backend], entry.graph.provider
        own = made_for(entry, name, self.spelling, _TARGETS[self.backend])
        provider = Provider(
            name=name,
            package="onnxruntime-web",
            version=made.version,
            options=made.options if own else {},
            session=made.session if own else {},
        )
        return Task(entry.bundle.file(entry.graph.model), provider)

    def _model_run(self, job: Job, number: int, answer: _Answer, folder: Path) -> ModelRun:
        run, alone = answer.runs[number], len(job.entries) == 1
        return ModelRun(
            job.entries[number].name,
            _PROVIDERS[self.backend],
            load_ms=run.load_ms if job.measure else None,
            first_ms=run.first_ms if job.measure else None,
            warmup_runs=run.warmup_runs,
            wall_ms=run.wall_ms,
            peak_mb=_megabytes(answer.peak) if alone else None,
            baseline_mb=_megabytes(answer.baseline) if alone else None,
            nodes=read_web_profile(run.events) if run.events is not None else (),
            assigned=run.assigned,
            outputs=tuple(load_arrays(folder / _output(number, feed), run.names) for feed in range(len(job.feeds))),
        )

    def _notes(self, answer: _Answer, job: Job, page: _Page, threads: int, widened: Sequence[Entry]) -> list[str]:
        notes = [f"floats of {entry.name} widened to 32 bits, as the GPU has no others" for entry in widened]
        if self.backend == "webgpu" and page.adapter is not None and page.adapter.software:
            notes.append(f"times and memory: n/a, as this machine's processor computes the GPU ({page.adapter.name})")
        if answer.runtime_ms is not None and len(job.entries) == 1:
            notes.append(f"onnxruntime-web itself took {answer.runtime_ms:.0f} ms to start, once per page")
        if answer.peak is not None and len(job.entries) == 1:
            notes.append(
                "memory is what the browser counts for the page, WebAssembly included, before the model and after "
                "its runs; not the browser's own, nor the GPU's"
            )
        if job.measure and threads > 1:
            notes.append("memory: n/a, as threads that wait for work do not answer the browser")
        if job.cores != "all":
            notes.append(f"cores: all instead of {job.cores}, as a page cannot be pinned to some")
        return notes

    def _refused(self, answer: _Answer, job: Job) -> ModelError:
        entry = job.entries[answer.entry] if answer.entry is not None else None
        return ModelError(
            answer.reason or "refused without a reason",
            where=str(entry.bundle.path / entry.graph.model) if entry else None,
            remedy="see that onnxruntime-web knows every operator and type of the model, or package it for "
            f"{_TARGETS[self.backend]}",
        )


def find_browsers() -> list[BrowserDevice]:
    """Both backends; raises ProviderError where a part is missing, once for both."""
    if why := missing_parts():
        raise ProviderError(why, remedy=remedy_for_missing("wasm"))
    return [BrowserDevice("wasm"), BrowserDevice("webgpu")]


def _about(worker: Worker) -> _Page:
    try:
        return msgspec.convert(worker.ask({"about": True}, _ABOUT_S), _Page)
    except DeadWorkerError as error:
        raise ProviderError(
            f"the browser does not show a page: {error}", remedy="see whether it starts by hand with --headless=new"
        ) from None


def _ask(worker: Worker, request: Mapping[str, Any], job: Job) -> _Answer:
    try:
        return msgspec.convert(worker.ask(request, job.timeout_s), _Answer)
    except DeadWorkerError as error:
        raise ProviderError(
            f"the browser gave no result: {error}",
            remedy="free memory, or take a smaller model, fewer runs or a longer time limit",
        ) from None


def _request(job: Job, tasks: Sequence[Task], threads: int, folder: Path) -> dict[str, Any]:
    feeds = []
    for number, feed in enumerate(job.feeds):
        file = folder / f"in{number}.npz"
        if problem := save_arrays(file, feed):
            raise ConfigError(problem)
        feeds.append({"file": str(file), "names": list(feed)})
    return {
        "entries": [
            {
                "model": str(task.model.resolve()),
                "provider": msgspec.to_builtins(task.provider),
                "feeds": [{"output": str(folder / _output(number, feed))} for feed in range(len(feeds))],
            }
            for number, task in enumerate(tasks)
        ],
        "feeds": feeds,
        "arguments": {"threads": str(threads)},
        "measure": {
            "warmup_runs": job.warmup_runs,
            "warmup_ms": 1000 * job.warmup_s,
            "min_runs": job.min_runs,
            "ms": 1000 * job.seconds,
            "max_runs": job.max_runs,
        }
        if job.measure
        else None,
        "profile": _PROFILE if job.profile else None,
    }


def _output(entry: int, feed: int) -> str:
    return f"out{entry}-{feed}.npz"


def _megabytes(size: float | None) -> float | None:
    return None if size is None else size / 1e6
