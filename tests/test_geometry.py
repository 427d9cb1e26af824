"""Sizes and places against the arithmetic of the codes that detectors are trained with, and against pixels."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeq.errors import ConfigError
from edgeq.geometry import origin, resized, seen
from edgeq.recipe import ImagePreprocess, load_recipe


def sizes(count: int = 20_000) -> list[tuple[int, int]]:
    """Pictures of all sorts, and those whose sides make ties: powers of two and multiples of them."""
    rng = np.random.default_rng(0)
    ties = [(tall, wide) for tall in (256, 512, 768, 1024, 1280, 2048) for wide in range(1, 1400)]
    drawn = rng.integers(1, 4000, (count, 2)).tolist()
    return [(tall, wide) for tall, wide in (*drawn, *ties, *(tie[::-1] for tie in ties))]


@pytest.mark.parametrize("crop", [(640, 640), (320, 480)], ids=str)
def test_a_letterbox_is_that_of_yolo(crop: tuple[int, int]) -> None:
    """The float64 arithmetic of Ultralytics' LetterBox, where the halves of what is left over differ by 0.1."""
    steps = ImagePreprocess(crop=crop, letterbox="centre")
    for tall, wide in sizes():
        gain = min(crop[0] / tall, crop[1] / wide)
        found = resized(steps, (tall, wide))
        assert found == (max(1, round(tall * gain)), max(1, round(wide * gain)))
        half = [(want - have) / 2 for want, have in zip(crop, found, strict=True)]
        before, after = [[round(side + by) for side in half] for by in (-0.1, 0.1)]
        assert [-at for at in origin(steps, (tall, wide))] == before
        assert [a + b + c for a, b, c in zip(before, found, after, strict=True)] == list(crop)


@pytest.mark.parametrize("crop", [(640, 640), (416, 416), (33, 31), (1, 7)], ids=str)
def test_a_letterbox_rounds_exact_proportions(crop: tuple[int, int]) -> None:
    steps = ImagePreprocess(crop=crop, letterbox="corner")
    for size in sizes(1000):
        gain = min(Fraction(want, have) for want, have in zip(crop, size, strict=True))
        found = resized(steps, size)
        assert found == tuple(max(1, round(side * gain)) for side in size)
        assert found[0] == crop[0] or found[1] == crop[1]
        assert origin(steps, size) == (0, 0)


def test_ties_are_rounded_to_even() -> None:
    steps = ImagePreprocess(crop=(640, 640), letterbox="corner")
    assert [resized(steps, (1024, wide))[1] for wide in (684, 692, 700)] == [428, 432, 438]  # 427.5, 432.5, 437.5


STEPS: list[dict[str, Any]] = [
    {"letterbox": "centre"},
    {"letterbox": "corner"},
    {"stretch": True},
    {"resize": 80},
    {},
]


@pytest.mark.parametrize("how", STEPS, ids=str)
@pytest.mark.parametrize("size", [(100, 140), (333, 90), (81, 82), (640, 480)], ids=str)
def test_what_is_seen_is_where_the_pixels_come_from(how: dict[str, Any], size: tuple[int, int]) -> None:
    """The oracle is Pillow: a picture of ramps tells at every pixel of the input which place it shows."""
    Image = pytest.importorskip("PIL.Image")
    steps = ImagePreprocess(crop=(64, 80), **how)
    tall, wide = resized(steps, size)
    top, left = origin(steps, size)
    result, (x0, y0, x1, y1) = [], seen(steps, size)
    for axis in (0, 1):
        ramp = (np.arange(size[axis], dtype=np.float32) + 0.5) / size[axis]
        picture = np.broadcast_to(ramp[:, None] if axis == 0 else ramp, size)
        image = Image.fromarray(np.ascontiguousarray(picture)).resize((wide, tall), Image.Resampling.BILINEAR)
        padded = np.pad(np.asarray(image), 100, constant_values=np.nan)
        result.append(padded[100 + top : 164 + top, 100 + left : 180 + left])
    places = (
        y0 + (np.arange(64)[:, None] + 0.5) / 64 * (y1 - y0) + np.zeros((64, 80)),
        x0 + (np.arange(80) + 0.5) / 80 * (x1 - x0) + np.zeros((64, 80)),
    )
    outside = np.any([(place < 0) | (place > 1) for place in places], axis=0)
    for found, place, length in zip(result, places, size, strict=True):
        np.testing.assert_array_equal(np.isnan(found), outside)
        edge = 3 / min(length, 80)  # where filters lack pixels
        inner = ~outside & (place > edge) & (place < 1 - edge)
        assert inner.any()
        np.testing.assert_allclose(found[inner], place[inner], atol=0.3 / length)  # weights are few: parts of a pixel


def test_a_stretch_shows_all_and_a_letterbox_more() -> None:
    assert seen(ImagePreprocess(crop=(10, 20), stretch=True), (77, 33)) == (0, 0, 1, 1)
    assert seen(ImagePreprocess(crop=(64, 64), letterbox="centre"), (100, 200)) == (0, -0.5, 1, 1.5)
    assert seen(ImagePreprocess(crop=(64, 64), letterbox="corner"), (100, 200)) == (0, 0, 1, 2)
    assert seen(ImagePreprocess(crop=(50, 50), resize=100), (200, 400)) == (0.375, 0.25, 0.625, 0.75)


RECIPE = """
summary = "x"
[source]
kind = "images"
path = "."
licence = "none"
[preprocess]
kind = "image"
crop = [640, 640]
"""


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ('letterbox = "centre"\nresize = 640', "`resize` and `letterbox` exclude one another"),
        ('letterbox = "corner"\nstretch = true', "`stretch` and `letterbox` exclude one another"),
        ("resize = 640\nstretch = true", "`resize` and `stretch` exclude one another"),
        ('letterbox = "centre"\nfill = 256', "`fill` is a level from 0 to 255, not 256"),
        ("fill = 0", "`fill` says what a letterbox is filled with, and there is no `letterbox`"),
        ('letterbox = "center"', r"Invalid enum value 'center' - at `\$.preprocess.letterbox`"),
    ],
)
def test_what_a_recipe_cannot_say(keys: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text(RECIPE + keys, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"recipe 'x' is not valid: {text}"):
        load_recipe(file)


def test_a_recipe_with_a_letterbox(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text(RECIPE + 'letterbox = "corner"\nfill = 0', encoding="utf-8")
    assert load_recipe(file).preprocess == ImagePreprocess(crop=(640, 640), letterbox="corner", fill=0)
