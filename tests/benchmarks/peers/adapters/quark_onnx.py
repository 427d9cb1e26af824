"""AMD Quark's ONNX quantization: its presets, and the same per channel, which its presets leave out."""

from __future__ import annotations

from common import Reader, Task, main
from onnxruntime.quantization import CalibrationDataReader
from quark.onnx import ModelQuantizer, QConfig
from quark.onnx.quantization.config import custom_config
from quark.onnx.quantization.config.algorithm import AdaRoundConfig, SmoothQuantConfig
from quark.onnx.quantization.config.spec import CalibMethod, Int8Spec, QLayerConfig, QuantGranularity, UInt8Spec

CalibrationDataReader.register(Reader)


def run(task: Task, config: QConfig) -> None:
    ModelQuantizer(config).quantize_model(task.model, task.output, Reader(task.feeds()))


def per_channel(task: Task, *, adaround: bool = False) -> None:
    """uint8 activations (min-max) and int8 weights per channel; SmoothQuant for transformers, as its guide advises."""
    algorithms: list = [SmoothQuantConfig(alpha=0.5)] if task.transformer else []
    if adaround:
        count = len(task.feeds())
        algorithms.append(AdaRoundConfig(data_size=count, batch_size=2, num_iterations=1000, early_stop=True))
    layer = QLayerConfig(
        activation=UInt8Spec(calibration_method=CalibMethod.MinMax),
        weight=Int8Spec(calibration_method=CalibMethod.MinMax, quant_granularity=QuantGranularity.Channel),
    )
    run(task, QConfig(global_config=layer, algo_config=algorithms))


main(
    {
        "a8w8": lambda task: run(task, custom_config.A8W8_QCONFIG),
        "xint8": lambda task: run(task, custom_config.XINT8_QCONFIG),
        "channel": per_channel,
        "adaround": lambda task: per_channel(task, adaround=True),
    }
)
