"""A small bundle and a report that uses every field."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser

from edgeq.bundle import Calibration, Manifest
from edgeq.recipe import ImagePreprocess
from edgeq.report import (
    Clause,
    Contract,
    Finding,
    Latency,
    LatencyComparison,
    Machine,
    Memory,
    Metric,
    NodePlacement,
    PlanRow,
    Report,
    Size,
    TensorError,
)
from edgeq.source import Licence, Parity
from edgeq.target import Provider

MODEL = """<ir_version: 10, opset_import: ["" : 21]>
g (float[N,3] x) => (float[N,3] y) { c = Constant<value = float {0.9}>() y = Mul(x, c) }"""


@pytest.fixture
def model() -> ir.Model:
    import onnx

    return ir.from_proto(onnx.shape_inference.infer_shapes(parser.parse_model(MODEL)))


@pytest.fixture
def draft() -> Manifest:
    return Manifest(
        edgeq="0.1.0",
        name="tiny",
        target="linux-x64",
        precision="w8a8",
        provider=Provider(
            name="CPUExecutionProvider",
            package="onnxruntime",
            version=">=1.24.2",
            session={"session.intra_op.allow_spinning": "0"},
        ),
        task="image-classification",
        preprocess=ImagePreprocess(crop=(224, 224)),
        calibration=Calibration(description="ten pictures", fingerprint="f" * 64, count=10, licence="CC0-1.0"),
        parity=Parity("torch 2.13", 2, 1e-6, 7.4, float("inf")),
        size=Size(quantized_bytes=100, float_bytes=380),
        provenance={"origin": "a test"},
        licences=(Licence("weights", "Apache-2.0", "LICENSE of the package"),),
        versions={"onnxruntime": "1.32.0"},
        notes=("Latency was measured on this x86-64 machine, not on a phone.",),
    )


@pytest.fixture
def samples() -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    inputs = [{"x": np.full((1, 3), float(i + 1), np.float32)} for i in range(3)]
    return inputs, [{"y": feed["x"]} for feed in inputs]


def _latency(p50: float) -> Latency:
    return Latency(
        provider="CPUExecutionProvider",
        threads=1,
        runs=100,
        min_ms=p50 * 0.9,
        p50_ms=p50,
        p90_ms=p50 * 1.1,
        p99_ms=p50 * 1.3,
        mean_ms=p50,
        cpu_p50_ms=p50,
        load_ms=50,
        first_ms=p50 * 2,
    )


@pytest.fixture
def report(draft: Manifest) -> Report:
    cpu = "CPUExecutionProvider"
    nodes = [("conv_a", "Conv", "QLinearConv", "integer"), ("flat_b", "Flatten", "Flatten", "moves data")]
    placement = [NodePlacement(node=n, op_type=o, provider=cpu, runs_as=r, kind=k) for n, o, r, k in nodes]
    placement += [
        NodePlacement(
            node="relu_c", op_type="Relu", provider=cpu, runs_as="QLinearConv", kind="fused", fused_into="conv_a"
        ),
        NodePlacement(node="tanh_d", op_type="Tanh", provider=cpu, runs_as="Tanh", kind="float", why="no kernel"),
    ]
    blame = [
        TensorError(tensor=f"t{i}", node=n.node, op_type=n.op_type, depth=i, sqnr_db=12.0 + 5 * i, own_share=0.5)
        for i, n in enumerate(placement)
    ]
    return Report(
        edgeq="0.1.0",
        name="tiny",
        target="linux-x64",
        precision="w8a8",
        task="image-classification",
        machine=Machine(
            cpu="Some CPU", architecture="x86_64", isa=("AVX2",), cores=2, os="Linux", python="3.11", onnxruntime="1.32"
        ),
        parity=draft.parity,
        metrics=(
            Metric(name="top-1 accuracy", value=74.2, float_value=75.0, unit="%", samples=250, source="250 pictures"),
            Metric(name="SQNR", value=21.4, unit="dB", samples=250, source="250 pictures"),
        ),
        primary="top-1 accuracy",
        drop=0.8,
        latency=LatencyComparison(quantized=_latency(5.0), float_model=_latency(11.0), speedup=2.2, cpu_speedup=2.1),
        memory=Memory(peak_mb=120, baseline_mb=50),
        float_memory=Memory(peak_mb=160, baseline_mb=50),
        size=draft.size,
        placement=tuple(placement),
        blame=tuple(blame),
        plan=(
            PlanRow(tensor="x", role="activation", dtype="uint8", scale="0.02", consumers=1, rule="inputs of Conv"),
            PlanRow(tensor="t", role="activation", consumers=1, rule="skip", skip_reason="no integer kernel"),
        ),
        contract=Contract(
            clauses=(Clause(option="--max-drop", asked=0.5, measured=0.8, unit="points", met=False),), met=False
        ),
        findings=(Finding(severity="warning", text="one node is slow", nodes=("tanh_d",), remedy="leave it float"),),
    )
