"""Optional packages: imported on first use, with one clear error if they are missing."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from edgeq.errors import ExportError

__all__ = ["exporter_version", "file_digest", "need", "version"]


def need(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import ``module``; raises ExportError that names the extra of edgeq which brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = (error.name or module).partition(".")[0]
        raise ExportError(
            f"{purpose} needs the package {package!r}, which is not installed",
            remedy=f"pip install 'edgeq[{extra}]'",
        ) from None


def version(distribution: str) -> str:
    """Installed version of a distribution, or ``"unknown"``."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def exporter_version() -> str:
    """The name of torch's ONNX exporter, and the versions that decide what it writes."""
    return f"torch.onnx.export(dynamo=True), torch {version('torch')}, onnxscript {version('onnxscript')}"


def file_digest(paths: Iterable[Path]) -> str:
    """sha256 over the contents of files, in the order given, read in pieces."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()
