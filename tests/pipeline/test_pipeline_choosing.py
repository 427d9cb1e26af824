"""What is handed over where several things keep the limits: the cheapest in time and bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from small_models import parse, weights

from edgeq.front import Front, FrontPoint
from edgeq.graph import save_model
from edgeq.pipeline import Job, choosing
from edgeq.pipeline.findings import choice_findings
from edgeq.pipeline.judge import Attempt, Verdict
from edgeq.qtypes import Scheme
from edgeq.report import Clause, Contract, Metric, Size
from edgeq.request import Data, Limits
from edgeq.stages.run.accuracy import Evaluation


def verdict(name: str, drop: float, mb: float, speedup: float | None, *, effort: int = 0, mixed: int = 0) -> Verdict:
    """What a precision is worth to ``--max-drop 0.5``, of a float model of 20 MB, on 128 pictures."""
    metric = Metric(name="top-1 agreement", value=100 - drop, unit="%", samples=128, source="128 pictures")
    evaluation = Evaluation((metric,), "top-1 agreement", drop)
    clause = Clause(option="--max-drop", asked=0.5, measured=drop, unit="points", met=drop <= 0.5)
    contract = Contract(clauses=(clause,), met=clause.met)
    size = Size(quantized_bytes=int(mb * 1e6), float_bytes=20_000_000)
    return Verdict(Scheme.parse(name), evaluation, size, contract, mixed, None, speedup, effort)


def made(one: Verdict, front: Front | None = None) -> Attempt:
    return Attempt(one, None, None, None, None, front)  # type: ignore[arg-type]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    save_model(
        parse("g (float[1,64] x) => (float[1,64] y) { y = MatMul(x, w) }", w=weights(64, 64)), tmp_path / "m.onnx"
    )
    rows = np.zeros((8, 64), np.float32)
    return Job(tmp_path / "m.onnx", "linux-x64", Data(rows), effort=1)


class Script:
    """Stands in for ``attempt`` and ``mix``: answers from a table, and what was asked in order."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, found: Mapping[tuple[str, int], Verdict], mixed: Verdict | None
    ):
        self.found, self.mixed, self.asked = found, mixed, []  # type: ignore[var-annotated]
        monkeypatch.setattr(choosing, "attempt", self.attempt)
        monkeypatch.setattr(choosing, "mix", self.mix)

    def attempt(self, job: Job, scheme: Scheme, limits: Limits, formats: object = None) -> Attempt:
        self.asked.append(f"{scheme.name}@{job.effort}")
        return made(self.found[scheme.name, job.effort])

    def mix(self, job: Job, start: Attempt, limits: Limits, carry: object, **more: Any) -> Attempt:
        self.asked.append(f"mix of {start.scheme.name}")
        self.more = more
        plain = FrontPoint(number=0, formats={}, changed={}, predicted_db=20, predicted_ms=1, predicted_bytes=1)
        points = (plain, msgspec.structs.replace(plain, number=1, changed={"a": "float"}, taken=True))
        front = Front(precision=start.scheme.name, measured=True, points=points)
        return made(self.mixed or start.verdict, front)


