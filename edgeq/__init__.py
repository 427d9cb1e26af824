"""edgeq: from a PyTorch, Hugging Face or ONNX model to a small, fast, proven ONNX package for one edge target.

    >>> import edgeq
    >>> result = edgeq.export("model.onnx", target="android", calibration="photos/")

Everything is imported on first use, so that ``import edgeq`` costs nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# ONNX Runtime sends telemetry by default since 1.29; this must be set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

_LAZY: dict[str, str] = {
    "ContractError": "edgeq.errors",
    "EdgeqError": "edgeq.errors",
    "GateError": "edgeq.errors",
    "compare": "edgeq.api",
    "embed": "edgeq.api",
    "export": "edgeq.api",
    "load_recipe": "edgeq.recipe",
    "load_target": "edgeq.target",
    "read_bundle": "edgeq.bundle",
    "run": "edgeq.api",
    "run_on_devices": "edgeq.api",
    "target_names": "edgeq.target",
}

if TYPE_CHECKING:
    from edgeq.api import compare, embed, export, run, run_on_devices
    from edgeq.bundle import read_bundle
    from edgeq.errors import ContractError, EdgeqError, GateError
    from edgeq.recipe import load_recipe
    from edgeq.target import load_target, target_names

__all__ = [
    "ContractError",
    "EdgeqError",
    "GateError",
    "__version__",
    "compare",
    "embed",
    "export",
    "load_recipe",
    "load_target",
    "read_bundle",
    "run",
    "run_on_devices",
    "target_names",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'edgeq' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return __all__
