"""neural-compressor 3, which quantizes PyTorch, TensorFlow and JAX: the entry that its version 2 had for ONNX."""

from __future__ import annotations

from common import Task, main


def run(task: Task) -> None:
    from neural_compressor import PostTrainingQuantConfig, quantization

    model = quantization.fit(task.model, PostTrainingQuantConfig(approach="static"), calib_dataloader=task.feeds())
    model.save(task.output)


main({"static": run})
