"""Padding does not count: what is measured, and what ranges are made of."""

from __future__ import annotations

import numpy as np
import pytest

from edgeq.padding import answered, counted, mask_of, numbers_per_token, with_tokens_for_padding

MASK = np.array([[1, 1, 0, 0], [1, 1, 1, 0]])


@pytest.mark.parametrize(
    ("shape", "axis"), [((2, 4, 3), 1), ((2, 5, 4, 3), 2), ((2, 4, 3, 6), 1), ((2, 6, 4, 4), 2), ((8, 3), 0)]
)
def test_tokens_alone_are_left(shape: tuple[int, ...], axis: int) -> None:
    array = np.random.default_rng(0).normal(size=shape)
    mask = mask_of({"attention_mask": MASK})
    assert mask is not None
    rows = array.reshape(2, 4, 3) if axis == 0 else np.moveaxis(array, axis, 1)
    tokens = np.concatenate([rows[0, :2], rows[1, :3]])
    np.testing.assert_array_equal(counted(array, mask), tokens)
    filled = with_tokens_for_padding(array, mask)
    assert filled.shape == array.shape
    places = filled.reshape(2, 4, 3) if axis == 0 else np.moveaxis(filled, axis, 1)
    np.testing.assert_array_equal(places[0], rows[0][[0, 1, 0, 1]])
    np.testing.assert_array_equal(places[1], rows[1][[0, 1, 2, 0]])


@pytest.mark.parametrize(("shape", "numbers"), [((2, 4, 3), 3), ((2, 4, 3, 5), 15), ((8, 3), 3)])
def test_answers_for_padding_are_left_out(shape: tuple[int, ...], numbers: int) -> None:
    array = np.random.default_rng(0).normal(size=shape)
    assert numbers_per_token(shape, MASK.shape) == numbers
    found = answered(array, mask_of({"attention_mask": MASK}))
    kept = [x for i, x in enumerate(array.ravel()) if MASK.ravel()[i // numbers]]
    np.testing.assert_array_equal(found[found != 0], kept)
    assert found.shape == ((5, 3) if len(shape) == 2 else shape)


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 3), (3, 4, 3), (4,), (2, 5, 4, 3), ()])
def test_answers_that_have_no_tokens_stay(shape: tuple[int, ...]) -> None:
    array = np.ones(shape)
    assert numbers_per_token(shape, MASK.shape) is None
    assert answered(array, MASK != 0) is array
    assert answered(array, None) is array


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 3), (3, 4, 3), (4,)])
def test_what_has_no_tokens_stays(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).normal(size=shape)
    assert counted(array, MASK != 0) is array
    assert with_tokens_for_padding(array, MASK != 0) is array


def test_a_text_without_tokens_stays_as_it_is() -> None:
    array = np.ones((2, 4, 3))
    assert with_tokens_for_padding(array, np.array([[True, False, False, False], [False] * 4])) is array


def test_a_full_mask_is_none() -> None:
    assert mask_of({"attention_mask": np.ones((1, 4))}) is None
    assert mask_of({"pixels": np.ones((1, 4))}) is None
