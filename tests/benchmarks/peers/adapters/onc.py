"""onnx-neural-compressor (Intel's Neural Compressor for ONNX): static and SmoothQuant."""

from __future__ import annotations

from pathlib import Path

import onnx
from common import Reader, Task, main
from onnx_neural_compressor import data_reader
from onnx_neural_compressor.quantization import config, quantize
from onnxruntime.quantization import QuantFormat


class Samples(Reader, data_reader.CalibrationDataReader):
    """Its reader has to be a subclass."""


def run(task: Task, **extra: object) -> None:
    feeds = task.feeds()
    settings = config.StaticQuantConfig(
        calibration_data_reader=Samples(feeds),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        calibration_sampling_size=len(feeds),
        extra_options=extra,
        execution_provider="CPUExecutionProvider",
    )
    quantize(task.model, task.output, settings)
    # It leaves the weights in a file of another name: into the model with them, for its size counts both files.
    onnx.save(onnx.load(task.output), task.output)
    for file in Path(task.output).parent.glob(f"{Path(task.output).name}*data"):
        file.unlink()


main({"static": run, "smooth": lambda task: run(task, SmoothQuant=True, SmoothQuantAlpha=0.5)})
