"""Residual sums in front of LayerNormalization: merged into no slower kernel, and the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_models import parse, quantized, samples, weights

from edgeq.graph import save_model
from edgeq.runtime import open_session, run_model, session_options
from edgeq.stages.tune.residuals import part_residuals

TEXT = """g (float[1,4,8] x) => (float[1,4,8] y) {
    m = MatMul(x, k) b = Add(m, row) s = Add(b, x) y = LayerNormalization<axis=-1>(s, gamma, row) }"""
CONSTANTS = {"k": weights(8, 8), "row": weights(8, seed=1), "gamma": weights(8, seed=2)}


def merged(model: ir.Model, folder: Path) -> set[str]:
    """The operators that ONNX Runtime runs."""
    save_model(model, folder / "model.onnx")
    options = session_options()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    with open_session(folder / "model.onnx", options):
        return {node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node}


def test_the_sum_and_the_normalization_stay_apart(tmp_path: Path) -> None:
    model = parse(TEXT, **CONSTANTS)
    assert "SkipLayerNormalization" in merged(model, tmp_path)
    sample = samples(model)[0]
    before = run_model(model, sample)["y"]
    assert {"Sum", "LayerNormalization"} <= merged(part_residuals(model), tmp_path)
    np.testing.assert_array_equal(run_model(model, sample)["y"], before)


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8_dynamic", "w8"])
def test_only_targets_that_ask_for_it_get_it(scheme: str) -> None:
    ops = [node.op_type for node in quantized(parse(TEXT, **CONSTANTS), "linux-x64", scheme).model.graph]
    assert "Sum" in ops
    assert "Sum" not in [n.op_type for n in quantized(parse(TEXT, **CONSTANTS), "android", scheme).model.graph]


def test_biases_and_integer_sums_are_left_alone() -> None:
    text = TEXT.replace("s = Add(b, x) y = LayerNormalization<axis=-1>(s,", "y = LayerNormalization<axis=-1>(b,")
    assert "Sum" not in [node.op_type for node in part_residuals(parse(text, **CONSTANTS)).graph]
    both = "g (float[1,4,8] x, float[1,4,8] z) => (float y) { s = Add(x, z) y = Relu(s) }"
    assert "Sum" not in [node.op_type for node in part_residuals(parse(both)).graph]