def test_effort_is_spent_on_what_may_be_taken(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """w8a8 is no cheaper than what keeps the limits: nothing is gained by trying it harder, or by mixing it."""
    found = {
        ("w8a8", 0): verdict("w8a8", 2.0, 5, 2.4),
        ("w8a8_dynamic", 0): verdict("w8a8_dynamic", 0.5, 5, 2.5),
        ("w8a8_dynamic", 1): verdict("w8a8_dynamic", 0.0, 5, 2.5, effort=1),
    }
    script = Script(monkeypatch, found, None)
    best, rejected = choosing.best_attempt(job, Limits(max_drop=0.5))
    assert script.asked == ["w8a8@0", "w8a8_dynamic@0", "w8a8_dynamic@1"]
    assert (best.precision, best.verdict.effort) == ("w8a8_dynamic", 1)
    assert [one.precision for one in rejected] == ["w8a8"]


def test_what_keeps_the_limits_with_less_effort_stays(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        ("w8a8", 0): verdict("w8a8", 2.0, 5, 2.4),
        ("w8a8_dynamic", 0): verdict("w8a8_dynamic", 0.5, 5, 2.5),
        ("w8a8_dynamic", 1): verdict("w8a8_dynamic", 1.0, 5, 2.5, effort=1),
    }
    Script(monkeypatch, found, None)
    best, _ = choosing.best_attempt(job, Limits(max_drop=0.5))
    assert (best.verdict.effort, best.verdict.met) == (0, True)


def far_off(**changed: Verdict) -> dict[tuple[str, int], Verdict]:
    """w8a8 misses the limit, weights alone keep it at the speed of floats."""
    found = {
        ("w8a8", 0): verdict("w8a8", 6.0, 5, 1.9),
        ("w8a8", 1): verdict("w8a8", 3.0, 5, 1.9, effort=1),
        ("w8a8_dynamic", 0): verdict("w8a8_dynamic", 4.0, 5, 1.5),
        ("w8a8_dynamic", 1): verdict("w8a8_dynamic", 4.0, 5, 1.5, effort=1),
        ("w8_b32", 0): verdict("w8", 0.0, 8, 1.0),
        ("w8_b32", 1): verdict("w8", 0.0, 8, 1.0, effort=1),
    }
    return found | {("w8a8", 1): changed["harder"]} if changed else found


def test_a_mix_is_taken_where_it_is_cheaper_than_a_whole_precision(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(monkeypatch, far_off(), verdict("w8a8", 0.0, 7, 1.1, effort=1, mixed=9))
    best, rejected = choosing.best_attempt(job, Limits(max_drop=0.5))
    assert best.precision == "w8a8 mixed"
    assert script.more["rival"].precision == "w8_b32"
    assert "w8_b32" in [one.precision for one in rejected]
    findings = choice_findings(best, rejected)
    assert any(
        "w8_b32 was tried and not taken: it keeps the limits, too, but costs more: 8.00 MB" in f.text for f in findings
    )
    assert any("allows none of 128 samples to be lost, as one is 0.78 points" in f.text for f in findings)


def test_a_mix_that_is_larger_and_slower_is_not_taken(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    Script(monkeypatch, far_off(), verdict("w8a8", 0.0, 12, 0.9, effort=1, mixed=9))
    best, _ = choosing.best_attempt(job, Limits(max_drop=0.5))
    assert best.precision == "w8_b32"
    assert best.front is not None
    assert not any(point.taken for point in best.front.points), "the front says why, not that a point was taken"
    assert best.front.points[1].why == "w8_b32 is better"


def test_more_effort_may_save_the_cheapest(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(monkeypatch, far_off(harder=verdict("w8a8", 0.4, 5, 1.9, effort=1)), None)
    best, _ = choosing.best_attempt(job, Limits(max_drop=0.5))
    assert (best.precision, best.verdict.effort) == ("w8a8", 1)
    assert script.asked[-1] == "w8a8@1", "neither dearer ones nor mixes are tried after it"


def test_size_does_not_depend_on_effort(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def large(name: str) -> Verdict:
        one = verdict(name, 0.0, 9, 1.0)
        clause = Clause(option="--max-size", asked=4e6, measured=9e6, unit="bytes", met=False)
        return replace(one, contract=Contract(clauses=(clause,), met=False))

    names = ("w8a8", "w8a8_dynamic", "w8_b32", "w4_b32")
    script = Script(monkeypatch, {(name, 0): large(name.removesuffix("_b32")) for name in names}, None)
    choosing.best_attempt(job, Limits(max_size_bytes=4_000_000))
    assert script.asked == [*(f"{name}@0" for name in names), "mix of w8a8"]


def test_a_limit_on_size_alone_does_not_buy_noise() -> None:
    clause = Clause(option="--max-size", asked=9e6, measured=5e6, unit="bytes", met=True)
    noise = Metric(name="SQNR", value=6.0, unit="dB", samples=128, source="128 pictures")
    plain = verdict("w4", 40.0, 5, 1.0)
    evaluation = replace(plain.evaluation, metrics=(*plain.evaluation.metrics, noise))
    noisy = replace(plain, contract=Contract(clauses=(clause,), met=True), evaluation=evaluation)
    assert noisy.met, "that is what was asked"
    assert not noisy.acceptable, "but better ones are looked for"
    assert not noisy.rank < replace(noisy, evaluation=plain.evaluation).rank
