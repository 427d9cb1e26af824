"""ONNX files from the wild through the whole job: example inputs, data of other sizes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_models import parse, weights

from edgeq import export
from edgeq.errors import CalibrationError, ContractError, ExportError, ModelError
from edgeq.graph import save_model
from edgeq.pipeline import Job
from edgeq.request import Data


def frames(length: int) -> ir.Model:
    """Runs only where ``length`` divides the samples, which no interface says."""
    text = """g (float[batch,samples] x) => (float[n,16] y) {
        parts = Reshape(x, shape) h = MatMul(parts, w) r = Relu(h) y = MatMul(r, w2) }"""
    return parse(text, shape=np.array([-1, length]), w=weights(length, 32), w2=weights(32, 16))


def saved(model: ir.Model, folder: Path) -> Path:
    save_model(model, folder / "net.onnx")
    return folder / "net.onnx"


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_the_first_calibration_sample_is_the_example_input(tmp_path: Path) -> None:
    path = saved(frames(331), tmp_path)
    with pytest.raises(ExportError, match="runs on none of 9 made-up inputs"):
        _ = Job(path, "linux-x64").source
    np.savez(tmp_path / "data.npz", x=noise(40, 662))
    job = Job(path, "linux-x64", data=Data(tmp_path / "data.npz"))
    assert job.source.example_inputs["x"].shape == (1, 662)
    assert job.source.provenance["example_inputs"] == "the first calibration sample"
    result = export(
        path,
        target="linux-x64",
        output=tmp_path / "out",
        calibration=tmp_path / "data.npz",
        precision="w8a8",
        measure=False,
    )
    assert result.report.size.ratio > 1.5
    assert next(metric.value for metric in result.report.metrics if metric.name == "SQNR") > 25


def test_a_fixed_size_is_used_for_made_up_inputs(tmp_path: Path) -> None:
    job = Job(saved(frames(331), tmp_path), "linux-x64", fixed_dims={"samples": 331})
    assert job.source.example_inputs["x"].shape == (1, 331)
    assert job.prepared.model.graph.inputs[0].shape == ir.Shape(["batch", 331])


def test_samples_of_different_sizes(tmp_path: Path) -> None:
    for number, size in enumerate((331, 662, 993) * 8):
        np.savez(tmp_path / f"{chr(97 + number)}.npz", x=noise(1, size, seed=number))
    result = export(
        saved(frames(331), tmp_path),
        target="linux-x64",
        output=tmp_path / "out",
        calibration=tmp_path,
        precision="w8a8",
        measure=False,
    )
    assert result.report.size.ratio > 1.5


def test_a_generator_is_not_used_up_by_looking_at_it(tmp_path: Path) -> None:
    model = parse("g (float[batch,64] x) => (float[batch,16] y) { y = MatMul(x, w) }", w=weights(64, 16))
    job = Job(saved(model, tmp_path), "linux-x64", data=Data({"x": row} for row in noise(20, 1, 64)))
    assert job.source.provenance["example_inputs"].startswith("made up: x: float32[1, 64]")
    assert sum(len(feed.rows) for feed in job.feeds if feed is not None) == 20


def test_data_that_does_not_fit_is_refused_before_the_work(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=noise(40, 662))
    job = Job(saved(frames(331), tmp_path), "linux-x64", data=Data(tmp_path / "data.npz"), fixed_dims={"samples": 331})
    with pytest.raises(CalibrationError, match=r"expected x: float32\[batch, 331\], got float32\[1, 662\]"):
        _ = job.source


def test_negative_dimensions(tmp_path: Path) -> None:
    proto = ir.to_proto(parse("g (float[N,64] x) => (float[N,16] y) { y = MatMul(x, w) }", w=weights(64, 16)))
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = -1
    onnx.save(proto, tmp_path / "net.onnx")
    result = export(
        tmp_path / "net.onnx",
        target="linux-x64",
        output=tmp_path / "out",
        calibration=noise(40, 64),
        precision="w8a8",
        measure=False,
    )
    assert result.report.size.ratio > 1


def test_a_precision_that_leaves_the_model_as_it_is_does_not_end_the_search(tmp_path: Path) -> None:
    """Weight-only and dynamic precisions take matrices, and this network has none: w8a8 stays the best there is."""
    text = "g (float[1,4,8,8] x) => (float[1,4,8,8] y) { y = Conv<pads = [1,1,1,1]>(x, w) }"
    with pytest.raises(ContractError) as raised:
        export(
            saved(parse(text, w=weights(4, 4, 3, 3)), tmp_path),
            target="linux-x64",
            output=tmp_path / "out",
            calibration=[{"x": noise(1, 4, 8, 8, seed=i)} for i in range(20)],
            min_sqnr=150,
            measure=False,
        )
    report = raised.value.exported.report
    assert report.precision == "w8a8"
    said = [finding.text for finding in report.findings if "was tried and not taken" in finding.text]
    assert [text.partition(" ")[0] for text in said] == ["w8a8_dynamic", "w8_b32", "w4_b32"]
    assert "only 0% of the weights" in said[0]
    assert "nothing in this model can be quantized" in said[1]


def test_a_model_with_nothing_to_quantize_is_refused_with_the_reasons(tmp_path: Path) -> None:
    text = """g (float[1,64] x, bool c) => (float[1,16] y) { y = If (c) <
        then_branch = g1 () => (float[1,16] p) { p = MatMul(x, w) },
        else_branch = g2 () => (float[1,16] q) { h = MatMul(x, w) q = Relu(h) }> }"""
    with pytest.raises(ModelError, match="nothing in this model can be quantized for linux-x64 in w8a8: the 3 nodes"):
        export(
            saved(parse(text, w=weights(64, 16)), tmp_path),
            target="linux-x64",
            output=tmp_path / "out",
            calibration=[{"x": noise(1, 64, seed=i), "c": np.array(i % 2 == 0)} for i in range(20)],
            precision="w8a8",
        )
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_quantized_already_is_refused_but_inspected(tmp_path: Path) -> None:
    text = """g (float[4,64] x) => (float[4,16] y) {
        q, s, z = DynamicQuantizeLinear(x) p = DequantizeLinear(q, s, z) y = MatMul(p, w) }"""
    path = saved(parse(text, w=weights(64, 16)), tmp_path)
    with pytest.raises(ModelError, match="already quantized: it holds 1 DynamicQuantizeLinear, 1 DequantizeLinear"):
        export(path, target="linux-x64", output=tmp_path / "out", precision="w8", measure=False)
    assert Job(path, "linux-x64").prepared.model.graph.num_nodes() == 3
