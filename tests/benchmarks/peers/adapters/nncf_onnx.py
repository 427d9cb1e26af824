"""NNCF's ONNX backend: quantize() with its presets, compress_weights() for 4 bits."""

from __future__ import annotations

import nncf
import onnx
from common import Task, main


def quantize(task: Task, *, fast: bool, smooth: bool = True) -> None:
    """MIXED (uint8 activations) as NNCF's documentation advises where activations are not all positive.

    ``model_type=TRANSFORMER`` brings SmoothQuant and keeps what suits transformers in floats.
    """
    off = nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
    quantized = nncf.quantize(
        onnx.load(task.model),
        nncf.Dataset(task.feeds()),
        preset=nncf.QuantizationPreset.MIXED,
        fast_bias_correction=fast,
        subset_size=len(task.feeds()),
        model_type=nncf.ModelType.TRANSFORMER if task.transformer else None,
        advanced_parameters=None if smooth else nncf.AdvancedQuantizationParameters(smooth_quant_alphas=off),
    )
    onnx.save(quantized, task.output)


def weights(task: Task, **algorithms: bool) -> None:
    """4-bit weights in groups of 32 with data; activations stay float."""
    compressed = nncf.compress_weights(
        onnx.load(task.model),
        mode=nncf.CompressWeightsMode.INT4_SYM,
        ratio=1.0,
        group_size=32,
        all_layers=True,
        dataset=nncf.Dataset(task.feeds()),
        subset_size=len(task.feeds()),
        **algorithms,
    )
    onnx.save(compressed, task.output)


main(
    {
        "fast": lambda task: quantize(task, fast=True),
        "full": lambda task: quantize(task, fast=False),
        "unsmoothed": lambda task: quantize(task, fast=True, smooth=False),
        "int4-awq-scale": lambda task: weights(task, awq=True, scale_estimation=True),
    }
)
