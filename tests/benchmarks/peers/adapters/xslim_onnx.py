"""SpacemiT's XSlim, made from PPQ: minimum ranges and its finetuning levels."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
from common import Task, main


def mend_torchvision() -> None:
    """Leave out what keeps torchvision's wheel from importing beside torch's build for CPUs: XSlim uses none of it."""
    sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")


def run(task: Task, level: int) -> None:
    mend_torchvision()
    import xslim

    folder = Path(task.output).parent / "samples"
    folder.mkdir()
    feeds = task.feeds()
    inputs = []
    for name in feeds[0]:
        files = [folder / f"{name}-{index}.npy" for index in range(len(feeds))]
        for file, feed in zip(files, feeds, strict=True):
            np.save(file, feed[name])
        (folder / f"{name}.txt").write_text("\n".join(map(str, files)))
        inputs.append({"input_name": name, "file_type": "npy", "data_list_path": str(folder / f"{name}.txt")})
    settings = {
        "model_parameters": {"onnx_model": task.model, "working_dir": str(folder)},
        "calibration_parameters": {
            "calibration_step": len(feeds),
            "calibration_device": "cpu",
            "input_parameters": inputs,
        },
        "quantization_parameters": {"finetune_level": level, "analysis_enable": False},
    }
    xslim.quantize_onnx_model(settings, task.model, task.output)


main({str(level): lambda task, level=level: run(task, level) for level in (0, 1, 2)})  # type: ignore[misc]
