"""Pixels in the graph against Pillow: the oracle is the recipe's own code, which calibration has used all along."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from PIL import Image, ImageOps
from small_models import parse

from edgeq.errors import ConfigError
from edgeq.geometry import seen
from edgeq.graph import TensorInfo, input_infos, output_infos
from edgeq.recipe import ImagePreprocess
from edgeq.runtime import open_session, run_model, session_options
from edgeq.stages.calibrate.images import ImageStore, load_image, load_pixels
from edgeq.stages.wrap import SEEN, join, pixel_front

FLOAT = np.dtype(np.float32)
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}

SIZES = [(60, 80), (80, 60), (61, 47), (33, 150), (150, 33), (40, 41), (20, 25), (256, 341), (500, 333)]
"""Smaller and larger than the resize, narrow and wide, odd and even, and one that is there already."""

Filter = Literal["bilinear", "bicubic"]


def reads(steps: ImagePreprocess, dtype: np.dtype = FLOAT) -> TensorInfo:
    count = 1 if steps.color == "L" else 3
    height, width = steps.crop
    shape = (count, height, width) if steps.layout == "NCHW" else (height, width, count)
    return TensorInfo("image", dtype, ("batch", *shape))


def picture(path: Path, size: tuple[int, int], seed: int = 0) -> Path:
    """``size`` is (height, width): smooth and noisy at once, with edges that filters overshoot at."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    waves = np.stack([127 + 120 * np.sin(x / 5 + y / 9), 255.0 * (x // 7 % 2), 255 - x * 255 / size[1]], axis=-1)
    Image.fromarray(np.clip(waves + rng.integers(-20, 21, waves.shape), 0, 255).astype(np.uint8)).save(path)
    return path


def run(front: ir.Model, pixels: np.ndarray) -> np.ndarray:
    return run_model(front, {"pixels": pixels})["image"]


def levels(steps: ImagePreprocess, found: np.ndarray) -> np.ndarray:
    """``[height, width, channels]`` of one picture."""
    return found[0].transpose(1, 2, 0) if steps.layout == "NCHW" else found[0]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"resize": 40}, id="short side"),
        pytest.param({"stretch": True}, id="stretch"),
        pytest.param({"resize": 35, "color": "L"}, id="grey"),
        pytest.param({"resize": 37, "color": "BGR", "layout": "NHWC"}, id="BGR, channels last"),
        pytest.param({"letterbox": "centre"}, id="letterbox"),
        pytest.param({"letterbox": "corner", "fill": 7, "color": "BGR", "layout": "NHWC"}, id="corner, channels last"),
        pytest.param({"letterbox": "centre", "fill": 200, "color": "L"}, id="grey letterbox"),
    ],
)
def test_the_graph_gives_pillows_pixels(
    tmp_path: Path, size: tuple[int, int], interpolation: Filter, more: dict[str, Any]
) -> None:
    steps = ImagePreprocess(crop=(32, 33), interpolation=interpolation, **PLAIN, **more)
    file = picture(tmp_path / "x.png", size)
    wanted = load_image(file, steps).astype(np.int64)
    pixels = load_pixels(file, steps, None)[None]
    found = [run(pixel_front(reads(steps), steps, fixed, opset=21), pixels) for fixed in (None, size)]
    off = np.abs(levels(steps, found[0]) - wanted)
    assert off.max() <= 1  # a tie that float32 breaks otherwise than float64
    assert (off > 0).mean() < 0.03
    np.testing.assert_array_equal(found[0], found[1])  # of any size or of this one: the same


@pytest.mark.parametrize("place", ["centre", "corner"])
def test_a_letterbox_has_the_size_that_the_recipe_says(place: Literal["centre", "corner"]) -> None:
    """Over many sizes, half of which leave a tie to round; what is seen tells the size and the place."""
    steps = ImagePreprocess(crop=(32, 40), letterbox=place)
    front = pixel_front(reads(steps), steps, None, opset=21, tells_seen=True)
    ties = [(64, wide) for wide in range(1, 80, 2)] + [(tall, 80) for tall in range(1, 64, 2)] + [(192, 9), (9, 240)]
    drawn = np.random.default_rng(0).integers(1, 200, (60, 2)).tolist()
    with open_session(front, session_options()) as session:
        for tall, wide in (*ties, *drawn):
            found = session.run([SEEN], {"pixels": np.zeros((1, tall, wide, 3), np.uint8)})[0]
            np.testing.assert_array_equal(found, np.array(seen(steps, (tall, wide)), np.float32), f"{tall}x{wide}")


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (128, 64)], ids=str)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_halving_is_exact(tmp_path: Path, size: tuple[int, int], interpolation: Filter) -> None:
    steps = ImagePreprocess(crop=(32, 32), resize=32, interpolation=interpolation, **PLAIN)
    file = picture(tmp_path / "x.png", size)
    found = run(pixel_front(reads(steps), steps, None, opset=21), load_pixels(file, steps, None)[None])
    np.testing.assert_array_equal(levels(steps, found), load_image(file, steps))


