"""The command that compares two models on devices."""

from __future__ import annotations

from pathlib import Path

import click

from edgeq.cli.options import command, print_json

__all__ = ["compare_command"]


@command(None, name="compare")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--device", "-d", "devices", multiple=True, default=("local",), metavar="DEVICE", help="Repeatable.")
@click.option("--threads", type=click.IntRange(min=0), default=1, show_default=True, help="0: all cores.")
@click.option("--cores", default="all", show_default=True, metavar="CORES", help="all, big, little, or 0,4-7.")
@click.option("--sessions", type=click.IntRange(min=4), default=8, show_default=True, help="Processes to run both in.")
@click.option("--seconds", type=float, default=1.0, show_default=True, help="How long each runs in a process.")
@click.option(
    "--min-difference", default="2%", show_default=True, metavar="PERCENT", help="The least difference that matters."
)
@click.option(
    "--by",
    type=click.Choice(["auto", "wall", "cpu"]),
    default="auto",
    show_default=True,
    help="The time that decides; auto: CPU time with one thread on a CPU, else wall time.",
)
@click.option(
    "--fail-if",
    "fail_if",
    multiple=True,
    type=click.Choice(["slower", "cannot-tell"]),
    help="Exit code 7 if B is; repeatable.",
)
@click.option("--fix", multiple=True, metavar="NAME=SIZE", help="Size of a dynamic dimension, for ONNX files.")
@click.option("--report", "folder", type=click.Path(path_type=Path), help="Write compare.json and compare.html here.")
@click.option("--trust-provider", is_flag=True, help="Load a manifest's provider though edgeq does not know it.")
def compare_command(
    json_output: bool,
    a: Path,
    b: Path,
    devices: tuple[str, ...],
    threads: int,
    cores: str,
    sessions: int,
    seconds: float,
    min_difference: str,
    by: str,
    fail_if: tuple[str, ...],
    fix: tuple[str, ...],
    folder: Path | None,
    trust_provider: bool,
) -> None:
    """Say whether B is faster or slower than A, or that it cannot be told.

    A and B are bundles or .onnx files with the same inputs. They take turns, one run each, in several processes;
    the interval holds the true ratio of their times with 95 % confidence. Size and accuracy stand beside it.

    \b
    Example:
      edgeq compare model-android-old model-android --device local --fail-if slower
    """
    from edgeq.cli.progress import make_progress
    from edgeq.devices.registry import parse_device
    from edgeq.output import check_writable
    from edgeq.pipeline.comparing import Effort, compare, write_comparison
    from edgeq.request import parse_percent, parse_shapes

    effort = Effort(
        sessions=sessions,
        seconds=seconds,
        threads=threads,
        cores=cores,
        min_difference=parse_percent(min_difference),
        by=None if by == "auto" else by,  # type: ignore[arg-type]
        sizes=parse_shapes(fix),
    )
    chosen = [parse_device(text) for text in devices]
    progress = make_progress(quiet=json_output)
    if folder is not None:
        check_writable(folder)
    report = compare(a, b, chosen, effort, trust_provider=trust_provider, progress=progress)
    if folder is not None:
        write_comparison(folder, report)
    if json_output:
        print_json(report)
    else:
        from edgeq.cli.render_compare import show_comparison

        show_comparison(report, folder)
    code = report.exit_code(frozenset(fail_if))
    if code:
        raise SystemExit(code)
