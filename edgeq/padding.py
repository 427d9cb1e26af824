"""Which parts of a tensor count: those of tokens, not those of the padding behind them.

What a text model computes for padding is read by nobody, and may be far off: with 64 texts of MiniLM, a plan that
suited padding, too, raised the hidden states from 8 to 19 dB, and lowered the embeddings from 23.0 to 19.7.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["MASK", "answered", "counted", "mask_of", "numbers_per_token", "token_weights", "with_tokens_for_padding"]

MASK = "attention_mask"
"""The input that tells tokens from padding, ``[N, L]``: 0 is padding."""


def mask_of(sample: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """The tokens of a sample, bool ``[N, L]``, from its input ``MASK``; None where all or none count."""
    mask = sample.get(MASK)
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


def numbers_per_token(shape: Sequence[int], mask: Sequence[int]) -> int | None:
    """How many numbers an output of this shape has for each token of a mask ``[N, L]``; None where it has no tokens.

    It has them as ``[N, L, ..., K]`` or ``[N L, K]``: in the order of its memory, number ``i`` is of token
    ``i // numbers_per_token``.
    """
    tokens, numbers = math.prod(mask), math.prod(shape)
    by_text = len(shape) > 2 and tuple(shape[:2]) == tuple(mask)
    by_token = len(shape) == 2 and shape[0] == tokens
    return numbers // tokens if tokens and (by_text or by_token) else None


def answered(output: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """An output without what was computed for padding: zeros in ``[N, L, ..., K]``, ``[tokens, K]`` of ``[N L, K]``.

    Rows along axis 0 stay those of texts, or tokens, where a mean over them is taken. NaN and infinity stay: they
    would spoil the mean over a text's tokens, too. Outputs without tokens (see ``numbers_per_token``) stay as they are.
    """
    if mask is None or numbers_per_token(output.shape, mask.shape) is None:
        return output
    return output[mask.ravel()] if output.ndim == 2 else output * mask.reshape(*mask.shape, *[1] * (output.ndim - 2))


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
