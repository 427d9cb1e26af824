from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeq.errors import ExportError
from edgeq.recipe import ImagePreprocess, TextPreprocess
from edgeq.stages.export.preprocessing import image_preprocess, read_json, read_labels, read_pooling, read_preprocess

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def apply(preprocess: ImagePreprocess, image: Image.Image) -> np.ndarray:
    """What the fields of ImagePreprocess say, with Pillow."""
    height, width = preprocess.crop
    method = RESAMPLING[preprocess.interpolation]
    if preprocess.stretch:
        image = image.resize((width, height), method)
    else:
        assert preprocess.resize is not None
        short = min(image.size)
        size = tuple(int(preprocess.resize * side / short) for side in image.size)
        image = image.resize(size, method)  # type: ignore[arg-type]
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(image, dtype=np.float32)
    if preprocess.color == "BGR":
        pixels = pixels[..., ::-1]
    return ((pixels - np.float32(preprocess.mean)) / np.float32(preprocess.std)).transpose(2, 0, 1)


CASES = {
    "vit": ("ViTImageProcessor", {"size": {"height": 32, "width": 32}}),
    "vit-imagenet": (
        "ViTImageProcessor",
        {"size": {"height": 32, "width": 48}, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
    ),
    "mobilenet-v2": (
        "MobileNetV2ImageProcessor",
        {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}},
    ),
    "clip": ("CLIPImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}),
    "bit-raw": (
        "BitImageProcessor",
        {
            "size": {"shortest_edge": 40},
            "crop_size": {"height": 32, "width": 32},
            "do_rescale": False,
            "do_normalize": False,
        },
    ),
    "rt-detr": ("RTDetrImageProcessor", {"size": {"height": 32, "width": 48}}),
    "convnext": ("ConvNextImageProcessor", {"size": {"shortest_edge": 28}, "crop_pct": 0.875}),
    "convnext-large": ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    "mobilevit": ("MobileViTImageProcessor", {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}),
}


@pytest.mark.torch
@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_the_translation_computes_what_transformers_computes(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    kind, options = CASES[name]
    processor = getattr(transformers, kind)(**options)
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8))
    expected = processor(images=image, return_tensors="np")["pixel_values"][0]
    found = apply(image_preprocess(processor.to_dict()), image)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-3 if processor.do_rescale else 1e-3)


def test_old_files_give_a_number_for_the_size() -> None:
    old = {"feature_extractor_type": "ViTFeatureExtractor", "size": 224, "resample": 2}
    assert image_preprocess(old) == ImagePreprocess(
        crop=(224, 224), stretch=True, interpolation="bilinear", mean=(127.5,) * 3, std=(127.5,) * 3
    )
    clip = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224}
    assert image_preprocess(clip).resize == 224


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"image_processor_type": "DetrImageProcessor"}, "image processor DetrImageProcessor"),
        ({"image_processor_type": "RTDetrImageProcessor", "do_pad": True}, "do_pad: pictures are filled"),
        ({}, "image processor of no type"),
        ({"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}}, "leaves the width open"),
        ({"image_processor_type": "ViTImageProcessor", "size": 8, "resample": 5}, "resample 5"),
        ({"image_processor_type": "ViTImageProcessor", "size": 8, "do_resize": False}, "do_resize False"),
    ],
)
def test_what_is_not_understood_is_said(config: dict, text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=text):
        image_preprocess(config)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**config, "x": 1}))
    preprocess, note = read_preprocess(tmp_path)
    assert preprocess is None
    assert text in note


@pytest.mark.parametrize(
    ("truncation", "tokenizer_limit", "positions", "expected"),
    [({"max_length": 200}, 512, 512, 200), (None, 64, 512, 64), (None, 1e30, 40, 40), (None, None, None, 128)],
)
def test_the_length_of_text(
    tmp_path: Path, truncation: object, tokenizer_limit: object, positions: object, expected: int
) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"truncation": truncation}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": tokenizer_limit}))
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": positions}))
    assert read_preprocess(tmp_path) == (
        TextPreprocess(tokenizer=str(tmp_path / "tokenizer.json"), max_length=expected),
        "tokenizer.json",
    )


def test_labels(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"id2label": {"10": "k", "2": "c", "1": "b"}}))
    assert read_labels(tmp_path) == ("b", "c", "k")
    config.write_text(json.dumps({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}))
    assert read_labels(tmp_path) == ()


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        (["mean_tokens"], "mean"),
        (["cls_token"], "first"),
        (["max_tokens"], "max"),
        (["mean_sqrt_len_tokens"], None),
        (["mean_tokens", "max_tokens"], None),
    ],
    ids=str,
)
def test_pooling(tmp_path: Path, modes: list[str], expected: str | None) -> None:
    assert read_pooling(tmp_path) is None
    (tmp_path / "1_Pooling").mkdir()
    every = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    config = {"word_embedding_dimension": 8, **{f"pooling_mode_{mode}": mode in modes for mode in every}}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    assert read_pooling(tmp_path) == expected


def test_broken_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ExportError, match="not a readable JSON file"):
        read_json(tmp_path / "config.json")
