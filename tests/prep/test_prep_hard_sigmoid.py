"""Hard swish and squeeze-excite gates as exporters write them, and what only looks like one."""

from __future__ import annotations

import numpy as np
import pytest
from prep_models import apply, build, normal, ops, scalar

from edgeq.stages.prep.remove_unused import RemoveUnused
from edgeq.stages.prep.use_hard_sigmoid import UseHardSigmoid

NUMBERS = {"three": scalar(3), "zero": scalar(0), "six": scalar(6), "sixth": scalar(1 / 6)}
FEEDS = {"x": np.linspace(-9, 9, 48, dtype=np.float32).reshape(1, 2, 4, 6)}


def model(body: str, **more: np.ndarray):
    used = {name: array for name, array in {**NUMBERS, **more}.items() if name in body}
    return build("float[1,2,4,6] x => float[1,2,4,6] y", body, **used)


@pytest.mark.parametrize(
    "body",
    [
        "a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)",
        "a = Add(three, x) c = Clip(a, zero, six) m = Mul(c, x) y = Mul(sixth, m)",
        "a = Add(x, one) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, one_six)",
    ],
)
def test_hard_swish(body: str):
    more = {"one": np.array([3], np.float32), "one_six": np.array([6], np.float32)}
    graph = model(body, **more)
    assert apply(UseHardSigmoid(), graph, FEEDS)
    RemoveUnused()(graph)
    assert ops(graph) == {"HardSigmoid": 1, "Mul": 1}
    gate = next(node for node in graph.graph if node.op_type == "HardSigmoid")
    assert gate.attributes.get_float("alpha") == pytest.approx(1 / 6)
    assert gate.attributes.get_float("beta") == pytest.approx(0.5)


def test_a_gate_by_itself():
    graph = model("a = Add(x, two) c = Clip(a, zero, five) y = Div(c, five)", two=scalar(2), five=scalar(5))
    assert apply(UseHardSigmoid(), graph, FEEDS)
    RemoveUnused()(graph)
    assert ops(graph) == {"HardSigmoid": 1}


@pytest.mark.parametrize(
    "body",
    [
        "a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, three)",  # another factor
        "a = Add(x, three) c = Clip(a, three, six) y = Div(c, six)",  # from 3, not from 0
        "a = Add(x, three) c = Clip(a, zero, six) d = Div(c, six) y = Mul(c, d)",  # the clip is read twice
        "a = Add(x, three) c = Clip(a, zero, six) m = Mul(a, c) y = Div(m, six)",  # so is the sum
        "a = Add(x, many) c = Clip(a, zero, six) y = Div(c, six)",  # an offset per channel
        "a = Add(x, three) c = Clip(a, zero, six) y = Div(six, c)",
    ],
)
def test_what_only_looks_like_one_stays(body: str):
    assert not apply(UseHardSigmoid(), model(body, many=normal(1, 2, 1, 1)), FEEDS)
