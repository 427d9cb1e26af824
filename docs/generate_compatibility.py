"""Writes ``docs/compatibility.md`` from ``docs/compatibility.json``: ``make docs``. A test fails when it is stale."""

from __future__ import annotations

from pathlib import Path

from edgeq.checks.record import load_record
from edgeq.checks.table import compatibility_page

PAGE = Path(__file__).with_name("compatibility.md")
RECORD = Path(__file__).with_name("compatibility.json")


def page() -> str:
    """The whole page."""
    return compatibility_page(load_record(RECORD))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
