"""fp16 from end to end: which targets take it, what the package holds, and what the report says was not run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from small_models import parse, weights

import edgeq
from edgeq.errors import ConfigError
from edgeq.graph import fingerprint, load_model, save_model
from edgeq.qtypes import Scheme
from edgeq.request import parse_scheme
from edgeq.target import load_target


@pytest.fixture
def model(tmp_path: Path) -> Path:
    text = """g (float[1,3,16,16] x) => (float y) {
        a = Conv(x, w) b = Relu(a) c = Mul(b, k) d = Div(c, k) y = GlobalAveragePool(d) }"""
    path = tmp_path / "small.onnx"
    save_model(parse(text, w=weights(8, 3, 3, 3), k=np.float32(60000)), path)
    return path


def test_fp16_is_a_precision_where_floats_are_float16() -> None:
    scheme = parse_scheme("fp16", load_target("web-gpu"))
    assert (scheme.name, scheme.floating, scheme.weight_only, scheme.calibrated) == ("fp16", True, False, False)
    assert Scheme.parse(scheme.name) == scheme
    with pytest.raises(ConfigError, match="computes floats in float32, and 'fp16' asks for float16"):
        parse_scheme("fp16", load_target("linux-x64"))


@pytest.mark.parametrize("name", ["web-gpu", "android-gpu", "nvidia-cuda"])
def test_gpus_are_offered_no_integer_activations(name: str) -> None:
    with pytest.raises(ConfigError, match="8-bit activations"):
        parse_scheme("w8a8", load_target(name))


def test_a_float16_package_needs_no_data_and_says_what_it_kept(model: Path, tmp_path: Path) -> None:
    result = edgeq.export(model, target="nvidia-cuda", precision="fp16", output=tmp_path / "out")
    packaged = onnx.load(result.path / "model.onnx")
    kinds = {tensor.name: tensor.data_type for tensor in packaged.graph.initializer}
    assert kinds["w"] == onnx.TensorProto.FLOAT16
    assert kinds["k"] == onnx.TensorProto.FLOAT
    assert [v.type.tensor_type.elem_type for v in packaged.graph.input] == [onnx.TensorProto.FLOAT]
    assert result.bundle.manifest.calibration is None
    assert result.report.precision == "fp16"
    (note,) = (f for f in result.report.findings if "float32 where the rest is float16" in f.text)
    assert set(note.nodes) == {"c", "d"}
    reasons = {placed.node: placed.why for placed in result.report.placement}
    assert reasons["a"] == "in float16"
    assert "float16 ends at 65504" in str(reasons["c"])
    assert any("not run on a GPU" in text for text in result.report.notes)
    sqnr = next(m.value for m in result.report.metrics if m.unit == "dB")
    assert sqnr > 55


def test_coreml_finds_its_cache_by_the_content(model: Path, tmp_path: Path) -> None:
    result = edgeq.export(model, target="ios-npu", output=tmp_path / "out")
    packaged = load_model(result.path / "model.onnx")
    key = packaged.metadata_props["COREML_CACHE_KEY"]
    assert key.isalnum()
    assert len(key) == 64
    assert key == fingerprint(packaged)
