"""Pictures to tensors, exactly as `ImagePreprocess` says, with Pillow."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edgeq.errors import CalibrationError
from edgeq.geometry import origin, resized
from edgeq.graph import TensorInfo
from edgeq.recipe import ImagePreprocess

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["IMAGE_SUFFIXES", "ImageStore", "PixelStore", "image_files", "load_image", "load_pixels"]

Frame = tuple[int, int]
"""``(height, width)`` of what a camera gives."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

_MOST_PIXELS = 100_000_000
"""Larger pictures are refused: a few kilobytes of PNG can unpack to gigabytes."""

_DRAFT_GAP = 2
"""JPEG decoders halve a picture almost for free. They may, as long as twice the wanted size is left for
the real filter: the factor that Pillow's own ``thumbnail`` uses. Pictures under 4x the size are untouched."""


def image_files(path: Path) -> tuple[Path, ...]:
    """All pictures under a folder, sorted by relative path, or the one file.

    Raises:
        CalibrationError: the folder is missing, unreadable, empty or holds no pictures.
    """
    if path.is_file():
        return (path,)
    try:
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
    except OSError as error:
        raise CalibrationError(f"the folder cannot be read: {error.strerror}", where=str(path)) from None
    files = [file for file in files if not file.name.startswith(".")]
    if not files:
        raise CalibrationError(
            f"the folder holds no pictures ({', '.join(IMAGE_SUFFIXES)})",
            where=str(path),
            remedy="give a folder of pictures such as the model will see",
        )
    return tuple(files)


