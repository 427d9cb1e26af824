"""Writes ``docs/cli.md`` from the commands themselves: ``make docs``. A test fails when it is stale."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from edgeq.cli.main import cli
from edgeq.cli.options import INTERRUPTED
from edgeq.errors import EdgeqError

REFERENCE = Path(__file__).with_name("cli.md")
WIDTH = 100
HEADER = """\
# Command line

<!-- Written by docs/generate_cli.py from the commands: change those, then run `make docs`. -->

Results go to stdout, progress and errors to stderr. `--json` prints the result as JSON, errors included.
Nothing asks questions. An output appears whole or not at all.
"""


def commands(command: click.Command, parent: click.Context | None, name: str) -> Iterator[tuple[str, str]]:
    """``(name, help)`` of a command and of all below it."""
    context = click.Context(command, parent=parent, info_name=name, max_content_width=WIDTH, terminal_width=WIDTH)
    context.help_option_names = ["-h", "--help"]
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for child, below in command.commands.items():
            yield from commands(below, context, child)


def exit_codes() -> list[tuple[int, str, str]]:
    """``(code, error, what it says)``, from the errors themselves."""
    kinds = [EdgeqError, *EdgeqError.__subclasses__()]
    rows = [(kind.exit_code, kind.__name__, inspect.cleandoc(str(kind.__doc__)).split("\n")[0]) for kind in kinds]
    rows[0] = (1, "EdgeqError", "`edgeq doctor` found something broken, or edgeq itself failed.")
    rows += [(0, "", "Done."), (INTERRUPTED, "", "Interrupted by Ctrl-C.")]
    return sorted(rows)


def reference() -> str:
    """The whole page."""
    parts = [HEADER]
    for name, text in commands(cli, None, "edgeq"):
        lines = "\n".join(line.rstrip() for line in text.splitlines())
        parts.append(f"## {name}\n\n```text\n{lines}\n```\n")
    table = ["| code | error | meaning |", "|---|---|---|"]
    table += [f"| {code} | {f'`{error}`' if error else ''} | {meaning} |" for code, error, meaning in exit_codes()]
    parts.append(
        "## Exit codes\n\n" + "\n".join(table) + "\n\nA wrong call (an unknown option, say) is 2 as well. "
        "In Python the same errors are raised; all derive from `edgeq.EdgeqError`.\n"
    )
    return "\n".join(parts)


if __name__ == "__main__":
    REFERENCE.write_text(reference(), encoding="utf-8")
