"""One quantizer in this process: ``python quantizers.py METHOD FLOAT.onnx OUTPUT.onnx RECIPE.toml``.

``METHOD`` is one of ``METHODS`` below. The last line of the output is JSON: the peak memory in MB, and the CPU
seconds of preparation, which ONNX Runtime's quantizer has had done before (``quant_pre_process``).
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path


def edgeq(model: str, output: str, recipe: str) -> float:
    """Prepare, calibrate, choose, insert and save, as ``edgeq export`` does before it judges.

    Returns the CPU seconds of loading the model and of preparation with its proofs.
    """
    import time

    from edgeq.graph import save_model
    from edgeq.pipeline import Job
    from edgeq.request import Data
    from edgeq.stages.insert import insert_qdq, verify_qdq
    from edgeq.stages.tune import finish

    # With evaluation data given, nothing is held out: all of the recipe's samples calibrate.
    # Effort 0 is what compares with ONNX Runtime in cost; compare_peers.py has the others.
    data = Data(calibration=recipe, evaluation=recipe)
    job = Job(model, "linux-x64", data=data, precision="w8a8", effort=0)
    start = time.process_time()
    _ = job.prepared  # made on first use
    prepare_s = time.process_time() - start
    scheme = job.schemes[0]
    shaped, plan = job.plan(scheme)
    quantized = finish(insert_qdq(shaped, plan), job.target, scheme)
    verify_qdq(quantized)
    save_model(quantized, output)
    return prepare_s


def ort_minmax(model: str, output: str, recipe: str) -> None:
    """ONNX Runtime's quantize_static at its best for x86: per channel, uint8 activations, int8 weights."""
    _quantize_static(model, output, recipe, "MinMax", None)


def ort_percentile(model: str, output: str, recipe: str) -> None:
    """The same with the percentile calibrator."""
    _quantize_static(model, output, recipe, "Percentile", None)


def ort_matmul_only(model: str, output: str, recipe: str) -> None:
    """Min-max on MatMul alone."""
    _quantize_static(model, output, recipe, "MinMax", ["MatMul"])


def ort_dynamic(model: str, output: str, recipe: str) -> None:
    """ONNX Runtime's quantize_dynamic: no data, activations are measured while the model runs."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(model, output, per_channel=True, weight_type=QuantType.QInt8)


def imports() -> None:
    """All modules of both tools."""
    import onnxruntime.quantization
    import PIL.ImageOps
    import tokenizers

    import edgeq.cli
    import edgeq.pipeline

    del onnxruntime, PIL, tokenizers, edgeq


METHODS = {
    "edgeq": edgeq,
    "ORT min-max": ort_minmax,
    "ORT percentile": ort_percentile,
    "ORT MatMul only": ort_matmul_only,
    "ORT dynamic": ort_dynamic,
}


def _quantize_static(model: str, output: str, recipe: str, calibrator: str, ops: list[str] | None) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.samples = _samples(Path(recipe))

        def get_next(self) -> dict | None:
            return next(self.samples, None)

    quantize_static(
        model,
        output,
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=ops,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[calibrator],
    )


def _samples(recipe: Path) -> Iterator[dict]:
    """What the recipe says, written for this benchmark alone: ONNX Runtime's process does not import edgeq."""
    import numpy as np

    table = tomllib.loads(recipe.read_text())
    path, preprocess = Path(table["source"]["path"]), table["preprocess"]
    if preprocess["kind"] == "image":
        from PIL import Image

        mean, std = (np.array(preprocess[key], np.float32) for key in ("mean", "std"))
        for file in sorted(path.iterdir()):
            with Image.open(file) as image:
                pixels = np.asarray(image.convert("RGB"), np.float32)
            yield {"inputs": ((pixels - mean) / std).transpose(2, 0, 1)[None]}
        return
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(preprocess["tokenizer"])
    tokenizer.enable_truncation(preprocess["max_length"])
    tokenizer.enable_padding(length=preprocess["max_length"])
    for line in path.read_text().splitlines():
        encoded = tokenizer.encode(json.loads(line)["text"])
        columns = {
            "input_ids": encoded.ids,
            "attention_mask": encoded.attention_mask,
            "token_type_ids": encoded.type_ids,
        }
        yield {name: np.array([ids], np.int64) for name, ids in columns.items()}


def _peak_mb() -> float:
    # ru_maxrss is inherited from the parent over exec on Linux; VmHWM is this program's own.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


if __name__ == "__main__":
    prepare_s = imports() if sys.argv[1] == "imports" else METHODS[sys.argv[1]](*sys.argv[2:])
    print(json.dumps({"peak_mb": _peak_mb(), "prepare_s": prepare_s or 0.0}))
