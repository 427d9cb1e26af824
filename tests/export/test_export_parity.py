from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgeq.errors import ExportError
from edgeq.stages.export.parity import check_parity, dynamic_axes, vary

MODEL = """
<ir_version: 10, opset_import: ["": 21]>
agraph (float[N, 4] x, int64[N] i) => (float[N, 4] y, float[N, 4] bad, int64[N] j)
{
    two = Constant <value_float = 2.0> ()
    one = Constant <value_int = 1> ()
    y = Mul (x, two)
    bad = Log (x)
    j = Add (i, one)
}
"""
INPUTS = {"x": np.array([[1.0, 2.0, 3.0, 4.0]], np.float32), "i": np.array([7], np.int64)}


def reference(scale: float = 2.0, step: int = 1, log_of: float = 1.0):
    def run(inputs):
        with np.errstate(all="ignore"):
            return {
                "y": (inputs["x"] * np.float32(scale)),
                "bad": np.log(inputs["x"] * np.float32(log_of)),
                "j": inputs["i"] + step,
            }

    return run


def model() -> ir.Model:
    return ir.from_onnx_text(MODEL)


def test_equal_outputs_pass() -> None:
    parity = check_parity(model(), reference(), [INPUTS], source="numpy")
    assert parity.reference == "numpy"
    assert parity.samples == 1
    assert parity.max_abs_output == 8
    assert parity.max_abs_error < 1e-6
    assert parity.sqnr_db > 120


def test_the_worst_output_is_named_with_numbers() -> None:
    with pytest.raises(ExportError) as caught:
        check_parity(model(), reference(scale=2.1), [INPUTS], source="numpy")
    assert "does not match its source: output 'y' is off by 0.4 where values reach 8.4 (allowed: 0.00841)" in str(
        caught.value
    )
    assert "1 samples, reference: numpy" in str(caught.value)


def test_a_difference_within_rounding_passes_and_a_larger_one_does_not() -> None:
    check_parity(model(), reference(scale=2.0 * (1 + 5e-4)), [INPUTS], source="numpy")
    with pytest.raises(ExportError, match="'y'"):
        check_parity(model(), reference(scale=2.0 * (1 + 2e-3)), [INPUTS], source="numpy")


def test_integers_must_be_equal() -> None:
    with pytest.raises(ExportError, match="output 'j' is off by 1 "):
        check_parity(model(), reference(step=2), [INPUTS], source="numpy")


def test_nan_and_infinity_must_stand_in_the_same_places() -> None:
    odd = {**INPUTS, "x": np.array([[0.0, -1.0, 3.0, 4.0]], np.float32)}  # log: -inf, nan
    check_parity(model(), reference(), [odd], source="numpy")
    with pytest.raises(ExportError, match=r"output 'bad' is off by inf.*finite values only where the source has them"):
        check_parity(model(), reference(log_of=-1.0), [odd], source="numpy")


def test_shapes_and_types_must_be_equal() -> None:
    def wider(inputs):
        return {**reference()(inputs), "y": np.zeros((1, 5), np.float32)}

    with pytest.raises(
        ExportError, match=r"'y' of the exported model is float32\[1, 4\], its source gives float32\[1, 5"
    ):
        check_parity(model(), wider, [INPUTS], source="numpy")


def test_inputs_that_only_the_source_accepts() -> None:
    fixed = ir.from_onnx_text(MODEL.replace("N, 4] x", "1, 4] x"))
    more = {"x": np.ones((2, 4), np.float32), "i": np.ones(2, np.int64)}
    with pytest.raises(ExportError, match=r"fails on inputs that its source accepts[\s\S]*x: float32\[2, 4\]"):
        check_parity(fixed, reference(), [more], source="numpy")


def test_every_sample_is_checked() -> None:
    def wrong_on_negative(inputs):
        outputs = reference()(inputs)
        return outputs if (inputs["x"] > 0).all() else {**outputs, "y": -outputs["y"]}

    with pytest.raises(ExportError, match="'y'"):
        check_parity(model(), wrong_on_negative, [INPUTS, {**INPUTS, "x": -INPUTS["x"]}], source="numpy")


def test_dynamic_axes_are_those_with_plain_names() -> None:
    shaped = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["": 21]> g (float[N, 4] x, float[L] z) => (float[N, 4] y) { y = Identity (x) }'
    )
    shaped.graph.inputs[1].shape = ir.Shape(["2*N"])
    assert dynamic_axes(shaped) == {"x": {0: "N"}}


def test_varied_inputs_are_valid_seeded_and_different() -> None:
    ids = np.arange(24, dtype=np.int64).reshape(1, 24)
    inputs = {"ids": ids, "mask": np.ones((1, 24), np.int64), "x": np.zeros((1, 3), np.float32)}
    axes = {"ids": {0: "batch", 1: "length"}, "mask": {0: "batch", 1: "length"}}
    varied = vary(inputs, axes)
    assert {name: array.shape for name, array in varied.items()} == {"ids": (2, 23), "mask": (2, 23), "x": (1, 3)}
    assert set(varied["ids"].ravel()) <= set(range(24))
    assert not np.array_equal(varied["ids"][0], ids[0, :23])
    assert (varied["mask"] == 1).all()
    assert varied["x"].std() > 0
    assert varied["x"].dtype == np.float32
    again = vary(inputs, axes)
    for name, array in varied.items():
        np.testing.assert_array_equal(array, again[name])
