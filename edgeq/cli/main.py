"""The commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeq import __version__
from edgeq.cli.compare import compare_command
from edgeq.cli.devices import devices_command
from edgeq.cli.options import (
    command,
    data_options,
    default_cache,
    effort_option,
    gate_option,
    places_option,
    print_json,
    source_options,
    wrap_options,
)
from edgeq.cli.run import run_command
from edgeq.cli.targets import targets_group

if TYPE_CHECKING:
    from edgeq.embedding import Embedded
    from edgeq.pipeline import Job

__all__ = ["cli", "main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgeq")
def cli() -> None:
    """Turn a model into a small, fast, proven ONNX package for one edge target.

    SOURCE is model.onnx, module.py:function, program.pt2, a Hugging Face id or folder, or
    example:NAME (efficientnet-lite0, minilm).

    \b
    Example:
      edgeq export example:efficientnet-lite0 --target android
    """


def main() -> None:
    """Entry point of the ``edgeq`` program."""
    cli(prog_name="edgeq")


def _job(json_output: bool, options: dict[str, Any], **more: Any) -> Job:
    """The job that the shared options describe."""
    from edgeq.cli.progress import make_progress
    from edgeq.pipeline import Job
    from edgeq.request import Data, parse_shapes
    from edgeq.wrap import parse_wrap

    data = Data(
        options["calibration"],
        more.pop("evaluation", None),
        more.pop("labels", None),
        more.pop("pairs", None),
        more.pop("metric", None),
        options["samples"],
        options["seed"],
    )
    cache = None if options["no_cache"] else options["cache"] or default_cache()
    return Job(
        options["source"],
        options["target"],
        data=data,
        precision=options["precision"],
        effort=options.get("effort", 0),
        range_method=options["range_method"],
        task=options["task"],
        class_names=options["class_names"],
        fixed_dims=parse_shapes(options["fix"]),
        wrap=parse_wrap(options.get("embed_preprocessing") or False, options.get("embed_postprocessing") or False),
        cache=cache,
        trust_remote_code=options["trust_remote_code"],
        allow_pickle=options["allow_pickle"],
        progress=make_progress(quiet=json_output),
        **more,
    )


@command(cli, name="export")
@source_options
@data_options
@effort_option
@wrap_options
@click.option("--output", "-o", type=click.Path(path_type=Path), help="The bundle's folder [default: NAME-TARGET].")
@click.option("--evaluation", "-e", metavar="DATA", help="Data to measure on [default: held out of --calibration].")
@click.option("--labels", type=click.Path(path_type=Path), help="Labels of --evaluation: JSON, CSV or a class folder.")
@click.option("--pairs", type=click.Path(path_type=Path), help="JSONL of query and document, for retrieval.")
@click.option("--metric", metavar="FILE.py:FUNCTION", help="A metric of your own; it becomes the primary one.")
@click.option("--max-drop", type=float, metavar="POINTS", help="Most to lose, in points of the primary metric.")
@click.option("--min-sqnr", type=float, metavar="DB", help="Least signal-to-noise ratio of the outputs, in dB.")
@click.option("--max-size", metavar="SIZE", help="Largest model file, such as 5MB.")
@click.option("--max-latency", type=float, metavar="MS", help="Longest median inference here, one thread, in ms.")
@click.option("--pick", type=click.IntRange(min=0), metavar="N", help="Take point N of the Pareto front in the report.")
@click.option("--no-bias-correction", is_flag=True, help="Leave biases as they are.")
@click.option("--no-smoothing", is_flag=True, help="Leave outlier channels of activations where they are.")
@click.option("--no-measure", is_flag=True, help="Leave out latency and memory.")
@click.option("--no-fallback", is_flag=True, help="Leave out the second graph that some targets have.")
@places_option
@gate_option
@click.option(
    "--context",
    "contexts",
    multiple=True,
    metavar="CHIP",
    help="Also compile for a chip, such as SM8750, or for several in one file: SM8550,SM8750; repeatable.",
)
@click.option(
    "--embed",
    multiple=True,
    metavar="PLATFORM",
    help="Also make a project for an app build, in OUTPUT-embed (see `edgeq embed`); repeatable.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing bundle.")
def export_command(
    json_output: bool,
    output: Path | None,
    evaluation: str | None,
    labels: Path | None,
    pairs: Path | None,
    metric: str | None,
    max_drop: float | None,
    min_sqnr: float | None,
    max_size: str | None,
    max_latency: float | None,
    pick: int | None,
    no_bias_correction: bool,
    no_smoothing: bool,
    no_measure: bool,
    no_fallback: bool,
    on: tuple[str, ...],
    contexts: tuple[str, ...],
    embed: tuple[str, ...],
    gates: tuple[str, ...],
    overwrite: bool,
    **options: Any,
) -> None:
    """Make a quantized, validated package of SOURCE for one target: the whole job.

    Exit code 7 says that a limit (--max-drop, --min-sqnr, --max-size, --max-latency) is not met, 9 that --gate
    is not passed; the best result is kept beside the output then.

    \b
    Example:
      edgeq export model.onnx --target android --calibration photos/ --max-drop 0.5
    """
    from edgeq.gates import parse_gates
    from edgeq.pipeline import export
    from edgeq.request import Limits, parse_bytes
    from edgeq.sandbox.place import parse_place

    size = None if max_size is None else parse_bytes(max_size)
    limits = Limits(max_drop, min_sqnr, size, max_latency, pick)
    job = _job(
        json_output,
        options,
        evaluation=evaluation,
        labels=labels,
        pairs=pairs,
        metric=metric,
        bias_correction=not no_bias_correction,
        smoothing=not no_smoothing,
        measure=not no_measure,
        with_fallback=not no_fallback,
        gates=parse_gates(gates),
        places=tuple(parse_place(place) for place in on),
        contexts=contexts,
    )
    exported = export(job, output=output, limits=limits, overwrite=overwrite, platforms=embed)
    if json_output:
        projects = [_project(embedded) for embedded in exported.embedded]
        print_json({"bundle": str(exported.path), "report": exported.report, "embedded": projects})
    else:
        from edgeq.cli.render import show_report
        from edgeq.cli.render_embed import show_embedded

        show_report(exported.report, exported.path)
        for embedded in exported.embedded:
            show_embedded(embedded)


@command(cli, name="plan")
@source_options
@data_options
@effort_option
@wrap_options
@click.option("--explain", metavar="NODE", help="Show only what concerns one node or tensor.")
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Show weights, biases and kept trials, too.",
)
@click.option("--sensitivity", is_flag=True, help="Rank groups of nodes by what quantizing each does to the outputs.")
def plan_command(json_output: bool, explain: str | None, everything: bool, sensitivity: bool, **options: Any) -> None:
    """Show what would be done to SOURCE and why, without doing it.

    \b
    Example:
      edgeq plan example:minilm --target linux-x64
    """
    from edgeq.report import plan_row

    job = _job(json_output, options)
    if sensitivity:
        from edgeq.pipeline.mixing import sensitivity_of

        front = sensitivity_of(job)
        if json_output:
            print_json(front)
        else:
            from edgeq.cli.render_front import show_sensitivity

            show_sensitivity(front, job.target.name)
        return
    shaped, chosen = job.packaged_plan(job.schemes[0])
    nodes = {str(node.name): chosen.nodes[str(node.name)] for node in shaped.graph}
    if explain is not None:
        chosen, nodes = _explained(chosen, nodes, explain)
    rows = [plan_row(decision) for decision in chosen]
    if json_output:
        table = list(nodes.values())
        head = {"target": chosen.target, "precision": chosen.scheme.name}
        print_json({**head, "decisions": rows, "nodes": table, "trials": chosen.trials, "notes": chosen.notes})
    else:
        from edgeq.cli.render import show_plan

        show_plan(
            chosen, rows, tuple(nodes.values()), job.target.provider.name, everything=everything or explain is not None
        )


def _explained(chosen: Any, nodes: dict[str, Any], name: str) -> tuple[Any, dict[str, Any]]:
    from dataclasses import replace

    from edgeq.errors import ConfigError

    decisions = tuple(d for d in chosen if name == d.tensor or name in d.consumers)
    kept = {key: value for key, value in nodes.items() if key == name or any(key in d.consumers for d in decisions)}
    if not decisions and not kept:
        raise ConfigError(
            f"the plan knows no node or tensor {name!r}", remedy="run `edgeq plan` without --explain for the names"
        )
    return replace(chosen, decisions=decisions), kept


@command(cli, name="inspect")
@click.argument("source")
@click.option("--target", "-t", help="Also say how each node would run on this target.")
@click.option("--precision", "-p", help="With --target: the precision to judge by [default: the target's first].")
@click.option("--task", help="What the model does; for Hugging Face sources.")
@click.option("--fix", multiple=True, metavar="NAME=SIZE", help="Fix a dynamic dimension; repeatable.")
def inspect_command(
    json_output: bool, source: str, target: str | None, precision: str | None, task: str | None, fix: tuple[str, ...]
) -> None:
    """Describe a model or a bundle: inputs, outputs, operators, size, and what a target would make of it.

    \b
    Example:
      edgeq inspect model.onnx --target android
    """
    from edgeq.cli.progress import make_progress
    from edgeq.inspection import inspect

    found = inspect(source, target, precision, task, fix, make_progress(quiet=json_output))
    if json_output:
        print_json(found)
    else:
        from edgeq.cli.render import show_inspection

        show_inspection(found)


@command(cli, name="calibrate")
@source_options
@data_options
def calibrate_command(json_output: bool, **options: Any) -> None:
    """Gather statistics of SOURCE's activations into the cache, where `edgeq export` finds them.

    \b
    Example:
      edgeq calibrate model.onnx --target android --calibration photos/
    """
    job = _job(json_output, options)
    shaped = job.shaped(job.schemes[0])
    stats = job.statistics(shaped, job.layout(shaped, job.schemes[0]))
    if json_output:
        print_json({name: _stats_row(s) for name, s in stats.items()})
    else:
        from edgeq.cli.render import show_statistics

        show_statistics(stats, job.cache)


def _stats_row(stats: Any) -> dict[str, Any]:
    return {
        "lo": stats.lo,
        "hi": stats.hi,
        "average_lo": stats.average_lo,
        "average_hi": stats.average_hi,
        "values": stats.values,
        "batches": stats.batches,
        "masked": stats.masked,
    }


cli.add_command(run_command)


@command(cli, name="embed")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--platform", "-p", required=True, help="The kind of app build: android, c, ios, python, react-native or web."
)
@click.option("--output", "-o", type=click.Path(path_type=Path), help="The project [default: BUNDLE-embed/PLATFORM].")
@click.option("--name", help="Name of the class or module of the model [default: from the model's name].")
@click.option("--package", help="What the platform calls a package, such as com.example.vision.")
@click.option(
    "--format", "model_format", type=click.Choice(["onnx", "ort"]), help="Format of the model [default: onnx]."
)
@click.option("--abi", "abis", multiple=True, help="Android processor to build for [default: arm64-v8a]; repeatable.")
@click.option("--bench/--no-bench", default=None, help="Add what measures speed on the device [default: no].")
@click.option("--trust-provider", is_flag=True, help="Take the manifest's provider though edgeq does not know it.")
def embed_command(
    json_output: bool, bundle: Path, platform: str, output: Path | None, abis: tuple[str, ...], **options: Any
) -> None:
    """Make a project for an app build of BUNDLE, or bring one up to date.

    Options that are left out are what they were for the project before. Files that you edited are kept; where the
    new version differs, it is put beside them as NAME.new.

    \b
    Example:
      edgeq embed efficientnet-lite0-android --platform android --package com.example.vision
    """
    from edgeq.api import embed

    embedded = embed(bundle, platform=platform, output=output, abis=abis or None, **options)
    if json_output:
        print_json(_project(embedded))
    else:
        from edgeq.cli.render_embed import show_embedded

        show_embedded(embedded)


def _project(embedded: Embedded) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(embedded), "path": str(embedded.path), "sizes": embedded.sizes}


cli.add_command(targets_group)
cli.add_command(compare_command)
cli.add_command(devices_command)


@command(cli, name="doctor")
@click.option(
    "--install-provider", "names", multiple=True, metavar="NAME", help="Fetch this sandbox into the cache; repeatable."
)
def doctor_command(json_output: bool, names: tuple[str, ...]) -> None:
    """Check this installation: versions, extras, execution providers, sandboxes, devices, processor.

    Sandboxes hold the real providers and compilers that packages are checked with, each in an
    environment of its own.

    \b
    Example:
      edgeq doctor --install-provider openvino
    """
    from edgeq.doctor import examine, install_sandbox

    if names:
        from edgeq.cli.progress import make_progress

        progress = make_progress(quiet=json_output)
        checks = tuple(install_sandbox(name, progress, lambda line: click.echo(line, err=True)) for name in names)
    else:
        checks = examine()
    if json_output:
        print_json(checks)
    else:
        from edgeq.cli.render import show_checks

        show_checks(checks)
    if any(check.state == "broken" for check in checks):
        raise SystemExit(1)
