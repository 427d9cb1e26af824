"""Files that stay on a device from one run to the next: only what changed is pushed again."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import msgspec

from edgeq.devices.transport import Transport
from edgeq.errors import ProviderError

__all__ = ["Store"]

_INDEX = "index.json"
_SPARE = 16 * 2**20
"""Room left for what a job writes."""


class _Kept(msgspec.Struct, frozen=True):
    """What was pushed: its sha256 and its length."""

    sha256: str
    bytes: int


class Store:
    """edgeq's folder on a device, with an index of what was pushed whole.

    A file is pushed if the index does not name its hash, or if what lies there has another length. The index is
    written after the file, so that an interruption costs one push and never leaves half a file in use.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._index: dict[str, _Kept] | None = None

    def put(self, local: Path, name: str, *, executable: bool = False) -> PurePosixPath:
        """Have ``local`` there as ``name`` (relative to the folder); returns its path there.

        Raises:
            ProviderError: there is no room for it.
        """
        seen = self._transport.sees(local)
        if seen is not None:
            return seen
        there = self._transport.folder() / name
        wanted = _describe(local)
        index = self._read()
        if index.get(name) == wanted and self._length(there) == wanted.bytes:
            return there
        self._require_room(local, wanted.bytes)
        if index.pop(name, None) is not None:
            self._write(index)
        self._transport.push(local, there, executable=executable)
        index[name] = wanted
        self._write(index)
        return there

    def put_folder(self, local: Path, names: Sequence[str], folder: str) -> PurePosixPath:
        """Have some files of a folder there under ``folder``, and nothing else of an earlier one."""
        seen = self._transport.sees(local)
        if seen is not None:
            return seen
        index = self._read()
        wanted = {f"{folder}/{name}" for name in names}
        for old in [name for name in index if name.startswith(f"{folder}/") and name not in wanted]:
            self._transport.remove(self._transport.folder() / old)
            del index[old]
        for name in names:
            self.put(local / name, f"{folder}/{name}")
        return self._transport.folder() / folder

    def _length(self, there: PurePosixPath) -> int:
        done = self._transport.run(["stat", "-c", "%s", str(there)])
        return int(done.out) if done.code == 0 and done.out.strip().isdecimal() else -1

    def _require_room(self, local: Path, needed: int) -> None:
        folder = self._transport.folder()
        free = self._transport.free_bytes(folder)
        if free is not None and free < needed + _SPARE:
            raise ProviderError(
                f"there is no room for {local.name} on the device: it takes {needed / 1e6:.1f} MB, "
                f"{free / 1e6:.1f} MB are free (edgeq leaves {_SPARE / 1e6:.0f} MB for results)",
                where=str(folder),
                remedy="make room there, or remove that folder, which holds nothing but edgeq's cached files",
            )

    def _read(self) -> dict[str, _Kept]:
        if self._index is None:
            text = self._transport.read(self._transport.folder() / _INDEX)
            try:
                self._index = msgspec.json.decode(text or "{}", type=dict[str, _Kept])
            except msgspec.DecodeError:
                self._index = {}
        return self._index

    def _write(self, index: dict[str, _Kept]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / _INDEX
            file.write_bytes(msgspec.json.encode(index))
            self._transport.push(file, self._transport.folder() / _INDEX)


def _describe(local: Path) -> _Kept:
    with local.open("rb") as stream:
        return _Kept(hashlib.file_digest(stream, "sha256").hexdigest(), local.stat().st_size)
