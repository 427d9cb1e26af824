"""The samples that a part learns from, read batch by batch and, where possible, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from edgeq.padding import token_weights
from edgeq.stages.refine.learn.activations import mix
from edgeq.stages.refine.learn.windows import Window, Windows

__all__ = ["Arrays", "Data", "Tensors"]

Arrays = Mapping[str, Sequence[np.ndarray] | np.ndarray]
"""One array per sample for each tensor: a list, or one array ``[samples, *shape]``. Memory maps will do."""

Tensors = dict[str, torch.Tensor]


class Data:
    """Inputs of a part, from the float model and from the quantized one, and its float outputs.

    Each sample's arrays have the shapes of the tensors, float32 (others for inputs that are no floats). Nothing but
    one batch is copied at a time. ``importance`` is ``w`` in ``sum w (y - t)^2`` by output, such as the Fisher
    information, and broadcasts to one sample of it; it is scaled to a mean of 1.

    ``masks`` holds the tokens of each sample, bool ``[N, L]``, None where all count (see ``edgeq.padding``): errors at
    padding do not count.

    ``flat`` says that the part computes along the first axis of its tensors each entry for itself, so that a batch
    is one run. ``window`` is the piece that is looked at, None for all.
    """

    def __init__(
        self,
        float_inputs: Arrays,
        quantized_inputs: Arrays,
        float_outputs: Arrays,
        importance: Mapping[str, np.ndarray] | None,
        device: torch.device,
        masks: Sequence[np.ndarray | None] | None = None,
    ) -> None:
        self.float_inputs, self.quantized_inputs, self.float_outputs = float_inputs, quantized_inputs, float_outputs
        self.device = device
        self.masks = masks if masks is not None and any(mask is not None for mask in masks) else None
        self.count = len(next(iter(float_outputs.values())))
        self.importance = {
            name: np.asarray(weight / max(float(weight.mean()), 1e-30), dtype=np.float32)
            for name, weight in (importance or {}).items()
        }
        self.flat = False
        self.windows: Windows | None = None
        self.window: Window | None = None
        self.energy = {name: self._energy(name) for name in float_outputs}

    def _energy(self, name: str) -> float:
        """``sum w t^2`` of an output per sample: what its errors are measured in."""
        rows = (np.array([row]) for row in range(self.count))
        total = sum(float(self.weighted(name, self._tensor(name, self.float_outputs[name], r), r).sum()) for r in rows)
        return max(total / self.count, 1e-30)

    def inputs(self, rows: np.ndarray, drop: float, generator: torch.Generator | None) -> Tensors:
        """Quantized inputs ``[rows, ...]``, with each element that of the float model with probability ``drop``."""
        found = {}
        for name, arrays in self.quantized_inputs.items():
            tensor = self._tensor(name, arrays, rows)
            if drop and tensor.is_floating_point():
                tensor = mix(tensor, self._tensor(name, self.float_inputs[name], rows), drop, generator)
            found[name] = tensor
        return found

    def outputs(self, rows: np.ndarray) -> Tensors:
        """What the float model gives, ``[rows, ...]``, without margins that a cut makes wrong."""
        return {name: self.inner(name, self._tensor(name, arrays, rows)) for name, arrays in self.float_outputs.items()}

    def weighted(self, name: str, difference: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        """The squares of ``difference`` ``[rows, ...]`` times what they count."""
        squares, weight, tokens = difference.square(), self.importance.get(name), self._tokens(name, rows)
        if tokens is not None:
            squares = squares * tokens
        if weight is None:
            return squares
        if self.windows is not None and self.window is not None:
            weight = self.windows.cut(name, weight, self.window)
        return squares * self.inner(name, torch.from_numpy(np.ascontiguousarray(weight)).to(self.device))

    def _tokens(self, name: str, rows: np.ndarray) -> torch.Tensor | None:
        """1 for tokens and 0 for padding, broadcast to ``[rows, ...]`` of an output; None where all counts."""
        if self.masks is None:
            return None
        arrays = self.float_outputs[name]
        found = [token_weights(arrays[int(row)], self.masks[int(row)]) for row in rows]
        known = next((weight for weight in found if weight is not None), None)
        if known is None:
            return None
        whole = np.ones_like(known)
        return torch.from_numpy(np.stack([whole if weight is None else weight for weight in found])).to(self.device)

    def inner(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """An output without the margins that a cut makes wrong."""
        return tensor if self.windows is None or self.window is None else self.windows.inner(name, tensor, self.window)

    def look(self, random: np.random.Generator) -> None:
        """Look at another window from now on, where the part can be cut."""
        self.window = None if self.windows is None else self.windows.draw(random)

    def covered(self, wanted: Tensors) -> float:
        """The share of the outputs that is compared."""
        whole = sum(np.asarray(arrays[0]).size for arrays in self.float_outputs.values())
        return sum(tensor[0].numel() for tensor in wanted.values()) / whole

    def _tensor(self, name: str, arrays: Sequence[np.ndarray] | np.ndarray, rows: np.ndarray) -> torch.Tensor:
        samples = [arrays[int(row)] for row in rows]
        if self.windows is not None and self.window is not None:
            samples = [self.windows.cut(name, sample, self.window) for sample in samples]
        return torch.from_numpy(np.stack(samples)).to(self.device)

    def batches(self, size: int, seed: int) -> Iterator[np.ndarray]:
        """Rows of samples without end: every sample once before any comes again, in an order that ``seed`` fixes."""
        random = np.random.default_rng(seed)
        size = min(size, self.count)
        order = np.zeros(0, dtype=np.int64)
        while True:
            while len(order) < size:
                order = np.concatenate([order, random.permutation(self.count)])
            # In order of place, so that a memory map is read forwards.
            yield np.sort(order[:size])
            order = order[size:]
