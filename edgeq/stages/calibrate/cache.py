"""Save and load the state of a calibration: one file, a JSON header and raw little-endian arrays, no pickle.

Layout: 8 bytes magic, 8 bytes header length, the header (UTF-8 JSON with sorted keys), the arrays
one after another. The header carries the sha256 of the arrays, so that damage is noticed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgeq.errors import OutputError
from edgeq.output import atomic_file

__all__ = ["load_state", "save_state"]

_MAGIC = b"edgeqst1"
_DTYPES = ("<f8", "<i8")
_log = logging.getLogger(__name__)


def save_state(path: Path, samples: int, state: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Write ``state`` (tensor -> name -> array) after ``samples`` samples, atomically.

    The same state gives the same bytes. A cache that cannot be written costs a warning, never the calibration.
    """
    chunks: list[bytes] = []
    table: dict[str, dict[str, tuple[str, list[int]]]] = {}
    for tensor in sorted(state):
        table[tensor] = {}
        for name, array in sorted(state[tensor].items()):
            little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            table[tensor][name] = (little.dtype.str, list(little.shape))
            chunks.append(little.tobytes())
    payload = b"".join(chunks)
    header = json.dumps(
        {"samples": samples, "sha256": hashlib.sha256(payload).hexdigest(), "tensors": table}, sort_keys=True
    ).encode()
    try:
        with atomic_file(path) as work:
            work.write_bytes(_MAGIC + len(header).to_bytes(8, "little") + header + payload)
    except OutputError as error:
        _log.warning("calibration cache not written: %s", error)


def load_state(path: Path) -> tuple[int, dict[str, dict[str, np.ndarray]]] | None:
    """What `save_state` wrote: the number of samples and the state.

    None where there is no file and, with a warning, where it is damaged.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        _log.warning("calibration cache %s is not readable (%s): computing again", path, error.strerror)
        return None
    try:
        return _parse(data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        _log.warning("calibration cache %s is damaged (%s): computing again", path, error)
        return None


def _parse(data: bytes) -> tuple[int, dict[str, dict[str, np.ndarray]]]:
    if data[:8] != _MAGIC:
        raise ValueError("not a calibration cache")
    start = 16 + int.from_bytes(data[8:16], "little")
    header = json.loads(data[16:start])
    payload = memoryview(data)[start:]
    if hashlib.sha256(payload).hexdigest() != header["sha256"]:
        raise ValueError("its checksum does not match")
    state: dict[str, dict[str, np.ndarray]] = {}
    offset = 0
    # JSON keeps the order of keys, and that is the order of the arrays.
    for tensor, arrays in header["tensors"].items():
        state[tensor] = {}
        for name, (dtype, shape) in arrays.items():
            if dtype not in _DTYPES:
                raise ValueError(f"unexpected array type {dtype!r}")
            count = math.prod(shape)
            state[tensor][name] = np.frombuffer(payload, dtype, count, offset).reshape(shape)
            offset += 8 * count
    return int(header["samples"]), state
