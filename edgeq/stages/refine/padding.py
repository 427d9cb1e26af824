"""Which parts of a tensor count: those of tokens, not those of the padding behind them.

What a text model computes for padding is read by nobody, and may be far off: with 64 texts of MiniLM, a plan that
suited padding, too, raised the hidden states from 8 to 19 dB, and lowered the embeddings from 23.0 to 19.7.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

__all__ = ["counted", "mask_of"]


def mask_of(sample: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """The tokens of a sample, bool ``[N, L]``, from its input ``attention_mask``; None where all or none count."""
    mask = sample.get("attention_mask")
    if mask is None or mask.ndim != 2 or not mask.any() or mask.all():
        return None
    return np.asarray(mask) != 0


def counted(array: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """The entries of tokens, ``[tokens, ...]``, of a tensor ``[N, ..., L, ..., K]`` or ``[N L, K]``.

    Other tensors are given back as they are. The first axis of length L between the first and the last is taken for
    that of the tokens.
    """
    if mask is None or array.ndim < 2:
        return array
    count, length = mask.shape
    if array.ndim == 2 and array.shape[0] == mask.size:
        return array[mask.ravel()]
    axis = next((i for i in range(1, array.ndim - 1) if array.shape[i] == length), None)
    if axis is None or array.shape[0] != count:
        return array
    return np.moveaxis(array, axis, 1)[mask]
