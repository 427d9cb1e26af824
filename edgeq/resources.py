"""Find the data folders ``targets/`` and ``calibration/``: in the wheel, or beside the package in a checkout."""

from __future__ import annotations

from pathlib import Path

from edgeq.errors import ConfigError

__all__ = ["data_folder", "data_names", "data_path"]

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
