"""Options that several commands share, and the one place where errors become exit codes."""

from __future__ import annotations

import functools
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from edgeq.errors import ConfigError, EdgeqError
from edgeq.resources import cache_folder as default_cache

__all__ = [
    "INTERRUPTED",
    "command",
    "data_options",
    "default_cache",
    "device_options",
    "effort_option",
    "gate_option",
    "places_option",
    "print_json",
    "refuse_device_options",
    "source_options",
    "wrap_options",
]

Command = Callable[..., None]

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def command(group: click.Group | None, **attributes: Any) -> Callable[[Command], click.Command]:
    """``@group.command`` with ``--json`` and ``--verbose``, and errors turned into text and an exit code.

    Without a group, the command is to be added to one.
    """

    def decorate(function: Command) -> click.Command:
        @functools.wraps(function)
        def run(*, json_output: bool, verbose: bool, **arguments: Any) -> None:
            logging.basicConfig(
                level=logging.INFO if verbose else logging.WARNING,
                format="%(levelname)s: %(message)s",
                stream=sys.stderr,
            )
            try:
                function(json_output=json_output, **arguments)
            except EdgeqError as error:
                _fail(error, json_output=json_output)
            except KeyboardInterrupt:
                click.echo(f"\n{_interrupted(arguments)}", err=True)
                raise SystemExit(INTERRUPTED) from None
            except BrokenPipeError:  # the reader of our output has gone, as `| head` does
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise SystemExit(1) from None
            except Exception as error:
                logging.getLogger(__name__).info("the traceback:", exc_info=True)
                _fail(_unexpected(error), json_output=json_output)

        wrapped = click.option("--verbose", "-v", is_flag=True, help="Say more on stderr.")(run)
        wrapped = click.option("--json", "json_output", is_flag=True, help="Print the result as JSON on stdout.")(
            wrapped
        )
        return (group or click).command(**attributes)(wrapped)

    return decorate


def _interrupted(arguments: Mapping[str, Any]) -> str:
    """What is left of a command after Ctrl-C: those that calibrate have a cache, unless they were told to use none."""
    if "no_cache" not in arguments:
        return "Interrupted."
    cached = "" if arguments["no_cache"] else " Calibration goes on from its cache next time."
    return f"Interrupted: nothing was written.{cached}"


def _fail(error: EdgeqError, *, json_output: bool) -> None:
    if json_output:
        print_json({"error": type(error).__name__, "what": error.what, "where": error.where, "remedy": error.remedy})
    else:
        click.echo(click.style("Error: ", fg="red", bold=True) + str(error), err=True)
    raise SystemExit(error.exit_code)


