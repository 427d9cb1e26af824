"""The commands about targets: list them, show one, check what they promise."""

from __future__ import annotations

from pathlib import Path

import click

from edgeq.cli.options import command, print_json

__all__ = ["targets_group"]


@click.group(name="targets", invoke_without_command=True)
@click.option("--json", "json_output", is_flag=True, help="Print the result as JSON on stdout.")
@click.pass_context
def targets_group(context: click.Context, json_output: bool) -> None:
    """List the targets, or show one.

    \b
    Example:
      edgeq targets show android
    """
    if context.invoked_subcommand is not None:
        return
    from edgeq.target import load_target, target_names

    profiles = [load_target(name) for name in target_names()]
    if json_output:
        print_json([{"name": p.name, "summary": p.summary, "precisions": p.precisions} for p in profiles])
    else:
        from edgeq.cli.render import show_targets

        show_targets(profiles)


@command(targets_group, name="show")
@click.argument("name")
def show_command(json_output: bool, name: str) -> None:
    """Show what target NAME can run, with the source of each limit.

    \b
    Example:
      edgeq targets show linux-x64
    """
    from edgeq.target import load_target

    profile = load_target(name)
    if json_output:
        print_json(profile)
    else:
        from edgeq.cli.render import show_target

        show_target(profile)


@command(targets_group, name="check")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "everything", is_flag=True, help="Check every target and every variant.")
@click.option("--op", "ops", multiple=True, metavar="OPERATOR", help="Only this operator; repeatable.")
@click.option(
    "--model", type=click.Path(path_type=Path), help="Check this quantized model or bundle by the rules of NAME."
)
@click.option("--record", type=click.Path(path_type=Path), help="Keep the results in this JSON file.")
@click.option("--changed", is_flag=True, help="With --record: run only what has changed since it was recorded.")
def check_command(
    json_output: bool,
    names: tuple[str, ...],
    everything: bool,
    ops: tuple[str, ...],
    model: Path | None,
    record: Path | None,
    changed: bool,
) -> None:
    """Prove what targets promise: run a small model for each promise on the real provider.

    NAME is a target, NAME@VARIANT or a profile file. Where nothing runs a target on this machine, its
    models are checked by its rules only. Exit code 5 says that something does not hold.

    \b
    Example:
      edgeq targets check android-npu --op Softmax
    """
    from edgeq.checks.request import check_model, chosen_profiles
    from edgeq.cli.progress import make_progress
    from edgeq.errors import ProviderError
    from edgeq.pipeline.check import check_targets

    profiles = chosen_profiles(names, everything=everything, model=model, ops=ops, record=record)
    if model is not None:
        violations = check_model(model, profiles[0])
        if json_output:
            print_json(violations)
        else:
            from edgeq.cli.render_check import show_violations

            show_violations(profiles[0].name, violations)
        bad = any(violation.severity == "error" for violation in violations)
    else:
        progress = make_progress(quiet=json_output)
        records = check_targets(
            profiles, ops=ops, record=record, changed=changed, complete=everything, progress=progress
        )
        if json_output:
            print_json(records)
        else:
            from edgeq.cli.render_check import show_check

            show_check(records)
        bad = any(result.verdict == "does not hold" for found in records for result in found.results)
    if bad:
        raise SystemExit(ProviderError.exit_code)
