"""Preprocessing that a Hugging Face folder describes, as data: ``preprocessor_config.json``, ``tokenizer.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgeq.errors import ExportError
from edgeq.recipe import ImagePreprocess, Preprocess, TextPreprocess
from edgeq.source import BoxLayout, Pooling

__all__ = [
    "encode_example",
    "image_preprocess",
    "read_box_layout",
    "read_json",
    "read_labels",
    "read_pooling",
    "read_preprocess",
]

# PIL's numbering, which transformers stores as "resample".
_INTERPOLATION: dict[int, Literal["nearest", "bilinear", "bicubic", "lanczos"]] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
}
_PLAIN_PROCESSORS = frozenset(
    {
        "BeitImageProcessor",
        "BitImageProcessor",
        "CLIPImageProcessor",
        "DeiTImageProcessor",
        "MobileNetV1ImageProcessor",
        "MobileNetV2ImageProcessor",
        "PvtImageProcessor",
        "RTDetrImageProcessor",
        "SiglipImageProcessor",
        "ViTImageProcessor",
    }
)
"""Resize, centre crop, rescale, normalize, each as its keys say. Others do more; those below are known."""
# The same classes under the names of older files.
_OLD_NAMES = {"FeatureExtractor": "ImageProcessor", "ImageProcessorFast": "ImageProcessor"}
EXAMPLE_TEXT = "The harbour lay quiet in the early light, and the first boats were coming in."


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one if there is no such file; raises ExportError if it is not JSON."""
    if not path.is_file():
        return {}
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"not a readable JSON file: {error}", where=str(path), remedy="fetch it again") from None
    if not isinstance(table, dict):
        raise ExportError("the file does not hold a JSON object", where=str(path), remedy="fetch it again")
    return table


def read_preprocess(folder: Path) -> tuple[Preprocess | None, str]:
    """What ``folder`` says of preprocessing, and one sentence on what was found (or not understood)."""
    config = read_json(folder / "preprocessor_config.json")
    if config:
        try:
            return image_preprocess(config), "preprocessor_config.json"
        except ValueError as error:
            return None, f"preprocessor_config.json was not understood: {error}"
    if (folder / "tokenizer.json").is_file():
        return TextPreprocess(
            tokenizer=str(folder / "tokenizer.json"), max_length=_max_length(folder)
        ), "tokenizer.json"
    return None, "neither preprocessor_config.json nor tokenizer.json"


def read_labels(folder: Path) -> tuple[str, ...]:
    """Class names by id from ``config.json``; empty if there are none, or only placeholders (``LABEL_0``)."""
    names = read_json(folder / "config.json").get("id2label")
    if not isinstance(names, dict) or not names:
        return ()
    try:
        labels = tuple(str(names[key]) for key in sorted(names, key=int))
    except ValueError:
        return ()
    return () if all(label == f"LABEL_{index}" for index, label in enumerate(labels)) else labels


def read_pooling(folder: Path) -> Pooling | None:
    """How a sentence-transformers folder pools; None where it does not say, or in a way that edgeq does not know."""
    config = read_json(folder / "1_Pooling" / "config.json")
    ways: dict[str, Pooling] = {
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_cls_token": "first",
        "pooling_mode_max_tokens": "max",
    }
    asked = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    return ways.get(asked[0]) if len(asked) == 1 else None


def read_box_layout(folder: Path) -> BoxLayout | None:
    """How a detector's outputs hold boxes, by ``model_type`` and transformers' ``post_process_object_detection``."""
    kind = str(read_json(folder / "config.json").get("model_type")).replace("-", "_")
    if kind in ("detr", "yolos", "table_transformer"):
        return "detr"
    sigmoid = ("conditional_detr", "dab_detr", "deformable_detr", "d_fine", "rt_detr", "rt_detr_v2")
    return "rt-detr" if kind in sigmoid else None


def _max_length(folder: Path) -> int:
    """The tokenizer's own truncation if it has one; else at most 128 tokens, and no more than the model takes."""
    truncation = read_json(folder / "tokenizer.json").get("truncation")
    if isinstance(truncation, dict) and isinstance(truncation.get("max_length"), int):
        return int(truncation["max_length"])
    limits = (
        read_json(folder / "tokenizer_config.json").get("model_max_length"),
        read_json(folder / "config.json").get("max_position_embeddings"),
    )
    return min([128, *(int(limit) for limit in limits if isinstance(limit, (int, float)) and limit > 0)])


