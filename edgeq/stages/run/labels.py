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
    3. A folder with one folder per class: each file's own folder is its class. If all are numbers they are
       ids, otherwise they count in sorted order, whether ``files`` holds pictures of each or not.

    Raises:
        CalibrationError: unreadable, malformed, one name with two labels, or a file has no label.
    """
    path = Path(path)
    names = [Path(file) for file in files]
    if path.is_dir():
        return _from_folders(path, names)
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
        return _table([(name, _ids(ids)) for name, ids in value.items()])
    if not isinstance(value, list):
        raise TypeError("expected a list or an object")
    rows = []
    for entry in value:
        keys = [key for key in ("imagenet_ids", "ids", "label") if key in entry]
        rows.append((entry["file"], _ids(entry[keys[0]])))
    return _table(rows)


def _from_csv(text: str) -> dict[str, tuple[int, ...]]:
    rows = [row for row in csv.reader(text.splitlines()) if row]
    if rows and not re.fullmatch(r"[\d\s;]+", rows[0][1]):
        rows = rows[1:]
    return _table([(row[0], _ids(re.split(r"[\s;]+", row[1].strip()))) for row in rows])


def _table(rows: Sequence[tuple[str, tuple[int, ...]]]) -> dict[str, tuple[int, ...]]:
    """Labels by file name without folders; two folders may hold files of one name, but not with two labels."""
    table: dict[str, tuple[int, ...]] = {}
    for file, ids in rows:
        name = Path(file).name
        if table.setdefault(name, ids) != ids:
            raise ValueError(f"two files are named {name!r}, with different labels")
    return table


def _from_folders(path: Path, names: Sequence[Path]) -> tuple[tuple[int, ...], ...]:
    folders = sorted(folder.name for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    numbered = all(folder.isdecimal() for folder in folders)
    ids = {folder: int(folder) if numbered else index for index, folder in enumerate(folders)}
    if stray := [name for name in names if name.parent.name not in ids]:
        raise CalibrationError(
            f"{len(stray)} of {len(names)} files lie in no class folder of the labels, such as {str(stray[0])!r}",
            where=str(path),
            remedy="give the folder that holds one folder per class, and measure on pictures of those",
        )
    return tuple((ids[name.parent.name],) for name in names)


def _ids(value: object) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    ids = tuple(int(str(item)) for item in values)
    if not ids or min(ids) < 0:
        raise ValueError(f"{value!r} is no class id")
    return ids
