from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image, ImageOps

from edgeq.errors import CalibrationError
from edgeq.graph import TensorInfo
from edgeq.recipe import ImagePreprocess
from edgeq.stages.calibrate import images
from edgeq.stages.calibrate.feeds import load_feed
from edgeq.stages.calibrate.images import load_image

INPUT = (TensorInfo("image", np.dtype(np.float32), (1, 3, 16, 20)),)
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def picture(path: Path, size: tuple[int, int] = (61, 43), mode: str = "RGB", **options: Any) -> Image.Image:
    """Smooth, so that JPEG keeps it, with something different in every corner and channel."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    pixels = np.stack([255 * x, 255 * y, 127 + 120 * np.sin(9 * x + 4 * y)], axis=-1)
    image = Image.fromarray(pixels.astype(np.uint8)).convert(mode)
    image.save(path, **options)
    return Image.open(path)


def oracle(image: Image.Image, short: int | None, crop: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """The textbook pipeline, as torchvision's Resize and CenterCrop do it on Pillow pictures."""
    image = image.convert("RGB")
    if short is not None:
        width, height = image.size
        if width <= height:
            image = image.resize((short, int(short * height / width)), resample)
        else:
            image = image.resize((int(short * width / height), short), resample)
    left, top = round((image.width - crop[1]) / 2.0), round((image.height - crop[0]) / 2.0)
    return image.crop((left, top, left + crop[1], top + crop[0]))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
@pytest.mark.parametrize("size", [(61, 43), (43, 61), (24, 24), (70, 70)], ids=str)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_pixels_equal_pillows(
    suffix: str,
    size: tuple[int, int],
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"],
    tmp_path: Path,
) -> None:
    image = picture(tmp_path / f"x.{suffix}", size)
    preprocess = ImagePreprocess(crop=(16, 20), resize=24, interpolation=interpolation, mean=MEAN, std=STD)
    expected = np.asarray(oracle(image, 24, (16, 20), Image.Resampling[interpolation.upper()]))
    np.testing.assert_array_equal(load_image(tmp_path / f"x.{suffix}", preprocess), expected)
    sample = next(iter(load_feed(tmp_path, INPUT, preprocess=preprocess)))["image"]
    wanted = (expected.astype(np.float32) - np.float32(MEAN)) / np.float32(STD)
    np.testing.assert_array_equal(sample, wanted.transpose(2, 0, 1)[None])


@pytest.mark.parametrize("size", [(61, 43), (43, 61)], ids=str)
def test_torchvision_agrees_on_sizes(size: tuple[int, int], tmp_path: Path) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    image = picture(tmp_path / "x.png", size)
    pipeline = transforms.Compose([transforms.Resize(24), transforms.CenterCrop((16, 20))])
    preprocess = ImagePreprocess(crop=(16, 20), resize=24, interpolation="bilinear")
    np.testing.assert_array_equal(load_image(tmp_path / "x.png", preprocess), np.asarray(pipeline(image)))


