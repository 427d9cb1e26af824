"""Tanh through Sigmoid: the same function, written only at the widths that the profile names."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import parse, samples

from edgeq.metrics import sqnr_db
from edgeq.qtypes import Scheme
from edgeq.runtime import run_model
from edgeq.stages.tune import shape_float
from edgeq.target import load_target

NPU = load_target("android-npu")


def test_it_is_the_same_function_under_the_same_names() -> None:
    model = parse("g (float[1,4,8] x) => (float[1,4,8] y, float[1,4,8] t) { t = Tanh(x) y = Neg(t) }")
    shaped = shape_float(model, NPU, Scheme.parse("w8a16"))
    assert [node.op_type for node in shaped.graph] == ["Mul", "Sigmoid", "Mul", "Sub", "Neg"]
    assert [output.name for output in shaped.graph.outputs] == ["y", "t"]
    assert [node.name for node in shaped.graph][-2:] == ["t", "y"]
    (sample,) = samples(model, 1)
    wide = {"x": sample["x"] * np.float32(20)}
    for feed in (sample, wide):
        found = run_model(shaped, feed)
        for name, right in run_model(model, feed).items():
            assert sqnr_db(right, found[name]) > 120


@pytest.mark.parametrize(("target", "scheme"), [("android-npu", "w8a8"), ("linux-x64", "w8a8"), ("linux-x64", "w4")])
def test_it_is_left_alone_elsewhere(target: str, scheme: str) -> None:
    model = parse("g (float[1,4,8] x) => (float[1,4,8] y) { y = Tanh(x) }")
    shaped = shape_float(model, load_target(target), Scheme.parse(scheme))
    assert [node.op_type for node in shaped.graph] == ["Tanh"]
