"""Float weights in 16 bits: half the file, the same kernels, and next to the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from small_models import parse, samples, weights

from edgeq.graph import save_model, saved_bytes
from edgeq.metrics import sqnr_db
from edgeq.runtime import run_model
from edgeq.stages.tune.store_floats import store_floats

NET = """g (float[1,32,8,8] x) => (float[1,64] y, float[1,64] z) {
    c = Conv<pads=[1,1,1,1]>(x, w1) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p)
    y = MatMul(f, w2) z = Gemm<transB=1>(f, w3) }"""


def network(**changed: np.ndarray) -> ir.Model:
    held = {"w1": weights(64, 32, 3, 3), "w2": weights(64, 64, seed=1), "w3": weights(64, 64, seed=2)}
    return parse(NET, **{**held, **changed})


def test_the_file_halves_and_the_numbers_stay() -> None:
    w1 = weights(64, 32, 3, 3)
    w1[3] *= 1e-5  # a channel of its own size keeps its precision
    w1[4] = 0
    model = network(w1=w1)
    stored = store_floats(model.clone())
    assert saved_bytes(stored) < 0.56 * saved_bytes(model)
    assert {v.dtype for v in stored.graph.initializers.values()} == {ir.DataType.INT16, ir.DataType.FLOAT}
    for sample in samples(model, 4):
        wanted, found = run_model(model, sample), run_model(stored, sample)
        for name in wanted:
            assert sqnr_db(wanted[name], found[name]) > 75


def test_it_is_computed_while_loading(tmp_path: Path) -> None:
    """Else every inference would pay for it: neither node is left in the graph that runs."""
    save_model(store_floats(network()), tmp_path / "stored.onnx")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "runs.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(str(tmp_path / "stored.onnx"), options, providers=["CPUExecutionProvider"])
    ops = [node.op_type for node in ir.load(tmp_path / "runs.onnx").graph]
    assert "Conv" in ops or "FusedConv" in ops
    assert not {"Cast", "Mul"} & set(ops)


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("g (float[1,8] x) => (float[1,8] y) { y = MatMul(x, w) }", weights(8, 8)),
        (
            "g (float[4,1,8,8] x) => (float[4,512,8,8] y) { y = Conv<kernel_shape=[3,3],pads=[1,1,1,1]>(x, w) }",
            weights(512, 1, 3, 3),
        ),
        ("g (float[1,64] x) => (float[64,64] y) { y = Add(x, w) }", weights(64, 64)),
        ("g (float[1,64] x) => (float[1,64] y, float[64,64] z) { y = MatMul(x, w) z = Relu(w) }", weights(64, 64)),
        ("g (float[1,64] x) => (float[1,64] y) { y = MatMul(x, w) }", np.full((64, 64), np.inf, np.float32)),
    ],
    ids=["small", "few per channel", "no weight", "read by others, too", "not finite"],
)
def test_what_stays(text: str, changed: np.ndarray) -> None:
    model = parse(text, w=changed)
    store_floats(model)
    assert [value.dtype for value in model.graph.initializers.values()] == [ir.DataType.FLOAT]


def test_a_weight_that_two_read_is_stored_once() -> None:
    model = parse("g (float[1,64] x) => (float[1,64] y) { a = MatMul(x, w) y = MatMul(a, w) }", w=weights(64, 64))
    store_floats(model)
    assert [node.op_type for node in model.graph] == ["Cast", "Mul", "MatMul", "MatMul"]
