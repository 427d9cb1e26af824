"""Validation: a bundle must do again what its manifest says."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser, shape_inference

from edgeq.bundle import Bundle, Manifest, read_bundle
from edgeq.errors import ConfigError, ValidationError
from edgeq.stages.package import write_bundle
from edgeq.stages.run.validate import validate
from edgeq.target import Provider

CPU = Provider(name="CPUExecutionProvider", package="onnxruntime", version=">=1.24.2")


def _bundle(folder, factor: float = 0.9, sqnr_db: float = 20.0, provider: Provider = CPU, samples: int = 2) -> Bundle:
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
    g (float[1,3] x) => (float[1,3] y) {{ c = Constant<value = float {{{factor}}}>() y = Mul(x, c) }}"""
    model = ir.from_proto(shape_inference.infer_shapes(parser.parse_model(text)))
    inputs = [{"x": np.full((1, 3), float(i + 1), np.float32)} for i in range(samples)]
    folder.mkdir(parents=True)
    write_bundle(
        folder,
        model=model,
        manifest=Manifest(edgeq="0.1.0", name="tiny", target="linux-x64", precision="w8a8", provider=provider),
        sample_inputs=inputs,
        reference_outputs=[{"y": feed["x"]} for feed in inputs],
        sqnr_db={"y": sqnr_db},
    )
    return read_bundle(folder)


def test_a_bundle_that_does_what_it_says_passes(tmp_path):
    bundle = _bundle(tmp_path / "b")
    report = validate(bundle, reference=bundle.model, seconds=0.01)
    assert report.contract.met
    assert report.metric("SQNR").value == pytest.approx(20, abs=0.01)
    assert [place.op_type for place in report.placement if place.kind != "fused"] == ["Mul"]
    assert report.latency.float_model
    assert report.memory
    assert report.float_memory
    assert not report.notes


def test_outputs_farther_off_than_the_manifest_allows_are_an_error(tmp_path):
    bundle = _bundle(tmp_path / "b", factor=0.8)
    with pytest.raises(
        ValidationError, match=r"SQNR of y is 14\.0 dB, but the manifest says 20\.0 dB \(tolerance 3 dB\)"
    ):
        validate(bundle, latency=False, memory=False)
    assert validate(bundle, latency=False, memory=False, tolerance_db=7).contract.met


def test_another_provider_than_the_targets_is_said_and_not_judged(tmp_path):
    coreml = Provider(name="CoreMLExecutionProvider", package="onnxruntime", version=">=1.24")
    report = validate(_bundle(tmp_path / "b", factor=0.8, provider=coreml), latency=False, memory=False)
    assert "model.onnx ran on the CPU instead of CoreMLExecutionProvider" in report.notes[0]
    assert not report.contract.met
    assert [metric.name for metric in report.metrics] == ["cosine on the CPU", "SQNR on the CPU"]
    assert "by the specification's arithmetic" in report.metrics[1].source
    assert not report.placement, "where the CPU runs it says nothing of CoreML"


def test_a_bundle_without_samples_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="holds no samples to validate it with"):
        validate(_bundle(tmp_path / "b", samples=0))


def test_a_sample_file_that_is_no_array_is_an_error(tmp_path):
    bundle = _bundle(tmp_path / "b")
    for content, text in ((b"not numpy", "holds no sample tensor"), (b"", "holds no sample tensor")):
        (bundle.path / "samples/input_0.npy").write_bytes(content)
        with pytest.raises(ConfigError, match=text):
            validate(bundle)
    np.save(bundle.path / "samples/input_0.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ConfigError, match="Object arrays cannot be loaded"):
        validate(bundle)


def test_a_reference_of_another_shape_is_an_error(tmp_path):
    bundle = _bundle(tmp_path / "b")
    np.save(bundle.path / "samples/output_0.npy", np.zeros((2, 1, 4), np.float32))
    with pytest.raises(ValidationError, match=r"output 'y' is \(1, 3\), the reference has shape \(1, 4\)"):
        validate(bundle)


def test_the_recorded_sqnr_is_part_of_the_checked_manifest(tmp_path):
    bundle = _bundle(tmp_path / "b")
    table = json.loads((bundle.path / "manifest.json").read_text())
    assert table["samples"]["sqnr_db"] == {"y": 20.0}
    assert msgspec.json.decode((bundle.path / "manifest.json").read_bytes(), type=Manifest) == bundle.manifest
