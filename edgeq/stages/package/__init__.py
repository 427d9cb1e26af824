"""Bundles: what edgeq hands over, and the report for people who would rather look."""

from __future__ import annotations

from edgeq.stages.package.render import render_compare_html, render_devices_html, render_html
from edgeq.stages.package.write import write_bundle, write_report

__all__ = ["render_compare_html", "render_devices_html", "render_html", "write_bundle", "write_report"]
