"""Files of a project from the templates of its platform."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeq.escape import ESCAPES, Foreign
from edgeq.stages.embed.project import ProjectFile

if TYPE_CHECKING:
    import jinja2

__all__ = ["render", "render_files"]

_TEMPLATES = Path(__file__).with_name("templates")


def render_files(platform: str, templates: Mapping[str, str], context: Mapping[str, Any]) -> tuple[ProjectFile, ...]:
    """One file per entry: path in the project, template in the platform's folder. Sorted by path."""
    return tuple(
        ProjectFile(path, render(platform, template, context).encode()) for path, template in sorted(templates.items())
    )


def render(platform: str, template: str, context: Mapping[str, Any]) -> str:
    """A template's text. Templates reach a stranger's names through a filter of ``edgeq.escape`` only.

    Raises:
        TypeError: a template prints a `Foreign` text as it is.
    """
    return _environment().get_template(f"{platform}/{template}").render(context)


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=False,  # noqa: S701  `_refuse_foreign` forbids what each language's filter has not escaped
        undefined=jinja2.StrictUndefined,
        finalize=_refuse_foreign,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(ESCAPES, codepoint=ord)
    return environment


def _refuse_foreign(value: Any) -> Any:
    if isinstance(value, Foreign):
        raise TypeError(f"a template prints {value!r} without escaping it")
    return value
