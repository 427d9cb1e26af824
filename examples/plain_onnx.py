"""An ONNX file from anywhere, with arrays to calibrate it. Needs neither torch nor transformers.

    python examples/plain_onnx.py model.onnx arrays.npy

Without arguments it makes a small model and some noise, to show the steps.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import edgeq


def make_model(path: Path) -> None:
    """Two layers, ``x: float32[batch, 64]`` -> ``y: float32[batch, 10]``."""
    rng = np.random.default_rng(0)
    weights = {"w1": (64, 256), "w2": (256, 10)}
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w1"], ["hidden"], name="first"),
            helper.make_node("Relu", ["hidden"], ["active"], name="relu"),
            helper.make_node("Gemm", ["active", "w2"], ["y"], name="second"),
        ],
        "two_layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        [
            numpy_helper.from_array(rng.normal(0, shape[0] ** -0.5, shape).astype(np.float32), name)
            for name, shape in weights.items()
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def main() -> None:
    """Package a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("calibration", type=Path, nargs="?")
    parser.add_argument("--output", type=Path, default=Path("demo-output/plain"))
    parser.add_argument("--target", default="linux-arm64")
    arguments = parser.parse_args()

    model, calibration = arguments.model, arguments.calibration
    if model is None:
        folder = arguments.output.parent
        folder.mkdir(parents=True, exist_ok=True)
        model, calibration = folder / "two_layers.onnx", folder / "two_layers.npy"
        make_model(model)
        np.save(calibration, np.random.default_rng(1).normal(size=(200, 64)).astype(np.float32))

    try:
        result = edgeq.export(
            model,
            target=arguments.target,
            calibration=calibration,
            output=arguments.output,
            min_sqnr=30,
            overwrite=True,
        )
    except edgeq.ContractError as error:
        result = error.exported  # the best there is, to look at
        print(error)
    for metric in result.report.metrics:
        print(f"{metric.name}: {metric.value:.4g} {metric.unit}")
    for node in result.report.placement:
        print(f"{node.node} ({node.op_type}) runs as {node.runs_as}")


if __name__ == "__main__":
    main()
