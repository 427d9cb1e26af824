"""The texts of a bundle from their templates: readme, licences and the report for people who would rather look."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from edgeq.bundle import Manifest
from edgeq.escape import plain
from edgeq.stages.package.page import report_page
from edgeq.stages.package.page_compare import compare_page
from edgeq.stages.package.page_devices import devices_page

if TYPE_CHECKING:
    import jinja2

    from edgeq.compare_report import CompareReport
    from edgeq.device_report import DeviceReport
    from edgeq.report import Report

__all__ = ["render_compare_html", "render_devices_html", "render_html", "render_licences", "render_readme"]

_TEMPLATES = Path(__file__).with_name("templates")


def render_html(report: Report, manifest: Manifest) -> str:
    """One HTML page with everything inside: no network, no other file. All names are escaped."""
    return _environment().get_template("report.html.jinja").render(**report_page(report, manifest))


def render_devices_html(report: DeviceReport) -> str:
    """The same of a bundle on devices."""
    return _environment().get_template("devices.html.jinja").render(**devices_page(report))


def render_compare_html(report: CompareReport) -> str:
    """The same of two models side by side."""
    return _environment().get_template("compare.html.jinja").render(**compare_page(report))


def render_readme(manifest: Manifest) -> str:
    """What the bundle is and how to load it in Python."""
    return _environment().get_template("README.md.jinja").render(m=manifest, fence="`" * 3)


def render_licences(manifest: Manifest) -> str:
    """Licence and origin of every part."""
    return _environment().get_template("LICENSES.md.jinja").render(m=manifest)


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        # Names in a model are a stranger's text.
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.jinja",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["literal"] = lambda value: repr(dict(value) if isinstance(value, dict) else str(value))
    environment.filters["plain"] = plain
    return environment
