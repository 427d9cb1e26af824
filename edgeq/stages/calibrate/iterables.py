"""Samples from Python: arrays, lists, generators, and torch DataLoaders without importing torch."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from edgeq.errors import CalibrationError
from edgeq.graph import TensorInfo
from edgeq.stages.calibrate.conform import count_rows, has_batch_axis

__all__ = ["MemoryStore", "SpoolStore", "collect"]

_MOST_SPOOLED = 8 << 30
"""Bytes that an iterable may write into its temporary file."""


def collect(data: Any, inputs: Sequence[TensorInfo], count: int | None) -> MemoryStore | SpoolStore:
    """A store of what ``data`` yields.

    One array (or a dict of arrays) holds samples along its leading axis. A list or tuple holds
    items; it stays in memory, where it is. Anything else iterable, also what can be read only once
    or in another order each time, is read once into an unnamed temporary file, up to ``count`` items.
    An item is a dict by input name, a tuple in the order of the inputs (what follows, such as
    labels, is left out) or, for a model of one input, an array.

    Raises:
        CalibrationError: nothing iterable, no items, an item that is no array, or more data than
            a temporary file should take.
    """
    if isinstance(data, (np.ndarray, Mapping)) or hasattr(data, "detach"):
        store = MemoryStore()
        _add(store, data, inputs, "the array", split=True)
    elif isinstance(data, Sequence):
        store = MemoryStore()
        for number, item in enumerate(data):
            _add(store, item, inputs, f"item {number}")
    elif isinstance(data, Iterable):
        spool = SpoolStore()
        for number, item in enumerate(islice(data, count)):
            _add(spool, item, inputs, f"item {number}")
        store = spool
    else:
        raise CalibrationError(
            f"a {type(data).__name__} is no calibration data",
            remedy="give a path, a recipe, or an iterable of dicts, tuples or arrays",
        )
    if not store.names:
        raise CalibrationError(f"the {type(data).__name__} given as calibration data holds no samples")
    return store


class MemoryStore:
    """Items that the caller holds in memory (see `edgeq.stages.calibrate.feeds.Store`)."""

    settings = "memory"

    def __init__(self) -> None:
        self.names: list[str] = []
        self._items: list[dict[str, np.ndarray]] = []

    def append(self, name: str, item: dict[str, np.ndarray]) -> None:
        self.names.append(name)
        self._items.append(item)

    def item(self, row: int) -> dict[str, np.ndarray]:
        return self._items[row]

    def read(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        return _stack([self.item(row) for row in rows], self.names[rows[0]])

    def digest(self, row: int) -> bytes:
        digest = hashlib.sha256()
        for name, array in sorted(self.item(row).items()):
            digest.update(f"{name}:{array.dtype}:{array.shape}".encode() + array.tobytes())
        return digest.digest()


class SpoolStore(MemoryStore):
    """Items in a temporary file that vanishes with this object."""

    def __init__(self) -> None:
        super().__init__()
        self._file = tempfile.TemporaryFile(prefix="edgeq-")  # noqa: SIM115 - lives as long as the store
        self._index: list[dict[str, tuple[int, np.dtype, tuple[int, ...]]]] = []

    def append(self, name: str, item: dict[str, np.ndarray]) -> None:
        entry = {}
        for key, array in item.items():
            offset = self._file.seek(0, os.SEEK_END)
            if offset + array.nbytes > _MOST_SPOOLED:
                raise CalibrationError(
                    f"more than {_MOST_SPOOLED >> 30} GiB of calibration samples after {len(self.names)} items",
                    remedy="limit them with --samples (count=); a few hundred samples are enough",
                )
            try:
                self._file.write(array.tobytes())
            except OSError as error:
                raise CalibrationError(
                    f"cannot keep the samples in a temporary file: {error.strerror}",
                    where=tempfile.gettempdir(),
                    remedy="free some space, set TMPDIR, or use fewer samples",
                ) from None
            entry[key] = (offset, array.dtype, array.shape)
        self.names.append(name)
        self._index.append(entry)

    def item(self, row: int) -> dict[str, np.ndarray]:
        self._file.flush()
        arrays = {}
        for key, (offset, dtype, shape) in self._index[row].items():
            size = dtype.itemsize * int(np.prod(shape))
            arrays[key] = np.frombuffer(os.pread(self._file.fileno(), size, offset), dtype).reshape(shape)
        return arrays


def _add(store: MemoryStore, item: Any, inputs: Sequence[TensorInfo], name: str, *, split: bool = False) -> None:
    """Add one item, or one per row where the model's batch size is fixed (or ``split`` says so)."""
    arrays = _arrays(item, inputs, name)
    if not has_batch_axis(inputs):
        store.append(name, arrays)
        return
    rows = count_rows({key: array.shape for key, array in arrays.items()}, inputs, name)
    if rows is None:
        store.append(name, {key: array[None] for key, array in arrays.items()})
    elif rows == 1 or not (split or isinstance(inputs[0].shape[0], int)):
        store.append(name, arrays)
    else:
        for row in range(rows):
            store.append(f"{name}, row {row}", {key: array[row : row + 1] for key, array in arrays.items()})


def _arrays(item: Any, inputs: Sequence[TensorInfo], name: str) -> dict[str, np.ndarray]:
    """The item's arrays for the model's inputs, by name; those it has no input for are left out."""
    wanted = [info.name for info in inputs]
    if isinstance(item, Mapping):
        return {key: _array(item[key], f"{name}, {key!r}") for key in wanted if key in item}
    values = item if isinstance(item, (tuple, list)) else [item]
    if len(values) < len(wanted):
        raise CalibrationError(
            f"{len(values)} arrays for {len(wanted)} inputs ({', '.join(wanted)})",
            where=name,
            remedy="yield dicts by input name, or tuples in the order of the inputs",
        )
    return {key: _array(value, f"{name}, for input {key!r}") for key, value in zip(wanted, values, strict=False)}


def _array(value: Any, where: str) -> np.ndarray:
    try:
        if hasattr(value, "detach"):  # a torch tensor, on whatever device
            value = value.detach().cpu().numpy()
        elif hasattr(value, "numpy") and not isinstance(value, np.ndarray):
            value = value.numpy()
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CalibrationError(
            f"a {type(value).__name__} does not convert to an array: {error}", where=where, remedy="give numeric arrays"
        ) from None
    if array.dtype.kind not in "biuf":
        raise CalibrationError(
            f"expected numbers, got {type(value).__name__} of dtype {array.dtype}",
            where=where,
            remedy="give numeric arrays",
        )
    return array


def _stack(items: Sequence[dict[str, np.ndarray]], name: str) -> dict[str, np.ndarray]:
    if len(items) == 1:
        return items[0]
    try:
        return {key: np.concatenate([item[key] for item in items]) for key in items[0]}
    except ValueError:
        raise CalibrationError(
            "samples of different shapes cannot form one batch", where=name, remedy="use a batch size of 1"
        ) from None
