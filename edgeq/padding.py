"""Which parts of a tensor count: those of tokens, not those of the padding behind them.

What a text model computes for padding is read by nobody, and may be far off: with 64 texts of MiniLM, a plan that
suited padding, too, raised the hidden states from 8 to 19 dB, and lowered the embeddings from 23.0 to 19.7.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

__all__ = ["counted", "mask_of", "token_weights", "with_tokens_for_padding"]


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
    axis = None if mask is None else _token_axis(array, mask)
    if mask is None or axis is None:
        return array
    return array[mask.ravel()] if axis == 0 else np.moveaxis(array, axis, 1)[mask]


def token_weights(array: np.ndarray, mask: np.ndarray | None) -> np.ndarray | None:
    """What the entries of a tensor count, float32 that broadcasts to it: 1 for tokens and 0 for padding.

    None where ``counted`` leaves the tensor as it is.
    """
    axis = None if mask is None else _token_axis(array, mask)
    if mask is None or axis is None:
        return None
    shape = [1] * array.ndim
    shape[0] = array.shape[0]
    shape[axis] = array.shape[axis]
    return mask.astype(np.float32).reshape(shape)


def with_tokens_for_padding(array: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """A tensor of the same shape that holds its tokens again, from the first on, where the padding was.

    For statistics that know a tensor by its shape. Of tensors without tokens (see ``counted``) nothing is changed.
    """
    axis = None if mask is None else _token_axis(array, mask)
    if mask is None or axis is None or not mask.any(axis=1).all():
        return array
    rows = array.reshape(*mask.shape, -1) if axis == 0 else np.moveaxis(array, axis, 1)
    places = np.stack([np.resize(np.flatnonzero(row), mask.shape[1]) for row in mask])
    filled = np.stack([row[place] for row, place in zip(rows, places, strict=True)])
    return filled.reshape(array.shape) if axis == 0 else np.moveaxis(filled, 1, axis)


def _token_axis(array: np.ndarray, mask: np.ndarray) -> int | None:
    """The axis of the tokens; 0 where batch and tokens are one axis, None where there is none."""
    if array.ndim < 2:
        return None
    count, length = mask.shape
    if array.ndim == 2 and array.shape[0] == mask.size:
        return 0
    axis = next((i for i in range(1, array.ndim - 1) if array.shape[i] == length), None)
    return axis if array.shape[0] == count else None
