"""onnxruntime.quantization, as its documentation advises for x86: QDQ, uint8 activations, int8 weights per channel."""

from __future__ import annotations

from pathlib import Path

import onnx
from common import Reader, Task, main
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

WEIGHTS = {8: QuantType.QInt8, 4: QuantType.QInt4}
ACTIVATIONS = {8: QuantType.QUInt8, 16: QuantType.QUInt16}

CalibrationDataReader.register(Reader)


def prepared(task: Task) -> str:
    path = str(Path(task.output).with_name("preprocessed.onnx"))
    quant_pre_process(task.model, path, skip_symbolic_shape=True)
    return path


def static(task: Task, calibrator: str, ops: list[str] | None = None, extra: dict | None = None) -> None:
    quantize_static(
        prepared(task),
        task.output,
        Reader(task.feeds()),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=ops,
        per_channel=True,
        activation_type=ACTIVATIONS[task.activation_bits],
        weight_type=WEIGHTS[task.weight_bits],
        calibrate_method=CalibrationMethod[calibrator],
        extra_options=extra or {},
    )


def percentile(task: Task) -> None:
    static(task, "Percentile", extra={"CalibPercentile": 99.999})


def dynamic(task: Task) -> None:
    quantize_dynamic(prepared(task), task.output, per_channel=True, weight_type=QuantType.QInt8)


def matmul_4bits(task: Task) -> None:
    """Weights alone, blocks of 32: activations stay float."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(task.model), bits=4, block_size=32, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(task.output)


main(
    {
        "minmax": lambda task: static(task, "MinMax"),
        "percentile": percentile,
        "matmul-only": lambda task: static(task, "MinMax", ["MatMul"]),
        "dynamic": dynamic,
        "matmul-4bits": matmul_4bits,
    }
)
