"""The command that validates a bundle, on this machine or on devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeq.cli.options import (
    command,
    device_options,
    gate_option,
    places_option,
    print_json,
    refuse_device_options,
)

if TYPE_CHECKING:
    from edgeq.device_checks import DeviceLimits
    from edgeq.pipeline import EvaluationData
    from edgeq.progress import Progress

__all__ = ["run_command"]


_SESSIONS = 8
"""Processes that are measured where times are to be compared with others."""


@command(None, name="run")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--reference", type=click.Path(path_type=Path), help="The float model to compare with.")
@click.option("--threads", type=click.IntRange(min=0), default=1, show_default=True, help="0: all cores.")
@click.option("--tolerance", type=float, default=3.0, show_default=True, metavar="DB", help="Loss of SQNR allowed.")
@click.option("--report", "folder", type=click.Path(path_type=Path), help="Write the report's files here.")
@click.option("--trust-provider", is_flag=True, help="Load the manifest's provider though edgeq does not know it.")
@places_option
@gate_option
@device_options
def run_command(
    json_output: bool,
    bundle: Path,
    reference: Path | None,
    threads: int,
    tolerance: float,
    folder: Path | None,
    trust_provider: bool,
    on: tuple[str, ...],
    gates: tuple[str, ...],
    devices: tuple[str, ...],
    **options: Any,
) -> None:
    """Validate BUNDLE: files, outputs, placement, latency and memory, on this machine or on devices.

    Without --device it runs in this process, and each graph of it on its own provider, where that is installed
    and quick, and where --on says. With --device the bundle runs on each device and is judged there; see
    `edgeq devices`. Exit code 6 says that a file was changed or that the outputs are not what they were, 7 that
    --max-latency-ms or --max-regression is not met, 9 that --gate is not passed.

    \b
    Example:
      edgeq run efficientnet-lite0-android --device local --device qemu:cortex-a53
    """
    from edgeq.cli.progress import make_progress

    progress = make_progress(quiet=json_output)
    if devices:
        shared = {"threads": threads, "tolerance_db": tolerance, "reference": reference, **options}
        refuse = {"--on": on, "--gate": gates}
        _run_on_devices(bundle, devices, shared, refuse, folder, trust_provider, progress, json_output)
        return
    refuse_device_options()
    from edgeq.api import run

    found = run(
        bundle,
        reference=reference,
        threads=threads,
        tolerance_db=tolerance,
        on=on,
        gates=gates,
        trust_provider=trust_provider,
        report_folder=folder,
        progress=progress,
    )
    if json_output:
        print_json(found)
    else:
        from edgeq.cli.render import show_report

        show_report(found, folder)


def _run_on_devices(
    bundle: Path,
    devices: Sequence[str],
    options: dict[str, Any],
    refused: Mapping[str, Any],
    folder: Path | None,
    trust_provider: bool,
    progress: Progress,
    json_output: bool,
) -> None:
    """One table or JSON; the exit code is that of the first device that failed.

    ``options`` are those of ``DeviceOptions``; ``refused`` holds options that go with no device, by their names.
    """
    from edgeq.errors import ConfigError
    from edgeq.junit import junit_xml
    from edgeq.output import check_writable
    from edgeq.pipeline import DeviceOptions
    from edgeq.pipeline import run_on_devices as carry_out

    for option, value in refused.items():
        if value:
            raise ConfigError(
                f"{option} is for a run on this machine without --device", remedy="leave out one of the two"
            )
    baseline, stored, junit = (options.pop(name) for name in ("baseline", "save_baseline", "junit"))
    for file in (stored, junit):
        if file is not None:
            check_writable(file.parent)
    limits = _limits(options, baseline)
    latency, data = not options.pop("no_latency"), _evaluation(options)
    sessions = options.pop("sessions") or (_SESSIONS if baseline is not None or stored is not None else 1)
    report = carry_out(
        bundle,
        devices,
        DeviceOptions(latency=latency, sessions=sessions, data=data, **options),
        report_folder=folder,
        trust_provider=trust_provider,
        limits=limits,
        baseline=baseline,
        progress=progress,
    )
    _write(stored, report.to_json())
    _write(junit, junit_xml(report))
    if json_output:
        print_json(report)
    else:
        from edgeq.cli.render_device_report import show_device_report

        show_device_report(report, folder)
    if code := next((result.exit_code for result in report.results if result.exit_code), 0):
        raise SystemExit(code)


def _limits(options: dict[str, Any], baseline: Path | None) -> DeviceLimits:
    """Takes what belongs to them out of ``options``."""
    from edgeq.device_checks import DeviceLimits
    from edgeq.errors import ConfigError
    from edgeq.request import parse_percent

    regression, latency, fail_if = (options.pop(name) for name in ("max_regression", "max_latency_ms", "fail_if"))
    if regression is not None and baseline is None:
        raise ConfigError(
            "--max-regression needs something to compare with",
            remedy="add --baseline: a file of `edgeq run --save-baseline FILE`, or the bundle of before",
        )
    return DeviceLimits(
        max_latency_ms=latency,
        max_regression=None if regression is None else parse_percent(regression),
        fail_if_undecided="cannot-tell" in fail_if,
    )


def _write(path: Path | None, text: bytes) -> None:
    from edgeq.output import atomic_file

    if path is not None:
        with atomic_file(path) as work:
            work.write_bytes(text)


def _evaluation(options: dict[str, Any]) -> EvaluationData | None:
    """Takes its own out of ``options``."""
    from edgeq.errors import ConfigError
    from edgeq.pipeline import EvaluationData

    data, names = options.pop("evaluation"), ("labels", "reference", "samples")
    labels, reference, samples = (options.pop(name) for name in names)
    if data is not None:
        return EvaluationData(data, labels, reference, samples)
    for name, value in zip(names, (labels, reference, samples), strict=True):
        if value is not None:
            raise ConfigError(
                f"with --device, --{name} goes with --evaluation",
                remedy="leave it out, or give --evaluation; `edgeq compare` measures two models against each other",
            )
    return None
