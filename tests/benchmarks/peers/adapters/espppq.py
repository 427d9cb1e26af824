"""ESP-PPQ (Espressif's PPQ), which writes ONNX with QDQ: its defaults, and learned scales and weights (LSQ)."""

from __future__ import annotations

import torch
from common import Task, main
from esp_ppq.api import export_ppq_graph, quantize_onnx_model
from esp_ppq.api.setting import QuantizationSettingFactory
from esp_ppq.core import TargetPlatform


def run(task: Task, *, lsq: bool = False) -> None:
    setting = QuantizationSettingFactory.default_setting()
    setting.equalization = not task.transformer
    setting.bias_correct = not lsq and not task.transformer
    setting.lsq_optimization = lsq
    setting.lsq_optimization_setting.collecting_device = "cpu"
    batches = [{name: torch.from_numpy(array) for name, array in feed.items()} for feed in task.feeds()]
    graph = quantize_onnx_model(
        onnx_import_file=task.model,
        calib_dataloader=batches,
        calib_steps=len(batches),
        input_shape=None,
        inputs=list(batches[0].values()),
        platform=TargetPlatform.OPENVINO_INT8,
        setting=setting,
        device="cpu",
    )
    export_ppq_graph(graph, TargetPlatform.ONNXRUNTIME, graph_save_to=task.output)


main({"default": run, "lsq": lambda task: run(task, lsq=True)})