def _unexpected(error: Exception) -> EdgeqError:
    """A fault of edgeq's own, told like any other error; ``--verbose`` adds the traceback."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return EdgeqError(
        f"edgeq failed unexpectedly: {type(error).__name__}: {error}",
        where=f"{Path(place.filename).name}, line {place.lineno}",
        remedy="this is a bug: run the same command with --verbose, and report what it prints",
    )


def print_json(value: Any) -> None:
    """A value of plain types, or a msgspec struct, as indented JSON on stdout."""
    from edgeq.report import encode

    sys.stdout.buffer.write(encode(value))
    sys.stdout.buffer.flush()


def places_option(function: Command) -> Command:
    """``--on PLACE``, repeatable."""
    text = "Run the package there as well: qnn, arm64:cortex-a53, ...; repeatable."
    return click.option("--on", multiple=True, metavar="PLACE", help=text)(function)


def source_options(function: Command) -> Command:
    """SOURCE, ``--target`` and what belongs to them."""
    decorators = (
        click.argument("source"),
        click.option("--target", "-t", required=True, help="Target name (see `edgeq targets`) or profile file."),
        click.option("--precision", "-p", help="Such as w8a8, w8a16, w4 [default: the target's, cheapest first]."),
        click.option("--task", help="What the model does, such as image-classification or feature-extraction."),
        click.option(
            "--class-names",
            type=click.Path(path_type=Path),
            help="Names of the classes, one a line, where the source brings none.",
        ),
        click.option("--fix", multiple=True, metavar="NAME=SIZE", help="Fix a dynamic dimension; repeatable."),
        click.option("--trust-remote-code", is_flag=True, help="Run Python code that a Hugging Face model brings."),
        click.option("--allow-pickle", is_flag=True, help="Load weights that exist only as pickles."),
    )
    return _apply(decorators, function)


def data_options(function: Command) -> Command:
    """Calibration data, the range method and the cache."""
    decorators = (
        click.option(
            "--calibration",
            "-c",
            metavar="DATA",
            help="Folder of pictures, .npy/.npz, .jsonl, or a recipe (name or .toml).",
        ),
        click.option("--samples", "-n", type=click.IntRange(min=1), help="How many calibration samples to use."),
        click.option("--seed", type=int, help="For drawing the samples."),
        click.option(
            "--range-method",
            type=click.Choice(["mse", "minmax", "average", "percentile", "entropy"]),
            default="mse",
            show_default=True,
            help="How ranges follow from statistics.",
        ),
        click.option(
            "--cache", type=click.Path(path_type=Path), help="Folder for statistics [default: ~/.cache/edgeq]."
        ),
        click.option("--no-cache", is_flag=True, help="Keep no statistics."),
    )
    return _apply(decorators, function)


def effort_option(function: Command) -> Command:
    """``--effort``."""
    text = "0: from statistics, in seconds; 1: also measured block after block, minutes; 2: also learned (torch)."
    return click.option("--effort", type=click.IntRange(0, 2), default=1, show_default=True, help=text)(function)


def wrap_options(function: Command) -> Command:
    """``--embed-preprocessing [SIZE]`` and ``--embed-postprocessing [LAYOUT,NUMBERS]``."""
    decorators = (
        click.option(
            "--embed-preprocessing",
            is_flag=False,
            flag_value="any",
            metavar="[HxW]",
            help="Take raw uint8 pixels and prepare them in the graph: of any size, or of one, such as 480x640.",
        ),
        click.option(
            "--embed-postprocessing",
            is_flag=False,
            flag_value="auto",
            metavar="[LAYOUT,NUMBERS]",
            help="Give the best classes, pooled and normalized embeddings, or boxes (yolov8,score=0.25,...).",
        ),
    )
    return _apply(decorators, function)


def gate_option(function: Command) -> Command:
    """``--gate``, repeatable."""
    option = click.option(
        "--gate",
        "gates",
        multiple=True,
        type=click.Choice(["unfused", "fallback", "leftover", "all"]),
        help="Fail if nodes run like this; repeatable.",
    )
    return option(function)


def device_options(function: Command) -> Command:
    """``--device`` and what goes with it."""
    decorators = (
        click.option(
            "--device", "-d", "devices", multiple=True, metavar="DEVICE", help="Run it on this device; repeatable."
        ),
        click.option("--cores", default="all", show_default=True, metavar="CORES", help="all, big, little, or 0,4-7."),
        click.option("--seconds", type=click.FloatRange(min=0), help="How long latency is measured [default: 3]."),
        click.option("--runs", type=click.IntRange(min=1), help="How many runs are measured, instead."),
        click.option("--warmup", "warmup_runs", type=click.IntRange(min=1), help="Runs before that, at least."),
        click.option("--no-latency", is_flag=True, help="Outputs only."),
        click.option("--profile", is_flag=True, help="Also time each node."),
        click.option("--evaluation", "-e", metavar="DATA", help="Also measure accuracy on this data there."),
        click.option("--labels", type=click.Path(path_type=Path), help="Labels of --evaluation."),
        click.option("--samples", type=click.IntRange(min=1), help="How many of them [default: all]."),
        click.option(
            "--timeout",
            "timeout_s",
            type=click.FloatRange(min=1),
            default=600.0,
            show_default=True,
            metavar="SECONDS",
            help="When a device is given up.",
        ),
        click.option(
            "--sessions",
            type=click.IntRange(min=1),
            help="Processes that it is measured in [default: 1, 8 with a baseline].",
        ),
        click.option("--max-latency-ms", type=float, metavar="MS", help="Longest median inference on each device."),
        click.option("--max-regression", metavar="PERCENT", help="Most that it may be slower than the baseline: 5%."),
        click.option(
            "--baseline",
            type=click.Path(path_type=Path),
            help="What it is compared with: a file of --save-baseline, or a bundle or .onnx file to run in turn.",
        ),
        click.option("--save-baseline", type=click.Path(path_type=Path), help="Store the times for --baseline."),
        click.option(
            "--fail-if",
            "fail_if",
            multiple=True,
            type=click.Choice(["cannot-tell"]),
            help="A regression that cannot be ruled out fails, too.",
        ),
        click.option("--junit", type=click.Path(path_type=Path), help="Write the checks as JUnit XML."),
    )
    return _apply(decorators, function)


def refuse_device_options() -> None:
    """Raise ConfigError if an option that needs ``--device`` was given without it."""
    context = click.get_current_context()
    names = [
        *("cores", "seconds", "runs", "warmup_runs", "no_latency", "profile", "timeout_s", "sessions"),
        *("max_latency_ms", "max_regression", "baseline", "save_baseline", "fail_if", "junit"),
        *("evaluation", "labels", "samples"),
    ]
    given = [name for name in names if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE]
    if given:
        (option,) = [p.opts[0] for p in context.command.params if p.name == given[0]]
        raise ConfigError(
            f"{option} says how a device is used, and none is named", remedy="add --device, such as --device local"
        )


def _apply(decorators: tuple[Callable[[Any], Any], ...], function: Command) -> Command:
    for decorate in reversed(decorators):
        function = decorate(function)
    return function
