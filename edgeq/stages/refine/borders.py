"""The activations at the borders of blocks, for every sample: in memory, and beyond a limit in files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np

from edgeq.padding import counted

__all__ = ["Borders", "Side"]

Side = Literal["float", "quantized"]


class Borders:
    """Tensors by side, name and sample. Use it as a context: its files are removed at the end.

    Up to ``limit`` bytes stay in memory; what comes later is written to a temporary file, and mapped into memory
    where it is read. ``masks`` holds the tokens of samples that are padded (see ``padding.mask_of``).
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.masks: dict[int, np.ndarray] = {}
        self._held: dict[tuple[Side, str, int], np.ndarray | Path] = {}
        self._bytes = 0
        self._count = 0
        self._folder: Path | None = None

    def __enter__(self) -> Borders:
        return self

    def __exit__(self, *exception: object) -> None:
        self._held.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def put(self, side: Side, name: str, sample: int, array: np.ndarray) -> None:
        """Keep ``array``; what was kept for the same key goes."""
        self._forget((side, name, sample))
        if self._bytes + array.nbytes <= self.limit:
            self._bytes += array.nbytes
            self._held[side, name, sample] = array
            return
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="edgeq-refine-"))
        path = self._folder / f"{self._count}.npy"
        self._count += 1
        np.save(path, array, allow_pickle=False)
        self._held[side, name, sample] = path

    def get(self, side: Side, names: Iterable[str], sample: int) -> dict[str, np.ndarray]:
        """The arrays of one sample, by name."""
        found = {}
        for name in names:
            held = self._held[side, name, sample]
            found[name] = np.load(held, mmap_mode="r") if isinstance(held, Path) else held
        return found

    def counted(self, sample: int, array: np.ndarray) -> np.ndarray:
        """What counts of a tensor of this sample: without padding, if ``masks`` says that there is any."""
        return counted(array, self.masks.get(sample))

    def keep(self, names: Iterable[str]) -> None:
        """Forget all tensors but these."""
        kept = set(names)
        for key in [key for key in self._held if key[1] not in kept]:
            self._forget(key)

    def _forget(self, key: tuple[Side, str, int]) -> None:
        held = self._held.pop(key, None)
        if isinstance(held, Path):
            held.unlink(missing_ok=True)
        elif held is not None:
            self._bytes -= held.nbytes
