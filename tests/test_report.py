"""The report's JSON: strict, deterministic, finite."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgeq.affine import range_to_qparams
from edgeq.errors import ConfigError
from edgeq.qtypes import Decision, IntType, PerAxis, TensorSpec
from edgeq.report import LIMIT_DB, Machine, Metric, Report, bounded_db, plan_row
from edgeq.source import Parity

MACHINE = Machine(cpu="c", architecture="a", isa=(), cores=1, os="o", python="3", onnxruntime="1")


def _report(**changes) -> Report:
    return Report(edgeq="0.1.0", name="n", target="t", precision="w8a8", machine=MACHINE, **changes)


def test_round_trip_gives_the_same_bytes():
    report = _report(metrics=(Metric(name="m", value=1 / 3, samples=1, source="s"),), drop=0.1)
    again = Report.from_json(report.to_json())
    assert again == report
    assert again.to_json() == report.to_json()
    assert list(json.loads(report.to_json())) == sorted(json.loads(report.to_json()))


def test_infinities_are_bounded_and_nan_is_refused():
    report = _report(parity=Parity("itself", 1, 0.0, 1.0, float("inf")))
    assert Report.from_json(report.to_json()).parity.sqnr_db == LIMIT_DB
    with pytest.raises(ValueError, match="say None for what was not measured"):
        _report(drop=float("nan")).to_json()
    assert [bounded_db(x) for x in (np.inf, -np.inf, 12.0)] == [LIMIT_DB, -LIMIT_DB, 12.0]


@pytest.mark.parametrize(
    ("change", "text"),
    [({"schema": 2}, "has schema 2, this edgeq reads schema 1"), ({"unknown": 1}, "unknown field `unknown`")],
)
def test_another_report_is_refused(change, text):
    table = {**json.loads(_report().to_json()), **change}
    with pytest.raises(ConfigError, match=text):
        Report.from_json(json.dumps(table).encode(), where="report.json")


def test_plan_rows_tell_scale_range_or_reason():
    spec = TensorSpec(IntType(8, signed=True), symmetric=True, granularity=PerAxis(0))
    qparams = range_to_qparams(np.array([-1.27, -2.54]), np.array([0.0, 0.0]), spec)
    row = plan_row(Decision("w", "weight", ("conv", "conv2"), "weights of Conv", qparams))
    assert (row.dtype, row.granularity, row.scale, row.consumers) == (
        "int8",
        "per channel, axis 0 (2)",
        "0.01 to 0.02",
        2,
    )
    assert (row.lo, row.hi) == (pytest.approx(-2.56), pytest.approx(2.54))
    skipped = plan_row(Decision("t", "activation", (), "skip", skip_reason="no kernel"))
    assert (skipped.skip_reason, skipped.dtype) == ("no kernel", None)
