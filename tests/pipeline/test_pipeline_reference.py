"""What is reported of a model for a neural processor comes from its emulator or the specification.

ONNX Runtime's CPU kernels are no reference for 16-bit activations: they round them to 8 bits (the
weight's DequantizeLinear becomes MatMulNBits at accuracy level 4).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_models import parse, weights

import edgeq
from edgeq.graph import save_model
from edgeq.metrics import sqnr_db
from edgeq.report import Metric
from edgeq.runtime import Optimization, run_model

TEXT = "g (float[1,16,256] x) => (float[1,16,64] y) { y = MatMul(x, w) }"


@pytest.fixture
def bundle(tmp_path: Path) -> tuple[edgeq.Exported, list[dict[str, np.ndarray]]]:
    save_model(parse(TEXT, w=weights(256, 64, scale=0.05)), tmp_path / "float.onnx")
    rng = np.random.default_rng(0)
    outliers = np.where(np.arange(256) % 32 == 0, 8, 1)
    data = [{"x": (rng.normal(size=(1, 16, 256)) * outliers).astype(np.float32)} for _ in range(8)]
    exported = edgeq.export(
        tmp_path / "float.onnx",
        target="android-npu",
        precision="w8a16",
        output=tmp_path / "bundle",
        calibration=data[:4],
        evaluation=data[4:],
        smoothing=False,
        measure=False,
        fallback=False,
    )
    return exported, data[4:]


def closeness(exported: edgeq.Exported, batches: list[dict[str, np.ndarray]], optimization: Optimization) -> float:
    """The SQNR of the packaged model against the float model, in one or the other arithmetic, on the CPU."""
    model = exported.path.parent / "float.onnx"
    right = [run_model(model, batch)["y"] for batch in batches]
    found = [run_model(exported.path / "model.onnx", batch, optimization=optimization)["y"] for batch in batches]
    return sqnr_db(np.concatenate(right), np.concatenate(found))


def figure(metrics: tuple[Metric, ...]) -> float:
    (metric,) = (metric for metric in metrics if metric.name == "SQNR")
    return metric.value


def test_the_cpu_is_no_reference_for_16_bit_activations(
    bundle: tuple[edgeq.Exported, list[dict[str, np.ndarray]]],
) -> None:
    exported, batches = bundle
    assert closeness(exported, batches, "none") > closeness(exported, batches, "all") + 3


def test_export_and_run_report_the_specification(bundle: tuple[edgeq.Exported, list[dict[str, np.ndarray]]]) -> None:
    exported, batches = bundle
    specified = closeness(exported, batches, "none")
    assert figure(exported.report.metrics) == pytest.approx(specified, abs=0.05)
    assert figure(edgeq.run(exported.path).metrics) == pytest.approx(specified, abs=0.05)