def test_no_resize_stretch_bgr_grey_and_nhwc(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    image = picture(path)
    rgb = np.asarray(oracle(image, None, (16, 20), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(load_image(path, ImagePreprocess(crop=(16, 20))), rgb)
    np.testing.assert_array_equal(load_image(path, ImagePreprocess(crop=(16, 20), color="BGR")), rgb[:, :, ::-1])
    stretched = np.asarray(image.resize((20, 16), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(load_image(path, ImagePreprocess(crop=(16, 20), stretch=True)), stretched)
    grey = np.asarray(image.convert("L").resize((20, 16), Image.Resampling.BICUBIC))[:, :, None]
    np.testing.assert_array_equal(load_image(path, ImagePreprocess(crop=(16, 20), stretch=True, color="L")), grey)
    inputs = (TensorInfo("x", np.dtype(np.float32), (1, 16, 20, 3)),)
    feed = load_feed(path, inputs, preprocess=ImagePreprocess(crop=(16, 20), layout="NHWC", mean=MEAN, std=STD))
    wanted = (rgb.astype(np.float32) - np.float32(MEAN)) / np.float32(STD)
    np.testing.assert_array_equal(next(iter(feed))["x"], wanted[None])


@pytest.mark.parametrize("size", [(61, 43), (43, 61), (24, 24), (20, 16), (15, 12), (7, 90), (300, 2)], ids=str)
@pytest.mark.parametrize("color", ["RGB", "BGR", "L"])
@pytest.mark.parametrize("place", ["centre", "corner"])
def test_a_letterbox_is_the_scaled_picture_and_grey_around_it(
    size: tuple[int, int], color: Literal["RGB", "BGR", "L"], place: Literal["centre", "corner"], tmp_path: Path
) -> None:
    image = picture(tmp_path / "x.png", size).convert("L" if color == "L" else "RGB")
    preprocess = ImagePreprocess(crop=(16, 20), letterbox=place, fill=99, color=color, interpolation="bilinear")
    ratio = min(16 / size[1], 20 / size[0])
    wide, tall = max(round(size[0] * ratio), 1), max(round(size[1] * ratio), 1)
    scaled = np.asarray(image.resize((wide, size[1]), Image.Resampling.BILINEAR).resize((wide, tall), 2))
    scaled = scaled.reshape(tall, wide, -1)[:, :, :: -1 if color == "BGR" else 1]
    before = ((16 - tall) // 2, (20 - wide) // 2) if place == "centre" else (0, 0)
    margins = ((before[0], 16 - tall - before[0]), (before[1], 20 - wide - before[1]), (0, 0))
    expected = np.pad(scaled, margins, constant_values=99)
    np.testing.assert_array_equal(load_image(tmp_path / "x.png", preprocess), expected)


def test_a_letterbox_fits_a_camera_frame_and_takes_exif(tmp_path: Path) -> None:
    preprocess = ImagePreprocess(crop=(16, 16), letterbox="centre")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path / "x.png", (60, 30), exif=exif)
    pixels = load_image(tmp_path / "x.png", preprocess)
    assert (pixels[:, :4] == 114).all()
    assert (pixels[:, 12:] == 114).all()
    framed = load_image(tmp_path / "x.png", preprocess, (20, 40))
    assert (framed[:4] == 114).all()
    assert not (framed[4:12] == 114).all(axis=2).any()


def test_integer_models_get_pixels(tmp_path: Path) -> None:
    picture(tmp_path / "x.png")
    inputs = (TensorInfo("x", np.dtype(np.uint8), (1, 3, 16, 20)),)
    plain = ImagePreprocess(crop=(16, 20), mean=(0, 0, 0), std=(1, 1, 1))
    sample = next(iter(load_feed(tmp_path, inputs, preprocess=plain)))["x"]
    assert sample.dtype == np.uint8
    np.testing.assert_array_equal(sample[0].transpose(1, 2, 0), load_image(tmp_path / "x.png", plain))
    with pytest.raises(CalibrationError, match=r"the model takes integer pixels \(x: uint8\[1, 3, 16, 20\]\)"):
        load_feed(tmp_path, inputs, preprocess=ImagePreprocess(crop=(16, 20)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_obeyed(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = picture(tmp_path / "x.png", exif=exif)
    expected = ImageOps.exif_transpose(image).resize((20, 16), Image.Resampling.BICUBIC)
    pixels = load_image(tmp_path / "x.png", ImagePreprocess(crop=(16, 20), stretch=True))
    np.testing.assert_array_equal(pixels, np.asarray(expected))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_other_colour_modes(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    image = picture(path, mode=mode)
    expected = image.convert("RGB").resize((20, 16), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(load_image(path, ImagePreprocess(crop=(16, 20), stretch=True)), np.asarray(expected))


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 16 * 20).reshape(16, 20).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "x.png")
    pixels = load_image(tmp_path / "x.png", ImagePreprocess(crop=(16, 20), color="L"))
    np.testing.assert_array_equal(pixels[:, :, 0], ramp >> 8)


def test_large_jpegs_decode_smaller_and_stay_close(tmp_path: Path) -> None:
    image = picture(tmp_path / "x.jpg", (1600, 1200), quality=95)
    expected = np.asarray(oracle(image, 120, (112, 112), Image.Resampling.BICUBIC)).astype(int)
    pixels = load_image(tmp_path / "x.jpg", ImagePreprocess(crop=(112, 112), resize=120)).astype(int)
    assert np.abs(pixels - expected).mean() < 1
    assert np.abs(pixels - expected).max() <= 6


@pytest.mark.parametrize(
    ("size", "decoded"),
    [((1600, 400), (400, 100)), ((400, 1599), (200, 800)), ((1500, 700), (750, 350)), ((700, 700), None)],
    ids=str,
)
def test_jpegs_for_a_letterbox_decode_to_no_less_than_twice_its_size(
    size: tuple[int, int], decoded: tuple[int, int] | None, tmp_path: Path
) -> None:
    picture(tmp_path / "x.jpg", size, quality=95)
    steps = ImagePreprocess(crop=(200, 180), letterbox="corner")
    assert images.load_pixels(tmp_path / "x.jpg", steps, None).shape[1::-1] == (decoded or size)


def test_truncated_pictures_are_named(tmp_path: Path) -> None:
    for suffix in ("jpg", "png", "webp", "bmp"):
        path = tmp_path / f"cut.{suffix}"
        picture(path, (300, 200))
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        with pytest.raises(CalibrationError, match=rf"(?s)cannot be decoded.*where: .*cut\.{suffix}"):
            load_image(path, ImagePreprocess(crop=(16, 20)))


def test_garbage_never_gives_a_traceback(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for suffix in ("jpg", "png", "webp"):
        path = tmp_path / f"x.{suffix}"
        picture(path)
        good = path.read_bytes()
        for _ in range(60):
            bad = bytearray(good)
            for position in rng.integers(0, len(bad), 8):
                bad[position] = int(rng.integers(0, 256))
            path.write_bytes(bad)
            with contextlib.suppress(CalibrationError):
                load_image(path, ImagePreprocess(crop=(16, 20), stretch=True))


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_text("hello")
    with pytest.raises(CalibrationError, match="not a picture that Pillow can read"):
        load_image(tmp_path / "x.jpg", ImagePreprocess(crop=(16, 20)))
    with pytest.raises(CalibrationError, match="cannot be decoded"):
        load_image(tmp_path / "gone.jpg", ImagePreprocess(crop=(16, 20)))


@pytest.mark.parametrize("limit", [2000, 100])
def test_decompression_bombs_are_refused(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "x.png")  # 2623 pixels
    monkeypatch.setattr(images, "_MOST_PIXELS", limit)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(CalibrationError, match="the picture unpacks to more than"):
        load_image(tmp_path / "x.png", ImagePreprocess(crop=(16, 20)))


@pytest.mark.parametrize(
    ("preprocess", "text"),
    [
        (
            ImagePreprocess(crop=(16, 16)),
            r"expected image: float32\[1, 3, 16, 20\], but the preprocessing gives \[batch, 3, 16, 16\]",
        ),
        (ImagePreprocess(crop=(16, 20), layout="NHWC"), r"gives \[batch, 16, 20, 3\]"),
        (ImagePreprocess(crop=(16, 20), color="L"), r"gives \[batch, 1, 16, 20\]"),
        (ImagePreprocess(crop=(16, 20), mean=(1, 2)), "`mean` has 2 numbers, but color = 'RGB' has 3 channels"),
        (ImagePreprocess(crop=(16, 20), std=(1, 0, 1)), "`std` must be positive"),
    ],
)
def test_preprocessing_that_contradicts_the_model(preprocess: ImagePreprocess, text: str, tmp_path: Path) -> None:
    picture(tmp_path / "x.png")
    with pytest.raises(CalibrationError, match=text):
        load_feed(tmp_path, INPUT, preprocess=preprocess)


def test_models_that_take_no_picture(tmp_path: Path) -> None:
    picture(tmp_path / "x.png")
    inputs = (*INPUT, TensorInfo("scale", np.dtype(np.float32), (1,)))
    with pytest.raises(CalibrationError, match=r"one input of four dimensions; this model has .*scale: float32\[1\]"):
        load_feed(tmp_path, inputs, preprocess=ImagePreprocess(crop=(16, 20)))


@pytest.mark.parametrize("size", [(18, 30), (19, 30), (40, 15)], ids=str)
def test_pictures_smaller_than_the_crop(size: tuple[int, int], tmp_path: Path) -> None:
    picture(tmp_path / "small.png", size)
    feed = load_feed(tmp_path, INPUT, preprocess=ImagePreprocess(crop=(16, 20)))
    with pytest.raises(
        CalibrationError, match=rf"(?s){size[1]}x{size[0]} pixels .*fewer than the crop of 16x20.*small\.png"
    ):
        list(feed)


def test_subfolders_count_and_hidden_files_do_not(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    picture(tmp_path / "cats" / "b.PNG")
    picture(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"resource fork")
    feed = load_feed(tmp_path, INPUT, preprocess=ImagePreprocess(crop=(16, 20)))
    assert [Path(name).name for name in feed.store.names] == ["a.png", "b.PNG"]
    assert len(list(feed)) == 2
