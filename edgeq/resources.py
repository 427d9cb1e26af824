"""Find the data folders ``targets/`` and ``calibration/``, in the wheel or beside it in a checkout, and the cache."""

from __future__ import annotations

import os
from pathlib import Path

from edgeq.errors import ConfigError

__all__ = ["cache_folder", "data_folder", "data_names", "data_path"]

_PACKAGE = Path(__file__).resolve().parent


def data_folder(kind: str) -> Path:
    """The folder of ``kind`` (``"targets"`` or ``"calibration"``).

    A wheel carries it inside the package; a checkout or an editable install has it at the top level.
    """
    for folder in (_PACKAGE / kind, _PACKAGE.parent / kind):
        if folder.is_dir() and any(folder.glob("*.toml")):
            return folder
    raise ConfigError(
        f"the data folder {kind!r} is missing from this installation",
        where=str(_PACKAGE),
        remedy="reinstall edgeq",
    )


def data_names(kind: str) -> tuple[str, ...]:
    """The names of all TOML files of ``kind``, sorted, without their ending."""
    return tuple(sorted(path.stem for path in data_folder(kind).glob("*.toml")))


def data_path(kind: str, name: str) -> Path:
    """The file ``name`` of ``kind``; raises ConfigError that lists what there is."""
    if name not in data_names(kind):
        noun = {"targets": "target", "calibration": "calibration recipe"}[kind]
        raise ConfigError(f"unknown {noun} {name!r}", remedy=f"choose one of: {', '.join(data_names(kind))}")
    return data_folder(kind) / f"{name}.toml"


def cache_folder() -> Path:
    """For statistics and sandboxes: ``$EDGEQ_CACHE``, else ``$XDG_CACHE_HOME/edgeq``, else ``~/.cache/edgeq``."""
    if folder := os.environ.get("EDGEQ_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeq"
