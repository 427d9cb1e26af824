"""Which numbers of the sample outputs are of tokens: tests of the samples leave out what is computed for padding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgeq.bundle import Bundle
from edgeq.errors import ValidationError
from edgeq.padding import MASK, numbers_per_token

__all__ = ["SampleTokens", "sample_tokens"]


@dataclass(frozen=True)
class SampleTokens:
    """The place of the mask among the model's inputs, and how many ``numbers`` an output has for each of its tokens.

    In a sample's array, row by row, number ``i`` is of token ``i // numbers[output]``; it does not count where the
    mask is 0. Outputs that are not in ``numbers`` count as a whole.
    """

    mask: int
    numbers: Mapping[str, int]


def sample_tokens(bundle: Bundle) -> SampleTokens | None:
    """None where the samples have no mask, or no output has numbers for each token.

    The rule is that of ``padding.numbers_per_token``, by which the manifest's SQNR was recorded.

    Raises:
        ValidationError: a file of the samples is no array.
    """
    samples = bundle.manifest.samples
    inputs = [entry.name for entry in bundle.manifest.inputs]
    if samples is None or MASK not in inputs or MASK not in samples.inputs:
        return None
    mask = _shape(bundle, samples.inputs[MASK])
    if len(mask) != 2:
        return None
    found = {name: numbers_per_token(_shape(bundle, file), mask) for name, file in samples.outputs.items()}
    numbers = {name: count for name, count in found.items() if count}
    return SampleTokens(inputs.index(MASK), numbers) if numbers else None


def _shape(bundle: Bundle, file: str) -> tuple[int, ...]:
    """Of one sample."""
    try:
        return tuple(np.load(bundle.file(file), mmap_mode="r", allow_pickle=False).shape[1:])
    except (OSError, ValueError) as error:
        raise ValidationError(f"{file} is no array: {error}", where=str(bundle.path)) from None
