"""ONNX Runtime's own format: the graph as it is after all optimizations, and which operators it needs.

A file of this format loads without optimizing, can be mapped into memory, and is all that a reduced build of
ONNX Runtime takes. It suits the version that wrote it and later ones, not earlier ones.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeq.errors import ModelError

__all__ = ["OrtModel", "convert_to_ort"]


@dataclass(frozen=True)
class OrtModel:
    """A converted model. ``operators`` is the configuration of a reduced build; ``key`` is what both follow from."""

    path: Path
    operators: str
    key: str


def convert_to_ort(model: Path, session: Mapping[str, str], scratch: Path, *, sha256: str) -> OrtModel:
    """Convert for Arm processors, as ``onnxruntime.tools.convert_onnx_models_to_ort --target_platform arm`` does.

    Unlike that tool, it optimizes with the model's own ``session`` entries, which choose kernels. The layout of
    convolutions that only x86 has (NCHWc) is left out. ``sha256`` is the model's.

    Raises:
        ModelError: ONNX Runtime's CPU provider cannot load the model.
    """
    import onnxruntime as ort
    from onnxruntime.tools.ort_format_model.utils import create_config_from_models

    goal = Path(tempfile.mkdtemp(dir=scratch)) / "model.ort"
    options = ort.SessionOptions()
    for key, value in session.items():
        options.add_session_config_entry(key, value)
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.optimized_model_filepath = str(goal)
    try:
        ort.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"], disabled_optimizers=["NchwcTransformer"]
        )
    except Exception as error:
        raise ModelError(
            f"ONNX Runtime cannot convert the model to its own format: {error}",
            where=str(model),
            remedy="use --format onnx",
        ) from None
    config = goal.with_name("operators.config")
    logging.getLogger("ort_format_model.utils").setLevel(logging.WARNING)  # it tells each run of a temporary file
    create_config_from_models([goal], config, enable_type_reduction=True)
    lines = [line for line in config.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    seed = "\n".join([sha256, ort.__version__, *(f"{key}={value}" for key, value in sorted(session.items()))])
    return OrtModel(goal, "".join(f"{line}\n" for line in lines if line), hashlib.sha256(seed.encode()).hexdigest())
