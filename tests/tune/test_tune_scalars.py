"""Constants without dimensions, where a target refuses quantized ones."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from small_models import parse, samples

from edgeq.graph import constant_array
from edgeq.qtypes import Scheme
from edgeq.runtime import run_model
from edgeq.stages.tune import shape_float
from edgeq.target import load_target

TEXT = "g (float[2,3] x, float s) => (float[2,3] y, float z) { y = Add(x, c) \n z = Mul(s, c) }"


@pytest.mark.parametrize(("scalars", "shape"), [("keep", ()), ("vectors", (1,))])
def test_scalars_get_a_dimension_where_the_result_keeps_its_shape(scalars: str, shape: tuple[int, ...]) -> None:
    target = load_target("linux-x64")
    target = msgspec.structs.replace(target, graph=msgspec.structs.replace(target.graph, scalars=scalars))
    model = parse(TEXT, c=np.float32(5))
    shaped = shape_float(model, target, Scheme.parse("w8a8"))
    constants = {node.op_type: constant_array(node.inputs[1]) for node in shaped.graph}
    assert constants["Add"] is not None
    assert constants["Add"].shape == shape
    assert constants["Mul"] is not None
    assert constants["Mul"].shape == (), "beside another scalar it must stay one"
    feed = samples(model, 1)[0]
    for name, value in run_model(model, feed).items():
        found = run_model(shaped, feed)[name]
        assert found.shape == value.shape
        np.testing.assert_array_equal(found, value)
