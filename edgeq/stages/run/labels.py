"""Labels for accuracy: for each sample the class ids that count as right, from the forms people have."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from edgeq.errors import CalibrationError

__all__ = ["load_labels"]


def load_labels(path: str | os.PathLike[str], files: Sequence[str | os.PathLike[str]]) -> tuple[tuple[int, ...], ...]:
    """The labels of ``files``, in their order.

    1. ``labels.json``: a list of ``{"file": "a.jpg", "imagenet_ids": [1, 2]}`` (or ``"ids"``,
       ``"label"``), or an object from file names to ids.
    2. ``labels.csv``: lines of ``file,id``; several ids are separated by spaces. A header is skipped.
    3. A folder: each file's own folder is its class; numbers are ids, other names count in sorted order.

    Raises:
        CalibrationError: unreadable, malformed, or a file has no label.
    """
    path = Path(path)
    names = [Path(file) for file in files]
    if path.is_dir():
        return _from_folders(names)
    try:
        text = path.read_text(encoding="utf-8")
        table = _from_json(json.loads(text)) if path.suffix == ".json" else _from_csv(text)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CalibrationError(
            f"the labels cannot be read: {type(error).__name__}: {error}",
            where=str(path),
            remedy='write JSON [{"file": "a.jpg", "ids": [1]}, ...] or CSV lines of file,id',
        ) from None
    missing = [name.name for name in names if name.name not in table]
    if missing:
        raise CalibrationError(
            f"{len(missing)} of {len(names)} files have no label, such as {missing[0]!r}",
            where=str(path),
            remedy="add them, or measure on the files that have one",
        )
    return tuple(table[name.name] for name in names)


def _from_json(value: object) -> dict[str, tuple[int, ...]]:
    if isinstance(value, dict):
        return {Path(name).name: _ids(ids) for name, ids in value.items()}
    if not isinstance(value, list):
        raise TypeError("expected a list or an object")
    table = {}
    for entry in value:
        keys = [key for key in ("imagenet_ids", "ids", "label") if key in entry]
        table[Path(entry["file"]).name] = _ids(entry[keys[0]])
    return table


def _from_csv(text: str) -> dict[str, tuple[int, ...]]:
    rows = [row for row in csv.reader(text.splitlines()) if row]
    if rows and not re.fullmatch(r"[\d\s;]+", rows[0][1]):
        rows = rows[1:]
    return {Path(row[0]).name: _ids(re.split(r"[\s;]+", row[1].strip())) for row in rows}


def _from_folders(names: Sequence[Path]) -> tuple[tuple[int, ...], ...]:
    folders = sorted({name.parent.name for name in names})
    if all(folder.isdecimal() for folder in folders):
        return tuple((int(name.parent.name),) for name in names)
    return tuple((folders.index(name.parent.name),) for name in names)


def _ids(value: object) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    ids = tuple(int(str(item)) for item in values)
    if not ids or min(ids) < 0:
        raise ValueError(f"{value!r} is no class id")
    return ids