def image_preprocess(config: Mapping[str, Any]) -> ImagePreprocess:
    """A ``preprocessor_config.json`` in edgeq's terms: mean and std in pixels (0 to 255).

    transformers computes ``(pixel * factor - mean) / std``, which is
    ``(pixel - mean / factor) / (std / factor)``.

    Raises:
        ValueError: a processor whose steps are not known here, or sizes that leave the shape open.
    """
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    for old, new in _OLD_NAMES.items():
        kind = kind.replace(old, new)
    if kind not in _PLAIN_PROCESSORS | {"ConvNextImageProcessor", "MobileViTImageProcessor"}:
        raise ValueError(f"image processor {kind or 'of no type'}")
    if config.get("do_pad"):
        # Of detectors: filled after normalizing, to the largest picture of a batch. That is no letterbox.
        raise ValueError("do_pad: pictures are filled to the size of others")
    resize, stretch, crop = _sizes(kind, config)
    factor = float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0
    normalize = config.get("do_normalize", kind not in ("MobileViTImageProcessor", "RTDetrImageProcessor"))
    mean = config.get("image_mean", (0.5, 0.5, 0.5)) if normalize else (0.0, 0.0, 0.0)
    std = config.get("image_std", (0.5, 0.5, 0.5)) if normalize else (1.0, 1.0, 1.0)
    flipped = kind == "MobileViTImageProcessor" and config.get("do_flip_channel_order", True)
    resample = int(config.get("resample", 3 if kind == "CLIPImageProcessor" else 2))
    if resample not in _INTERPOLATION:
        raise ValueError(f"resample {resample}")
    return ImagePreprocess(
        crop=crop,
        resize=resize,
        stretch=stretch,
        interpolation=_INTERPOLATION[resample],
        color="BGR" if flipped else "RGB",
        mean=tuple(round(float(m) / factor, 6) for m in mean),
        std=tuple(round(float(s) / factor, 6) for s in std),
    )


def _sizes(kind: str, config: Mapping[str, Any]) -> tuple[int | None, bool, tuple[int, int]]:
    """(short side, stretch, crop) from ``size``, ``crop_size`` and their flags."""
    size = config.get("size")
    if isinstance(size, int):
        # Old files: a number was the side of a square for ViT, the short side for the others.
        square = kind in ("ViTImageProcessor", "DeiTImageProcessor", "BeitImageProcessor", "SiglipImageProcessor")
        size = {"height": size, "width": size} if square else {"shortest_edge": size}
    if not isinstance(size, dict) or not config.get("do_resize", True):
        raise ValueError(f"size {size!r} with do_resize {config.get('do_resize', True)}")
    if kind == "ConvNextImageProcessor":
        side = int(size["shortest_edge"])
        if side >= 384:
            return None, True, (side, side)
        return int(side / float(config.get("crop_pct") or 224 / 256)), False, (side, side)
    crop_size = config.get("crop_size") if config.get("do_center_crop", "crop_size" in config) else None
    if isinstance(crop_size, int):
        crop_size = {"height": crop_size, "width": crop_size}
    crop = (int(crop_size["height"]), int(crop_size["width"])) if crop_size else None
    if "height" in size and "width" in size:
        target = (int(size["height"]), int(size["width"]))
        if crop is not None and crop != target:
            raise ValueError(f"a resize to {target} followed by a crop to {crop}")
        return None, True, target
    if "shortest_edge" in size and crop is not None:
        return int(size["shortest_edge"]), False, crop
    raise ValueError(f"size {size!r} without a crop leaves the width open")


def encode_example(preprocess: TextPreprocess, pad_id: int) -> dict[str, np.ndarray]:
    """Token ids, mask and segment ids ``int64[1, max_length]`` of a fixed sentence, padded at the end."""
    try:
        from tokenizers import Tokenizer  # type: ignore[import-untyped]
    except ImportError:
        raise ExportError(
            "text models need the package 'tokenizers', which is not installed", remedy="pip install 'edgeq[text]'"
        ) from None
    try:
        tokenizer = Tokenizer.from_file(preprocess.tokenizer)
    except Exception as error:  # tokenizers raises bare Exception
        raise ExportError(f"the tokenizer cannot be read: {error}", where=preprocess.tokenizer) from None
    tokenizer.no_padding()
    tokenizer.enable_truncation(preprocess.max_length)
    encoding = tokenizer.encode(EXAMPLE_TEXT)
    missing = preprocess.max_length - len(encoding.ids)

    def row(values: list[int], padding: int) -> np.ndarray:
        return np.array([values + [padding] * missing], dtype=np.int64)

    return {
        "input_ids": row(encoding.ids, pad_id),
        "attention_mask": row(encoding.attention_mask, 0),
        "token_type_ids": row(encoding.type_ids, 0),
    }
