"""ONNX Runtime's own format: the graph as it is after all optimizations, and which operators it needs.

A file of this format loads without optimizing, can be mapped into memory, and is all that a reduced build of
ONNX Runtime takes. It suits the version that wrote it and later ones; `releases` says what is known of earlier ones.
"""

from __future__ import annotations

import hashlib
import logging
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeq.errors import ModelError

__all__ = ["MAPPED", "OrtModel", "convert_to_ort"]

MAPPED = {"session.use_memory_mapped_ort_model": "1"}
"""Session entry: the file is not read into memory first. ONNX Runtime knows it since 1.27, older ones ignore it."""


@dataclass(frozen=True)
class OrtModel:
    """A converted model. ``operators`` is the configuration of a reduced build; ``key`` is what both follow from."""

    path: Path
    operators: str
    key: str

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know before it is run on a PC or server."""
        if not re.search(r"\b(Fused)?Conv\b", self.operators):
            return ()
        return (
            "the model has float convolutions, which x86 processors run slower from the ort format: it leaves out the "
            "layout that suits one kind of them (NCHWc); compare with --format onnx",
        )


def convert_to_ort(
    model: Path,
    session: Mapping[str, str],
    scratch: Path,
    *,
    sha256: str,
    made: Mapping[str, Path] | None = None,
) -> OrtModel:
    """Convert as ``onnxruntime.tools.convert_onnx_models_to_ort --target_platform arm`` does.

    Unlike that tool, it optimizes with the model's own ``session`` entries, which choose kernels. The layout of
    convolutions that suits one kind of x86 processor (NCHWc) is left out: the file runs on all. ``sha256`` is the
    model's. ``made`` holds earlier conversions by their keys: as no two have the same bytes, such a one is taken.

    Raises:
        ModelError: ONNX Runtime's CPU provider cannot load the model.
    """
    import onnxruntime as ort

    seed = "\n".join([sha256, ort.__version__, *(f"{key}={value}" for key, value in sorted(session.items()))])
    key = hashlib.sha256(seed.encode()).hexdigest()
    folder = Path(tempfile.mkdtemp(dir=scratch))
    goal = (made or {}).get(key)
    if goal is None:
        goal = folder / "model.ort"
        _convert(model, session, goal)
    return OrtModel(goal, _required_operators(goal, folder), key)


def _convert(model: Path, session: Mapping[str, str], goal: Path) -> None:
    import onnxruntime as ort

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


def _required_operators(model: Path, folder: Path) -> str:
    from onnxruntime.tools.ort_format_model.utils import create_config_from_models

    config = folder / "operators.config"
    logging.getLogger("ort_format_model.utils").setLevel(logging.WARNING)  # it tells each run of a temporary file
    create_config_from_models([model], config, enable_type_reduction=True)
    lines = [line for line in config.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return "".join(f"{line}\n" for line in lines if line)
