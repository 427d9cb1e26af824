"""Example inputs for ONNX models whose interface leaves sizes and meanings open."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_models import parse, weights

from edgeq.errors import ConfigError, ExportError
from edgeq.graph import input_infos
from edgeq.stages.export import load_source


def waveform() -> ir.Model:
    """Runs only on multiples of 100 samples above 250, for a known rate, with a state of one row."""
    return parse(
        """g (float[?,?] x, float[2,?,4] state, int64 sr) => (float y, float stateN) {
            rates = Constant <value = int64[2] {8000, 16000}> ()
            known = Equal(rates, sr)
            index = Cast <to = 7> (known)
            one = ReduceMax <keepdims = 0> (index)
            two = Constant <value = int64 {2}> ()
            check = Sub(one, two)
            table = Constant <value = float[1] {1.0}> ()
            gain = Gather(table, check)
            part = Constant <value = int64[3] {-1, 1, 256}> ()
            frames = Reshape(x, part)
            y = Mul(frames, gain)
            rows = Constant <value = int64[3] {2, 1, 4}> ()
            row = Reshape(state, rows)
            stateN = Identity(row)
        }"""
    )


def test_sizes_states_and_rates_are_tried_until_the_model_runs() -> None:
    source = load_source(waveform())
    shapes = {name: array.shape for name, array in source.example_inputs.items()}
    assert shapes == {"x": (1, 256), "state": (2, 1, 4), "sr": ()}
    assert source.example_inputs["sr"] == 16000
    assert source.provenance["example_inputs"] == ("made up: x: float32[1, 256], state: float32[2, 1, 4], sr = 16000")


def test_an_unknown_scalar_is_tried_too() -> None:
    model = waveform()
    model.graph.inputs[2].name = "hz"
    assert load_source(model).example_inputs["hz"] in (16000, 8000)


def test_a_picture_of_a_text_line() -> None:
    model = parse("""g (float[?,3,?,?] x) => (float y) {
        shape = Constant <value = int64[4] {1, 3, 48, 320}> ()
        y = Reshape(x, shape)
    }""")
    assert load_source(model).example_inputs["x"].shape == (1, 3, 48, 320)


def test_fixed_sizes_are_used() -> None:
    model = parse("g (float[batch,3,h,w] x) => (float y) { y = Relu(x) }")
    assert load_source(model, fixed_dims={"h": 40, "x:3": 72}).example_inputs["x"].shape == (1, 3, 40, 72)
    with pytest.raises(ConfigError, match="no input has one dynamic dimension 'depth'") as caught:
        load_source(model, fixed_dims={"depth": 3})
    assert "x:2 (h)" in str(caught.value.remedy)


def test_axes_of_one_name_are_of_one_size() -> None:
    model = parse("g (float[n,4] a, float[4,n] b) => (float y) { y = MatMul(a, b) }")
    shapes = {name: array.shape for name, array in load_source(model).example_inputs.items()}
    assert shapes == {"a": (1, 4), "b": (4, 1)}


def test_a_model_that_runs_on_nothing_says_what_was_tried() -> None:
    model = parse("""g (float[batch,length] x) => (float y) {
        shape = Constant <value = int64[2] {-1, 331}> ()
        y = Reshape(x, shape)
    }""")
    with pytest.raises(ExportError, match=r"runs on none of 9 made-up inputs: x: float32\[1, 16\] \|") as caught:
        load_source(model)
    assert "and 6 more; the first fails with: " in caught.value.what
    assert caught.value.remedy == (
        "fix the dimension with --fix NAME=SIZE, or give --calibration data, whose first sample is used"
    )
    assert load_source(model, fixed_dims={"length": 662}).example_inputs["x"].shape == (1, 662)


def test_the_first_sample_takes_the_place_of_made_up_inputs() -> None:
    model = parse("g (float[batch,length] x) => (float y) { y = Relu(x) }")
    asked = []

    def first(infos, preprocess):  # type: ignore[no-untyped-def]
        asked.append((infos, preprocess))
        return {"x": weights(1, 331)}

    source = load_source(model, fixed_dims={"batch": 1}, first_sample=first)
    np.testing.assert_array_equal(source.example_inputs["x"], weights(1, 331))
    assert source.provenance["example_inputs"] == "the first calibration sample"
    assert asked[0][0] == input_infos(model, {"batch": 1})
    given = {"x": weights(2, 5)}
    source = load_source(model, first_sample=first, example_inputs=given)
    assert source.provenance["example_inputs"] == "given"
    assert source.example_inputs["x"].shape == (2, 5)
    assert len(asked) == 1
