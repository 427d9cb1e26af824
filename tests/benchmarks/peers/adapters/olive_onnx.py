"""Microsoft Olive's static quantization pass, which calls onnxruntime.quantization."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from common import Task, main

SCRIPT = """
import numpy as np
from olive.data.registry import Registry

@Registry.register_dataset()
def samples(**options):
    return Samples()

class Samples:
    def __init__(self):
        with np.load({path!r}) as file:
            self.arrays = dict(file)
    def __len__(self):
        return len(next(iter(self.arrays.values())))
    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError(index)
        return {{name: array[index, 0] for name, array in self.arrays.items()}}, 0
"""


def run(task: Task) -> None:
    from olive import run as workflow

    folder = Path(task.output).parent
    script = folder / "samples.py"
    script.write_text(SCRIPT.format(path=task.samples))
    precision = {4: "int4", 8: "int8"}[task.weight_bits], {8: "uint8", 16: "uint16"}[task.activation_bits]
    settings = {
        "input_model": {"type": "ONNXModel", "model_path": task.model},
        "data_configs": [
            {
                "name": "samples",
                "type": "DataContainer",
                "user_script": str(script),
                "load_dataset_config": {"type": "samples"},
                "dataloader_config": {"batch_size": 1},
            }
        ],
        "passes": {
            "quantize": {
                "type": "OnnxStaticQuantization",
                "data_config": "samples",
                "quant_format": "QDQ",
                "per_channel": True,
                "precision": precision[0],
                "activation_type": precision[1],
                "quant_preprocess": True,
            }
        },
        "output_dir": str(folder / "olive"),
        "cache_dir": str(folder / "cache"),
        "evaluate_input_model": False,
    }
    (folder / "settings.json").write_text(json.dumps(settings, indent=2))
    workflow(settings)
    shutil.copy(next((folder / "olive").rglob("*.onnx")), task.output)


main({"static": run})
