"""A bundle on devices: each runs it, all are judged the same way, and one report holds what they gave."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import cast

import msgspec

import edgeq
from edgeq.bundle import Bundle, GraphEntry, read_bundle
from edgeq.device_checks import REGRESSION, DeviceLimits, against_baseline, read_baseline, with_checks
from edgeq.device_latency import summarize_runs
from edgeq.device_report import DeviceCheck, DeviceInfo, DeviceReport, DeviceResult, Kind
from edgeq.devices.processes import end_processes
from edgeq.devices.protocol import Device, Entry, Job
from edgeq.devices.registry import parse_device
from edgeq.devices.stream import stream
from edgeq.errors import ConfigError, EdgeqError, MissingProviderError, OutputError
from edgeq.output import atomic_file, check_writable
from edgeq.pipeline.comparing import Effort, compare_on
from edgeq.pipeline.contenders import Contender, feed, open_contender
from edgeq.pipeline.device_data import EvaluationData
from edgeq.progress import Progress, Silent
from edgeq.report import Finding
from edgeq.stages.package import render_devices_html
from edgeq.stages.run.node_timing import named_after
from edgeq.stages.run.on_device import References, judge_device
from edgeq.stages.run.validate import load_samples
from edgeq.trust import check_providers

__all__ = ["REPORT_FILE", "DeviceOptions", "EvaluationData", "run_on_devices"]

REPORT_FILE = "device-report.json"
PAGE_FILE = "device-report.html"

_MOST_RUNS = 200_000
"""Runs of a tiny model in the time that was asked for: each of them is told."""

_EMULATED_RUNS = 3
"""Runs that are timed under emulation unless more are asked for: their times say nothing."""


@dataclass(frozen=True)
class DeviceOptions:
    """How a bundle is run; None leaves it to what suits the device. See ``Job``.

    ``tolerance_db``: how far an output's SQNR may stay behind the manifest's. ``sessions``: processes that it is
    measured in; the first also gives the outputs. ``data``: a data set to measure accuracy on besides.
    """

    threads: int = 1
    cores: str = "all"
    seconds: float | None = None
    runs: int | None = None
    warmup_runs: int | None = None
    latency: bool = True
    profile: bool = False
    tolerance_db: float = 3.0
    timeout_s: float = 600.0
    sessions: int = 1
    data: EvaluationData | None = None

    def job(self, *, emulated: bool) -> Job:
        """Without entries and feeds."""
        job = Job(
            (), (), self.threads, self.cores, measure=self.latency, profile=self.profile, timeout_s=self.timeout_s
        )
        if emulated:
            job = replace(job, min_runs=_EMULATED_RUNS, seconds=0.0, warmup_runs=1, warmup_s=0.0)
        if self.runs is not None:
            job = replace(job, min_runs=self.runs, max_runs=self.runs, seconds=0.0)
        if self.seconds is not None:
            job = replace(job, seconds=self.seconds, max_runs=self.runs or _MOST_RUNS)
        return job if self.warmup_runs is None else replace(job, warmup_runs=self.warmup_runs)


def run_on_devices(
    path: str | os.PathLike[str],
    devices: Sequence[str],
    options: DeviceOptions,
    *,
    report_folder: str | os.PathLike[str] | None = None,
    trust_provider: bool = False,
    limits: DeviceLimits | None = None,
    baseline: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> DeviceReport:
    """Run a bundle's samples on devices and judge what comes back; see ``edgeq.run_on_devices``.

    Devices of different machines work at the same time, those of one machine one after another. One that cannot
    be used, or fails, has an ``error`` in its result; the others go on.
    """
    found = [parse_device(name) for name in dict.fromkeys(devices)]
    if not found:
        raise ConfigError("no device is named", remedy="give --device, such as --device local; see `edgeq devices`")
    if report_folder is not None:
        check_writable(report_folder)
    limits = limits or DeviceLimits()
    limits.check_measured(latency=options.latency)
    bundle = read_bundle(path)
    if not trust_provider:
        check_providers(bundle)
    load_samples(bundle)
    if options.data is not None:
        options.data.check(bundle)
    progress = progress or Silent()
    with tempfile.TemporaryDirectory(prefix="edgeq-") as scratch:
        compare = _comparison(bundle, baseline, options, trust_provider, Path(scratch))
        progress.start(f"running on {', '.join(device.spelling for device in found)}", len(found))

        def run(device: Device) -> DeviceResult:
            result = run_on_device(bundle, device, options)
            if result.error is None:
                result = compare(device, result)
            progress.advance()
            return with_checks(result, limits)

        try:
            results = _by_machine(found, run)
        finally:
            progress.finish()
    manifest = bundle.manifest
    report = DeviceReport(
        edgeq=edgeq.__version__,
        name=manifest.name,
        target=manifest.target,
        precision=manifest.precision,
        results=tuple(results),
    )
    if report_folder is not None:
        _write(Path(report_folder), report)
    return report


def _comparison(
    bundle: Bundle,
    baseline: str | os.PathLike[str] | None,
    options: DeviceOptions,
    trust_provider: bool,
    scratch: Path,
) -> Callable[[Device, DeviceResult], DeviceResult]:
    """What adds to a result how it differs from the baseline: a report that was stored, or another model to run."""
    if baseline is None:
        return lambda _, result: result
    path = Path(baseline)
    if not path.is_dir() and path.suffix != ".onnx":
        stored = read_baseline(path)
        return lambda _, result: against_baseline(result, stored)
    before = open_contender(path, scratch / "baseline", trust_provider=trust_provider)
    now = Contender(bundle, bare=False)
    fed = feed(before, now, {})
    effort = Effort(
        options.sessions, options.seconds or Effort.seconds, options.threads, options.cores, timeout_s=options.timeout_s
    )

    def in_turn(device: Device, result: DeviceResult) -> DeviceResult:
        if result.device.emulated:
            return result
        found = compare_on(device, before, now, fed, effort, Silent())
        if found.error is None:
            return msgspec.structs.replace(result, regression=found.difference)
        check = DeviceCheck(name=REGRESSION, state="error", text=f"the baseline: {found.error}")
        return msgspec.structs.replace(result, checks=(check,))

    return in_turn


def _by_machine(devices: Sequence[Device], run: Callable[[Device], DeviceResult]) -> list[DeviceResult]:
    """In the order of ``devices``; two of one machine would disturb each other's times."""
    groups: dict[str, list[Device]] = {}
    for device in devices:
        groups.setdefault(device.machine, []).append(device)
    found: dict[str, DeviceResult] = {}

    stopped = Event()

    def run_group(group: Sequence[Device]) -> None:
        for device in group:
            if not stopped.is_set():
                found[device.spelling] = run(device)

    if len(groups) == 1:
        run_group(devices)
        return [found[device.spelling] for device in devices]
    with ThreadPoolExecutor(len(groups)) as pool:
        running = [pool.submit(run_group, group) for group in groups.values()]
        try:
            for one in running:
                one.result()
        except BaseException:  # Ctrl-C comes to this thread alone: the others clean up once their programs are ended
            stopped.set()
            end_processes()
            raise
    return [found[device.spelling] for device in devices]