def test_a_pass_over_rows_comes_first_as_in_every_pillow(tmp_path: Path) -> None:
    """Pillow 13 would take the columns of a tall picture first; two calls say which, and older versions agree."""
    steps = ImagePreprocess(crop=(32, 32), resize=32, **PLAIN)
    file = picture(tmp_path / "x.png", (150, 41))
    with Image.open(file) as image:
        rows = image.resize((32, 150), Image.Resampling.BICUBIC).resize((32, 117), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(load_image(file, steps), np.asarray(rows)[42:74])


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("mean", [(127.0, 127.0, 127.0), (123.675, 116.28, 103.53)], ids=["one", "each"])
def test_normalizing_is_the_recipes_to_the_bit(tmp_path: Path, layout: Any, mean: tuple[float, float, float]) -> None:
    steps = ImagePreprocess(crop=(24, 24), mean=mean, std=(58.395, 57.12, 57.375), layout=layout)
    file = picture(tmp_path / "x.png", (31, 40))
    store = ImageStore([file], steps, [reads(steps)])
    for pixels in (store.raw("pixels", None).read([0]), store.raw("pixels", None).read([0, 0])):
        wanted = store.read([0] * len(pixels["pixels"]))["image"]
        np.testing.assert_array_equal(run(pixel_front(reads(steps), steps, None, opset=21), pixels["pixels"]), wanted)


def test_alpha_is_ignored(tmp_path: Path) -> None:
    steps = ImagePreprocess(crop=(24, 24), resize=28)
    pixels = load_pixels(picture(tmp_path / "x.png", (50, 40)), steps, None)[None]
    alpha = np.random.default_rng(0).integers(0, 256, (1, 50, 40, 1), dtype=np.uint8)
    both = np.concatenate([pixels, alpha], axis=3)
    front = pixel_front(reads(steps), steps, None, opset=21)
    np.testing.assert_array_equal(run(front, both), run(front, pixels))
    only = pixel_front(reads(steps), steps, (50, 40), opset=21, channels=4)
    assert input_infos(only)[0].shape == ("batch", 50, 40, 4)
    np.testing.assert_array_equal(run(only, both), run(front, pixels))


def test_a_frame_is_what_a_camera_of_that_size_sees(tmp_path: Path) -> None:
    steps = ImagePreprocess(crop=(24, 24), resize=28, **PLAIN)
    file = picture(tmp_path / "x.png", (100, 90))
    store = ImageStore([file], steps, [reads(steps)])
    frame = store.raw("pixels", (48, 64)).read([0])["pixels"]
    with Image.open(file) as image:
        wanted = ImageOps.fit(image, (64, 48), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(frame[0], np.asarray(wanted))
    found = run(pixel_front(reads(steps), steps, (48, 64), opset=21, channels=3), frame)
    assert np.abs(found - store.framed((48, 64)).read([0])["image"]).max() <= 1


def test_shapes_and_types_are_known() -> None:
    steps = ImagePreprocess(crop=(24, 20), resize=28)
    front = pixel_front(reads(steps), steps, None, opset=18)
    (taken,), (made,) = input_infos(front), output_infos(front)
    assert taken == TensorInfo("pixels", np.dtype(np.uint8), ("batch", "height", "width", "channels"))
    assert made == TensorInfo("image", FLOAT, ("batch", 3, 24, 20))
    onnx.checker.check_model(ir.to_proto(front), full_check=True)
    whole = pixel_front(reads(steps, np.dtype(np.uint8)), ImagePreprocess(crop=(24, 20), **PLAIN), (24, 20), opset=21)
    assert output_infos(whole)[0].dtype == np.uint8


@dataclass(frozen=True)
class Refused:
    text: str
    steps: dict[str, Any]
    size: tuple[int, int] | None = None
    opset: int = 21


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            Refused("filter 'lanczos' as Pillow does", {"interpolation": "lanczos", "resize": 30}), id="lanczos"
        ),
        pytest.param(
            Refused("filter 'nearest' as Pillow does", {"interpolation": "nearest", "resize": 30}), id="nearest"
        ),
        pytest.param(Refused("20x20 pixels .* fewer than the crop of 24x24", {"resize": 20}), id="small resize"),
        pytest.param(Refused("10x90 pixels .* fewer than the crop", {}, (10, 90)), id="small pictures"),
        pytest.param(Refused("opset 17, and a Resize that filters needs 18", {"resize": 30}, opset=17), id="old opset"),
    ],
)
def test_what_cannot_be_done_to_the_pixel_is_refused(case: Refused) -> None:
    steps = ImagePreprocess(crop=(24, 24), **case.steps)
    with pytest.raises(ConfigError, match=case.text):
        pixel_front(reads(steps), steps, case.size, opset=case.opset)


def test_another_input_than_pictures_is_refused() -> None:
    steps = ImagePreprocess(crop=(24, 24))
    with pytest.raises(ConfigError, match=r"pixels cannot become image: float32\[1, 5\]: it is no picture"):
        pixel_front(TensorInfo("image", FLOAT, (1, 5)), steps, None, opset=21)


def test_a_model_whose_own_input_is_called_pixels() -> None:
    steps = ImagePreprocess(crop=(8, 8))
    model = parse("g (float[N,3,8,8] pixels) => (float[N,3,8,8] y) { y = Neg(pixels) }")
    front = pixel_front(input_infos(model)[0], steps, (8, 8), opset=21, channels=3)
    whole = join(model, front, None).model
    pixels = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    wanted = -(pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    np.testing.assert_array_equal(run_model(whole, {"pixels": pixels})["y"], wanted)
