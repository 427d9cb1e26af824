"""Samples in ``.npy`` and ``.npz`` files: read row by row, never a whole file, never a pickle."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgeq.errors import CalibrationError
from edgeq.graph import TensorInfo
from edgeq.stages.calibrate.conform import count_rows, has_batch_axis

__all__ = ["ArrayFileStore", "open_array_files"]

_MOST_UNPACKED = 16 << 30
"""Bytes that one ``.npz`` may unpack to on disk; beyond that it is a mistake or an attack."""

_ZIP_ERRORS = (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error)

_Rows = tuple[Path, "int | None"]
"""A file and the row in it; None: the file is one item as a whole."""


def open_array_files(path: Path, inputs: Sequence[TensorInfo]) -> ArrayFileStore:
    """The rows of a file, or of all ``.npy`` and ``.npz`` files of a folder in order of their names.

    Raises:
        CalibrationError: nothing there, not numpy's format, pickled objects, or arrays that do not
            fit the inputs in name or rank.
    """
    files = sorted(f for f in path.iterdir() if f.suffix.lower() in (".npy", ".npz")) if path.is_dir() else [path]
    if not files:
        raise CalibrationError("the folder holds no .npy or .npz files", where=str(path))
    rows: list[_Rows] = []
    for file in files:
        if file.suffix.lower() == ".npy" and len(inputs) != 1:
            raise CalibrationError(
                f"a .npy file holds one array, but the model has {len(inputs)} inputs: "
                + "; ".join(info.describe() for info in inputs),
                where=str(file),
                remedy="use .npz files whose arrays are named as the inputs",
            )
        shapes = _shapes(file, inputs)
        count = count_rows(shapes, inputs, str(file)) if has_batch_axis(inputs) else None
        rows.extend([(file, None)] if count is None else [(file, row) for row in range(count)])
    return ArrayFileStore(rows, inputs)


class ArrayFileStore:
    """Rows of array files (see `edgeq.stages.calibrate.feeds.Store`)."""

    settings = "arrays"

    def __init__(self, rows: Sequence[_Rows], inputs: Sequence[TensorInfo]) -> None:
        self._rows = tuple(rows)
        self.names = tuple(str(file) if row is None else f"{file}[{row}]" for file, row in rows)
        self._inputs = tuple(inputs)
        self._add_axis = has_batch_axis(inputs)
        self._open: tuple[Path, dict[str, np.ndarray], tempfile.TemporaryDirectory[str] | None] | None = None

    def digest(self, row: int) -> bytes:
        digest = hashlib.sha256()
        for name, array in sorted(self.read([row]).items()):
            digest.update(f"{name}:{array.dtype}:{array.shape}".encode() + array.tobytes())
        return digest.digest()

    def read(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        parts = [self._item(*self._rows[row]) for row in rows]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if rows[1:] else parts[0]

    def _item(self, file: Path, row: int | None) -> dict[str, np.ndarray]:
        arrays = self._arrays(file)
        if row is None:
            return {
                name: np.array(array)[None] if self._add_axis else np.array(array) for name, array in arrays.items()
            }
        return {name: _row(array, row) for name, array in arrays.items()}

    def _arrays(self, file: Path) -> dict[str, np.ndarray]:
        """The arrays of ``file``, mapped; of a ``.npz`` after unpacking it to disk. One file is open at a time."""
        if self._open is None or self._open[0] != file:
            self._open = None
            if file.suffix.lower() == ".npy":
                self._open = (file, {self._inputs[0].name: _load(file)}, None)
            else:
                folder = tempfile.TemporaryDirectory(prefix="edgeq-")
                _unpack(file, [info.name for info in self._inputs], folder)
                arrays = {info.name: _load(_member(folder, number)) for number, info in enumerate(self._inputs)}
                self._open = (file, arrays, folder)
        return self._open[1]


def _unpack(file: Path, names: Sequence[str], folder: tempfile.TemporaryDirectory[str]) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            for number, name in enumerate(names):
                with archive.open(f"{name}.npy") as source, _member(folder, number).open("wb") as target:
                    shutil.copyfileobj(source, target)
    except _ZIP_ERRORS as error:
        raise _unreadable(file, error) from None


def _member(folder: tempfile.TemporaryDirectory[str], number: int) -> Path:
    """Numbered, because names in an archive come from strangers."""
    return Path(folder.name) / f"{number}.npy"


def _load(file: Path) -> np.ndarray:
    try:
        return np.lib.format.open_memmap(file, mode="r")  # refuses objects, so there is no pickle to load
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(file, error) from None


def _row(array: np.ndarray, row: int) -> np.ndarray:
    """``array[row : row + 1]``, read from the file: touched pages of a mapping would count as memory in use."""
    if not isinstance(array, np.memmap) or not array.flags.c_contiguous or array.filename is None:
        return np.array(array[row : row + 1])
    with Path(array.filename).open("rb") as stream:
        size = array[0].nbytes
        stream.seek(array.offset + row * size)
        return np.frombuffer(stream.read(size), array.dtype).reshape(1, *array.shape[1:])


def _shapes(file: Path, inputs: Sequence[TensorInfo]) -> dict[str, tuple[int, ...]]:
    """The shapes by input name, from the headers alone."""
    if file.suffix.lower() == ".npy":
        return {inputs[0].name: _load(file).shape}
    try:
        with zipfile.ZipFile(file) as archive:
            if sum(member.file_size for member in archive.infolist()) > _MOST_UNPACKED:
                raise CalibrationError(
                    f"the file unpacks to more than {_MOST_UNPACKED >> 30} GiB",
                    where=str(file),
                    remedy="split it into several files in one folder",
                )
            shapes = {}
            for member in archive.namelist():
                with archive.open(member) as stream:
                    version = np.lib.format.read_magic(stream)
                    reader = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shapes[member.removesuffix(".npy")] = reader(stream)[0]
            return shapes
    except _ZIP_ERRORS as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: Exception) -> CalibrationError:
    return CalibrationError(
        f"the file is no readable numeric array file: {str(error).splitlines()[0] if str(error) else 'it is empty'}",
        where=str(file),
        remedy="write it with numpy.save or numpy.savez, without objects",
    )
