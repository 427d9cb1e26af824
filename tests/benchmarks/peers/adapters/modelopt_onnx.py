"""NVIDIA ModelOpt's ONNX quantization, calibrated on the CPU; floats stay float32."""

from __future__ import annotations

import numpy as np
from common import Task, main
from modelopt.onnx.quantization import quantize


def run(task: Task, mode: str, method: str) -> None:
    feeds = task.feeds()
    data = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
    quantize(
        task.model,
        quantize_mode=mode,
        calibration_data=data,
        calibration_method=method,
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        mha_accumulation_dtype="fp32",
        output_path=task.output,
        **({"block_size": 32} if mode == "int4" else {}),
    )


main(
    {
        "int8-entropy": lambda task: run(task, "int8", "entropy"),
        "int8-max": lambda task: run(task, "int8", "max"),
        "int4-awq-clip": lambda task: run(task, "int4", "awq_clip"),
    }
)
