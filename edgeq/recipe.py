"""Calibration recipes and preprocessing: data, not code. See ``docs/calibration.md``."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgeq.errors import ConfigError
from edgeq.resources import data_path

__all__ = ["PAD_TOKENS", "ImagePreprocess", "Preprocess", "Recipe", "RecipeSource", "TextPreprocess", "load_recipe"]

PAD_TOKENS = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>", "</s>")
"""What padding is called in vocabularies, by preference; a tokenizer that names its own comes first."""

_FILL = 114
"""The grey that detectors of the YOLO family are trained with."""


class ImagePreprocess(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="image"
):
    """Pixels to a tensor: resize the short side, crop the centre, ``(pixel - mean) / std``.

    ``mean`` and ``std`` are in pixel units (0 to 255), one number per channel. ``resize`` is the
    length of the short side in pixels (None: no resize before the crop); ``crop`` is ``(height,
    width)``. ``stretch`` resizes straight to ``crop``, ignoring the aspect ratio. ``letterbox`` scales
    in proportion until the picture fits into ``crop``, in its middle or its top left corner, and fills the
    rest with the level ``fill``. `edgeq.geometry` has the arithmetic.

    Raises:
        ValueError: more than one of ``resize``, ``stretch`` and ``letterbox``, a ``fill`` that is no level or
            without a letterbox.
    """

    crop: tuple[int, int]
    resize: int | None = None
    stretch: bool = False
    letterbox: Literal["centre", "corner"] | None = None
    fill: int = _FILL
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    color: Literal["RGB", "BGR", "L"] = "RGB"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (255.0, 255.0, 255.0)
    layout: Literal["NCHW", "NHWC"] = "NCHW"

    def __post_init__(self) -> None:
        sizes = {"resize": self.resize is not None, "stretch": self.stretch, "letterbox": self.letterbox is not None}
        found = [f"`{key}`" for key, is_set in sizes.items() if is_set]
        if len(found) > 1:
            raise ValueError(f"{' and '.join(found)} exclude one another: each says how a picture is resized")
        if not 0 <= self.fill <= 255:
            raise ValueError(f"`fill` is a level from 0 to 255, not {self.fill}")
        if self.letterbox is None and self.fill != _FILL:
            raise ValueError("`fill` says what a letterbox is filled with, and there is no `letterbox`")


class TextPreprocess(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="text"
):
    """Text to token ids: a ``tokenizer.json`` file, a fixed length, padding at the end."""

    tokenizer: str
    max_length: int = 128
    padding: Literal["max_length", "longest"] = "max_length"


Preprocess = ImagePreprocess | TextPreprocess


class RecipeSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where samples come from.

    ``path`` is relative to the recipe's file. ``field`` is the JSONL key that holds the text.
    ``count`` is the number of samples to use (None: all), drawn with ``seed``.
    """

    kind: Literal["images", "arrays", "text"]
    path: str
    count: int | None = None
    seed: int = 0
    batch: int = 1
    field: str = "text"
    licence: str


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A calibration recipe: ``calibration/NAME.toml`` or the user's own file."""

    summary: str
    source: RecipeSource
    preprocess: Preprocess | None = None
    folder: str = ""
    name: str = ""

    @property
    def path(self) -> Path:
        """The data's absolute path."""
        return Path(self.folder) / self.source.path


def load_recipe(name: str | Path) -> Recipe:
    """Load a recipe by name, or from a TOML file.

    Raises:
        ConfigError: unknown recipe, unreadable TOML, unknown or missing key, wrong type.
    """
    path = Path(name) if str(name).endswith(".toml") else data_path("calibration", str(name))
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the recipe: {error.strerror}", where=str(path)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the recipe is not valid TOML: {error}", where=str(path)) from None
    for derived in ("folder", "name"):
        if derived in table:
            raise ConfigError(f"recipe {path.stem!r} is not valid: unknown key {derived!r}", where=str(path))
    try:
        return msgspec.convert({**table, "folder": str(path.resolve().parent), "name": path.stem}, Recipe)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"recipe {path.stem!r} is not valid: {error}",
            where=str(path),
            remedy="compare the key with docs/calibration.md; a recipe may hold no other keys",
        ) from None