class ImageStore:
    """Pictures for the one image input of a model (see `edgeq.stages.calibrate.feeds.Store`).

    With ``frame`` each picture is first made one of that size, as `PixelStore` does.

    Raises:
        CalibrationError: the model has other inputs than one picture, or the preprocessing
            contradicts its shape or type.
    """

    def __init__(
        self,
        files: Sequence[Path],
        preprocess: ImagePreprocess,
        inputs: Sequence[TensorInfo],
        frame: Frame | None = None,
    ) -> None:
        self._files = tuple(files)
        self.names = tuple(str(file) for file in files)
        self._preprocess = preprocess
        self._frame = frame
        self._inputs = tuple(inputs)
        self.settings = msgspec.json.encode(preprocess).decode() + ("" if frame is None else f" of {frame}")
        self._mean, self._std = _channels(preprocess)
        self._input = _image_input(inputs, preprocess)
        self._integers = self._input.dtype.kind in "iu"
        if self._integers and (np.any(self._mean) or np.any(self._std != 1)):
            raise CalibrationError(
                f"the model takes integer pixels ({self._input.describe()}), so they cannot be normalized",
                remedy="use mean = [0, 0, 0] and std = [1, 1, 1] in the recipe",
            )

    def digest(self, row: int) -> bytes:
        return hashlib.sha256(_read(self._files[row])).digest()

    def read(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """``[len(rows), channels, height, width]``, or with the channels last."""
        nchw = self._preprocess.layout == "NCHW"
        height, width = self._preprocess.crop
        channels = len(self._mean)
        shape = (channels, height, width) if nchw else (height, width, channels)
        batch = np.empty((len(rows), *shape), np.uint8 if self._integers else np.float32)
        for target, row in zip(batch, rows, strict=True):
            pixels = load_image(self._files[row], self._preprocess, self._frame)
            if nchw:
                pixels, mean, std = pixels.transpose(2, 0, 1), self._mean[:, None, None], self._std[:, None, None]
            else:
                mean, std = self._mean, self._std
            if self._integers:
                target[:] = pixels
            else:
                np.subtract(pixels, mean, out=target)
                np.divide(target, std, out=target)
        return {self._input.name: batch}

    def raw(self, name: str, frame: Frame | None, channels: int = 3) -> PixelStore:
        """The same pictures as an app gives them to a model that prepares them itself; a 4th channel is opaque."""
        return PixelStore(self._files, self._preprocess, name, frame, channels)

    def framed(self, frame: Frame | None) -> ImageStore:
        """The same pictures, each made one of this size first."""
        return ImageStore(self._files, self._preprocess, self._inputs, frame)


class PixelStore:
    """The same pictures before any of ``preprocess``: upright RGB pixels, 0 to 255.

    With ``frame`` each is made one of that size as a camera sees it: scaled to cover it, the middle cut out.
    Without, each keeps its own, so only pictures of one size form a batch.
    """

    def __init__(
        self, files: Sequence[Path], preprocess: ImagePreprocess, name: str, frame: Frame | None, channels: int
    ) -> None:
        self._files = tuple(files)
        self._channels = channels
        self.names = tuple(str(file) for file in files)
        self._preprocess = preprocess
        self._name = name
        self._frame = frame
        self.settings = f"pixels {frame} {channels} {msgspec.json.encode(preprocess).decode()}"

    def digest(self, row: int) -> bytes:
        return hashlib.sha256(_read(self._files[row])).digest()

    def read(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """uint8 ``[len(rows), height, width, channels]``."""
        batch = np.stack([load_pixels(self._files[row], self._preprocess, self._frame) for row in rows])
        missing = ((0, 0), (0, 0), (0, 0), (0, self._channels - 3))
        return {self._name: np.pad(batch, missing, constant_values=255)}


def load_pixels(path: Path, preprocess: ImagePreprocess, frame: Frame | None) -> np.ndarray:
    """What ``load_image`` starts from: uint8 ``[height, width, 3]``, upright, decoded no larger than it needs.

    Raises:
        CalibrationError: as for ``load_image``.
    """
    return np.asarray(_framed(_open(path, preprocess, "RGB", frame), frame))


def load_image(path: Path, preprocess: ImagePreprocess, frame: Frame | None = None) -> np.ndarray:
    """Pixels uint8 ``[height, width, channels]`` after EXIF rotation, resize, and centre crop or letterbox.

    Sizes round as in torchvision's ``Resize`` and ``CenterCrop``. With ``frame`` a grey picture is made from RGB.

    Raises:
        CalibrationError: the file is missing, truncated, not a picture, too large to unpack
            safely, or smaller than the crop.
    """
    grey = "L" if preprocess.color == "L" else "RGB"
    image = _open(path, preprocess, grey if frame is None else "RGB", frame)
    image = _to_mode(_framed(image, frame), grey)
    image = _placed(_resize(image, preprocess), preprocess, origin(preprocess, (image.height, image.width)), path)
    pixels = np.asarray(image)
    if preprocess.color == "L":
        return pixels[:, :, None]
    return pixels[:, :, ::-1] if preprocess.color == "BGR" else pixels


def _open(path: Path, preprocess: ImagePreprocess, mode: str, frame: Frame | None) -> Image.Image:
    """Decode, turn upright, convert."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(path)
        with image:
            if image.width * image.height > _MOST_PIXELS:
                raise Image.DecompressionBombError
            if preprocess.resize or preprocess.stretch or preprocess.letterbox:
                image.draft("RGB", _least(image.size, preprocess, frame))
            image = ImageOps.exif_transpose(image)
            return _to_mode(image, mode)
    except UnidentifiedImageError:
        raise CalibrationError("the file is not a picture that Pillow can read", where=str(path)) from None
    except Image.DecompressionBombError:
        raise CalibrationError(
            f"the picture unpacks to more than {_MOST_PIXELS // 1_000_000} megapixels",
            where=str(path),
            remedy="scale it down, or remove it if it is not yours",
        ) from None
    except (OSError, SyntaxError, ValueError) as error:  # PNG chunks raise SyntaxError
        raise CalibrationError(
            f"the picture cannot be decoded: {error}", where=str(path), remedy="fetch it again or remove it"
        ) from None


def _framed(image: Image.Image, frame: Frame | None) -> Image.Image:
    from PIL import Image, ImageOps

    return image if frame is None else ImageOps.fit(image, (frame[1], frame[0]), Image.Resampling.BICUBIC)


def _least(size: tuple[int, int], preprocess: ImagePreprocess, frame: Frame | None) -> tuple[int, int]:
    """The least ``(width, height)`` that a JPEG file of ``size`` may be decoded at."""
    edge = _DRAFT_GAP * max(preprocess.resize or max(preprocess.crop), *(frame or (0,)))
    if preprocess.letterbox is None or frame is not None:
        return edge, edge
    # Only the long side has to be as long; which of the two it is EXIF may change.
    return max(1, edge * size[0] // max(size)), max(1, edge * size[1] // max(size))


def _resize(image: Image.Image, preprocess: ImagePreprocess) -> Image.Image:
    from PIL import Image

    height, width = resized(preprocess, (image.height, image.width))
    size = (width, height)
    if size == image.size:
        return image
    how = Image.Resampling[preprocess.interpolation.upper()]
    if how is Image.Resampling.NEAREST:
        return image.resize(size, how)
    # First the rows, then the columns, each rounded to whole levels. Pillow 13 alone takes the columns first where
    # that is less work, and is then up to a few levels off what its other versions and the graph itself give.
    return image.resize((size[0], image.height), how).resize(size, how)


def _placed(image: Image.Image, preprocess: ImagePreprocess, at: tuple[int, int], path: Path) -> Image.Image:
    """The ``crop`` that begins at pixel ``at`` of a resized picture, filled around it."""
    from PIL import Image

    (top, left), (height, width) = at, preprocess.crop
    if (image.width, image.height) == (width, height):
        return image
    if preprocess.letterbox is not None:
        level = preprocess.fill
        placed = Image.new(image.mode, (width, height), level if image.mode == "L" else (level,) * 3)
        placed.paste(image, (-left, -top))
        return placed
    if image.width < width or image.height < height:
        raise CalibrationError(
            f"the picture has {image.height}x{image.width} pixels (height x width) after resizing, "
            f"fewer than the crop of {height}x{width}",
            where=str(path),
            remedy="set `resize`, `letterbox` or `stretch` in the recipe's [preprocess]",
        )
    return image.crop((left, top, left + width, top + height))


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert; 16-bit pictures are scaled down (Pillow alone would clip them to white)."""
    from PIL import Image

    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode == mode:
        image.load()
        return image
    return image.convert(mode)


def _channels(preprocess: ImagePreprocess) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std as float32, one per channel; equal triples also do for one channel."""
    count = 1 if preprocess.color == "L" else 3
    result = []
    for name, numbers in (("mean", preprocess.mean), ("std", preprocess.std)):
        if count == 1 and len(set(numbers)) == 1:
            numbers = numbers[:1]
        if len(numbers) != count:
            raise CalibrationError(
                f"`{name}` has {len(numbers)} numbers, but color = {preprocess.color!r} has {count} channels",
                remedy=f"give {count} numbers in the recipe's [preprocess]",
            )
        result.append(np.array(numbers, np.float32))
    if not np.all(result[1] > 0):
        raise CalibrationError("`std` must be positive", remedy="correct it in the recipe's [preprocess]")
    return result[0], result[1]


def _image_input(inputs: Sequence[TensorInfo], preprocess: ImagePreprocess) -> TensorInfo:
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        raise CalibrationError(
            "pictures fit a model with one input of four dimensions; this model has "
            + "; ".join(info.describe() for info in inputs),
            remedy="give arrays (.npz with one array per input) or a Python iterable of dicts",
        )
    height, width = preprocess.crop
    channels = 1 if preprocess.color == "L" else 3
    made = (channels, height, width) if preprocess.layout == "NCHW" else (height, width, channels)
    if any(isinstance(want, int) and want != have for want, have in zip(inputs[0].shape[1:], made, strict=True)):
        raise CalibrationError(
            f"expected {inputs[0].describe()}, but the preprocessing gives [batch, {', '.join(map(str, made))}]",
            remedy="make `crop`, `color` and `layout` of the recipe's [preprocess] agree with the model",
        )
    return inputs[0]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CalibrationError(f"the picture cannot be read: {error.strerror}", where=str(path)) from None
