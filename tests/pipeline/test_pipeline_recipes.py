"""What a recipe says of the data reaches the package: the app must do the same to its pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_models import parse, weights

import edgeq
from edgeq.recipe import ImagePreprocess

RECIPE = """
summary = "grey noise"
[source]
kind = "images"
path = "pictures"
licence = "CC0-1.0"
[preprocess]
kind = "image"
crop = [8, 8]
mean = [100.0, 110.0, 120.0]
std = [50.0, 60.0, 70.0]
"""


@pytest.mark.parametrize("given", ["recipe", "arrays"])
def test_the_recipes_preprocessing_is_in_the_manifest(tmp_path: Path, given: str) -> None:
    model = parse(
        "g (float[1,3,8,8] x) => (float[1,4,8,8] y) { c = Conv <pads = [1, 1, 1, 1]> (x, w) y = Relu(c) }",
        w=weights(4, 3, 3, 3),
    )
    (tmp_path / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for index in range(12):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{index}.png")
    (tmp_path / "noise.toml").write_text(RECIPE)
    np.save(tmp_path / "x.npy", weights(12, 3, 8, 8, scale=1.0))
    calibration = tmp_path / ("noise.toml" if given == "recipe" else "x.npy")
    result = edgeq.export(
        model, target="linux-x64", precision="w8a8", calibration=calibration, output=tmp_path / "out", measure=False
    )
    found = edgeq.read_bundle(result.path).manifest.preprocess
    wanted = ImagePreprocess(crop=(8, 8), mean=(100.0, 110.0, 120.0), std=(50.0, 60.0, 70.0))
    assert found == (wanted if given == "recipe" else None)
