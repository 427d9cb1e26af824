"""A Concat of parts whose ranges are far apart: float, or 16 bits where the target has them and integers follow."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_models import parse, weights

from edgeq.qtypes import NodeFormat, Scheme
from edgeq.stages.calibrate.peaks import observe_peaks
from edgeq.stages.choose import find_layout, find_unequal_joins, integer_joins
from edgeq.stages.tune import shape_float
from edgeq.target import load_target


def joined(scale: float, behind: str = "") -> ir.Model:
    last = "j" if behind else "y"
    return parse(
        f"g (float[1,4,6,6] x) => (float[1,8,6,6] y) {{ a = Conv(x, v) b = Conv(x, w) r = Relu(b)"
        f" {last} = Concat<axis = 1>(a, r) {behind} }}",
        v=weights(4, 4, 1, 1, scale=scale),
        w=weights(4, 4, 1, 1, seed=1, scale=1.0),
        k=weights(8, 8, 1, 1, seed=2, scale=1.0),
    )


def found(model: ir.Model, target: str, precision: str = "w8a8") -> list[tuple[NodeFormat, int]]:
    profile, scheme = load_target(target), Scheme.parse(precision)
    shaped = shape_float(model, profile, scheme)
    layout = find_layout(shaped, profile, scheme)
    feeds = [{"x": np.ones((1, 4, 6, 6), np.float32)}]
    joins = integer_joins(shaped, layout)
    unequal = find_unequal_joins(joins, layout, observe_peaks(shaped, feeds), profile)
    assert {join.node for join in unequal} <= {str(node.name) for node in joins}
    return [(join.format, round(join.ratio)) for join in unequal]


@pytest.mark.parametrize("target", ["android-npu", "linux-x64", "web"])
def test_parts_of_like_size_are_joined_in_integers(target: str) -> None:
    assert found(joined(1.0, "y = Conv(j, k)"), target) == []


def test_unlike_parts_stay_float_in_front_of_an_output() -> None:
    ((form, ratio),) = found(joined(100.0), "android-npu")
    assert form == NodeFormat(None, None)
    assert ratio > 16


def test_unlike_parts_have_sixteen_bits_where_integers_follow_and_the_target_has_them() -> None:
    behind = "y = Conv(j, k)"
    ((form, _),) = found(joined(100.0, behind), "android-npu")
    assert form.activation_bits == 16
    ((form, _),) = found(joined(100.0, behind), "android")
    assert form == NodeFormat(None, None)
    assert found(joined(100.0, behind), "android-npu", "w8a16") == []
