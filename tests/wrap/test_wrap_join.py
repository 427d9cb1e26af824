"""A model with pieces in front and behind computes what the three compute one after the other."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_models import parse, weights

from edgeq.errors import ConfigError
from edgeq.graph import input_infos, output_infos
from edgeq.runtime import run_model
from edgeq.stages.wrap import join, make_room

FRONT = parse("g (uint8[N,4] raw) => (float[N,4] x) { f = Cast <to = 1> (raw) x = Div(f, w) }", w=np.float32(255))
BACK = parse("g (float[N,3] y) => (float[N,3] sure) { z = Mul(y, w) sure = Softmax(z) }", w=np.float32(2))


def core() -> ir.Model:
    return parse(
        "g (float[N,4] x) => (float[N,3] y, float[N,3] other) { y = MatMul(x, w) other = Add(y, y) }", w=weights(4, 3)
    )


def test_the_whole_computes_what_its_parts_do() -> None:
    model = core()
    joined = join(model, FRONT, BACK, {"y"})
    onnx.checker.check_model(ir.to_proto(joined.model), full_check=True)
    raw = np.random.default_rng(0).integers(0, 256, (2, 4), dtype=np.uint8)
    middle = run_model(model, run_model(FRONT, {"raw": raw}))
    found = run_model(joined.model, {"raw": raw})
    np.testing.assert_array_equal(found["other"], middle["other"])
    np.testing.assert_allclose(found["sure"], run_model(BACK, {"y": middle["y"]})["sure"], rtol=1e-6)
    assert [info.name for info in input_infos(joined.model)] == ["raw"]
    assert [info.name for info in output_infos(joined.model)] == ["sure", "other"]
    assert joined.added == ("f", "x", "z", "sure")


def test_the_parts_stay_as_they_were() -> None:
    model = core()
    before = [ir.to_proto(part).SerializeToString(deterministic=True) for part in (model, FRONT, BACK)]
    join(model, FRONT, BACK, {"y"})
    assert [ir.to_proto(part).SerializeToString(deterministic=True) for part in (model, FRONT, BACK)] == before


def test_a_constant_of_the_same_name_is_renamed() -> None:
    names = set(join(core(), FRONT, BACK, {"y"}).model.graph.initializers)
    assert len(names) == 3  # all three parts call theirs "w"


def test_a_node_of_the_same_name_is_refused() -> None:
    model = core()
    model.graph[0].name = "f"
    with pytest.raises(ConfigError, match="the model has nodes named f, as embedded steps are called"):
        join(model, FRONT, None)


def crowded() -> ir.Model:
    """A model whose own tensors and nodes are called like those around it, up to the output that is replaced."""
    model = parse(
        "g (float[N,4] x) => (float[N,3] sure, float[N,3] other) { raw = Abs(x) sure = MatMul(raw, f) "
        "other = Add(sure, sure) }",
        f=weights(4, 3),
    )
    for node in model.graph:
        node.name = node.outputs[0].name
    model.graph[0].name = "z"
    return model


def test_room_is_made_for_the_names_of_the_parts() -> None:
    model = crowded()
    values = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    before = run_model(model, {"x": values})
    back = parse("g (float[N,3] sure_1) => (float[N,3] sure) { z = Mul(sure_1, w) sure = Softmax(z) }", w=np.float32(2))
    make_room(model, FRONT, back, {"sure"})
    assert [info.name for info in output_infos(model)] == ["sure_1", "other"]
    np.testing.assert_array_equal(run_model(model, {"x": values})["other"], before["other"])
    joined = join(model, FRONT, back, {"sure_1"})
    onnx.checker.check_model(ir.to_proto(joined.model), full_check=True)
    raw = np.random.default_rng(0).integers(0, 256, (2, 4), dtype=np.uint8)
    middle = run_model(model, run_model(FRONT, {"raw": raw}))
    np.testing.assert_array_equal(run_model(joined.model, {"raw": raw})["other"], middle["other"])
    assert [info.name for info in output_infos(joined.model)] == ["sure", "other"]


def test_no_room_is_made_where_an_app_would_see_it() -> None:
    with pytest.raises(ConfigError, match="the model itself has an input or output sure"):
        make_room(crowded(), None, BACK)
    model = parse("g (float[N,4] raw) => (float[N,4] y) { y = Neg(raw) }")
    with pytest.raises(ConfigError, match="the model itself has an input or output raw"):
        make_room(model, FRONT, None)
