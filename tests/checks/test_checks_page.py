"""The compatibility page in the docs: as recorded, and recorded for every promise of every profile."""

from __future__ import annotations

from pathlib import Path

from edgeq.checks.cases import CASES_VERSION
from edgeq.checks.record import load_record
from edgeq.checks.request import all_profiles
from edgeq.checks.table import compatibility_page, unrecorded

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_what_was_recorded() -> None:
    page = (DOCS / "compatibility.md").read_text(encoding="utf-8")
    assert page == compatibility_page(load_record(DOCS / "compatibility.json")), "run `make docs`"


def test_every_promise_of_every_profile_has_a_recorded_result() -> None:
    """Whoever changes a profile checks it again; "not verified" and "rules only" are results, too."""
    record = load_record(DOCS / "compatibility.json")
    assert record.cases == CASES_VERSION, "cases have changed: run `make compatibility`"
    assert unrecorded(record, all_profiles()) == [], "run `make compatibility`"


def test_no_target_is_recorded_that_does_not_exist() -> None:
    record = load_record(DOCS / "compatibility.json")
    assert set(record.targets) <= {profile.name for profile in all_profiles()}