def run_on_device(bundle: Bundle, device: Device, options: DeviceOptions) -> DeviceResult:
    """One device's result: of the fallback graph where it lacks the provider of the first, if there is one."""
    first = bundle.manifest.main
    try:
        if why := device.missing():
            return _failed(device, first, MissingProviderError(f"it cannot be used: {why}"))
        info = device.describe()
        try:
            return _run_graph(bundle, first, device, info, options)
        except MissingProviderError as error:
            if bundle.manifest.fallback is None:
                raise
            result = _run_graph(bundle, bundle.manifest.fallback, device, info, options)
            text = f"the fallback for {bundle.manifest.fallback.target} ran, since {error.what}"
            finding = Finding(severity="warning", text=text, remedy=error.remedy)
            return msgspec.structs.replace(result, findings=(finding, *result.findings))
    except EdgeqError as error:
        return _failed(device, first, error)


def _run_graph(
    bundle: Bundle, graph: GraphEntry, device: Device, info: DeviceInfo, options: DeviceOptions
) -> DeviceResult:
    inputs, outputs, samples = load_samples(bundle)
    entry = Entry(graph.target, bundle, graph)
    job = replace(options.job(emulated=info.emulated), entries=(entry,), feeds=tuple(inputs))
    outcome = device.run(job)
    text, boxes = f"the bundle's {samples.count} samples", bundle.manifest.interface.boxes
    references = References(inputs, outputs, text, boxes)
    result = judge_device(outcome, outcome.runs[0], graph, references, tolerance_db=options.tolerance_db)
    if options.data is not None:
        metrics = options.data.measure(bundle, lambda batches: stream(device, job, batches))
        result = msgspec.structs.replace(result, metrics=(*result.metrics, *metrics))
    if result.nodes:
        result = msgspec.structs.replace(result, nodes=named_after(result.nodes, bundle.path / graph.model))
    if options.sessions == 1 or not options.latency:
        return result
    again = replace(job, feeds=job.feeds[:1], profile=False)
    runs = [outcome.runs[0], *(device.run(again).runs[0] for _ in range(options.sessions - 1))]
    return msgspec.structs.replace(result, latency=summarize_runs(runs, emulated=info.emulated))


def _failed(device: Device, graph: GraphEntry, error: EdgeqError) -> DeviceResult:
    kind = cast(Kind, device.spelling.partition(":")[0])
    return DeviceResult(
        device=DeviceInfo(spelling=device.spelling, kind=kind),
        target=graph.target,
        precision=graph.precision,
        error=error.what if error.where is None else f"{error.what} ({error.where})",
        remedy=error.remedy,
        exit_code=error.exit_code,
    )


def _write(folder: Path, report: DeviceReport) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create the report's folder: {error.strerror}", where=str(folder)) from None
    with atomic_file(folder / REPORT_FILE) as work:
        work.write_bytes(report.to_json())
    with atomic_file(folder / PAGE_FILE) as work:
        work.write_text(render_devices_html(report), encoding="utf-8")
