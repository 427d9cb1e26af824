from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from edgeq.graph import TensorInfo
from edgeq.recipe import ImagePreprocess, load_recipe
from edgeq.resources import data_folder, data_names
from edgeq.stages.calibrate.feeds import group_of, load_feed, split_feed

INPUT = (TensorInfo("image", np.dtype(np.float32), (1, 3, 224, 224)),)
LITE = ImagePreprocess(crop=(224, 224), resize=256, mean=(127, 127, 127), std=(128, 128, 128))


@pytest.mark.parametrize("name", data_names("calibration"))
def test_every_bundled_recipe_has_its_data(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.path.exists()
    assert recipe.source.licence


def test_photos_are_what_the_licences_list() -> None:
    folder = data_folder("calibration") / "photos"
    files = sorted(folder.glob("*.jpg"))
    assert len(files) == 24
    assert sum(file.stat().st_size for file in files) < 700_000
    licences = (folder / "LICENCES.md").read_text(encoding="utf-8")
    for file in files:
        assert f"`{group_of(file.name)}-1`" in licences, file.name
        with Image.open(file) as image:
            assert (image.size, image.mode) == ((256, 256), "RGB")
            assert not image.getexif()


def test_photos_feed_a_model_and_split_by_photograph() -> None:
    feed = load_feed("photos", INPUT, preprocess=LITE)
    assert len(feed) == 24
    samples = np.concatenate([sample["image"] for sample in feed])
    assert samples.shape == (24, 3, 224, 224)
    assert samples.min() < -0.98
    assert samples.max() == 1.0
    kept, held = split_feed(feed)
    assert len(held) >= 8
    assert len(kept) >= 12
    assert "CC0" in held.licence


def test_sentences_are_varied() -> None:
    recipe = load_recipe("sentences")
    texts = [json.loads(line)["text"] for line in recipe.path.read_text(encoding="utf-8").splitlines()]
    words = [len(text.split()) for text in texts]
    assert len(set(texts)) == 60
    assert min(words) <= 4
    assert max(words) >= 50
