"""What the manifest says of inputs and outputs: from task, preprocessing, names and graph."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from edgeq.bundle import Manifest, read_bundle
from edgeq.errors import ConfigError, ValidationError
from edgeq.interface import (
    ClassesOutput,
    EmbeddingOutput,
    ImageInput,
    Interface,
    LogitsOutput,
    PixelInput,
    ProbabilitiesOutput,
    TensorInput,
    TensorOutput,
    TokenEmbeddingsOutput,
    TokenInput,
)
from edgeq.recipe import ImagePreprocess, TextPreprocess
from edgeq.stages.package import write_bundle

HEAD = '<ir_version: 10, opset_import: ["" : 21]> g '


def built(text: str) -> ir.Model:
    return ir.from_proto(onnx.shape_inference.infer_shapes(parser.parse_model(HEAD + text)))


PICTURES = (
    "(float[N,3,8,8] x) => (float[N,4] y) { p = GlobalAveragePool(x) f = Flatten(p)"
    " w = Constant<value = float[3,4] {1,0,0,0,0,1,0,0,0,0,1,0}>() y = MatMul(f, w) }"
)
SURE = PICTURES.replace("y = MatMul(f, w)", "z = MatMul(f, w) y = Softmax(z)")
TEXTS = (
    "(int64[N,L] input_ids, int64[N,L] attention_mask) => (float[N,L,2] last_hidden_state, float[N,2] pooler_output) {"
    " w = Constant<value = float[9,2] {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9}>() last_hidden_state = Gather(w, input_ids)"
    " m = Cast<to = 1>(attention_mask) o = Constant<value_ints = [1]>()"
    " pooler_output = ReduceMean<keepdims = 0>(last_hidden_state, o) }"
)
STEPS = ImagePreprocess(crop=(8, 8), resize=10)
TOKENIZER = {
    "truncation": None,
    "padding": None,
    "added_tokens": [{"id": 7, "content": "[PAD]"}, {"id": 1, "content": "[UNK]"}],
    "model": {"type": "WordPiece", "vocab": {"a": 0, "</s>": 3}},
}


def interface(
    folder: Path, draft: Manifest, model: ir.Model, labels: tuple[str, ...] = (), **more: object
) -> Interface:
    folder.mkdir()
    write_bundle(folder, model=model, manifest=msgspec.structs.replace(draft, **more), labels=labels)
    return read_bundle(folder).manifest.interface


def test_a_picture_and_its_logits(tmp_path: Path, draft: Manifest) -> None:
    found = interface(tmp_path / "b", draft, built(PICTURES), ("a", "b", "c", "d"), preprocess=STEPS)
    assert found.inputs == (ImageInput(name="x", steps=STEPS),)
    assert found.outputs == (LogitsOutput(name="y", classes=4, labels="labels.txt"),)
    table = json.loads((tmp_path / "b" / "manifest.json").read_text())["interface"]
    assert table["inputs"][0]["kind"] == found.inputs[0].kind == "image"
    assert table["outputs"] == [{"kind": "logits", "name": "y", "classes": 4, "labels": "labels.txt"}]


def test_a_classifier_that_ends_in_softmax_gives_probabilities(tmp_path: Path, draft: Manifest) -> None:
    found = interface(tmp_path / "b", draft, built(SURE), preprocess=STEPS)
    assert found.outputs == (ProbabilitiesOutput(name="y", classes=4),)


def test_labels_that_do_not_fit_are_not_claimed(tmp_path: Path, draft: Manifest) -> None:
    found = interface(tmp_path / "b", draft, built(PICTURES), ("a", "b"), preprocess=None, task=None)
    assert found == Interface(inputs=(TensorInput(name="x"),), outputs=(TensorOutput(name="y"),))


@pytest.mark.parametrize(
    ("tokenizer", "pad_id"),
    [
        pytest.param(TOKENIZER, 7, id="an added token"),
        pytest.param({**TOKENIZER, "added_tokens": []}, 3, id="in the vocabulary"),
        pytest.param({**TOKENIZER, "padding": {"pad_id": 5}}, 5, id="its own padding"),
        pytest.param({"model": {"type": "WordPiece", "vocab": [["a", -1.0]]}}, 0, id="none"),
    ],
)
def test_tokens_and_what_pads_them(tmp_path: Path, draft: Manifest, tokenizer: object, pad_id: int) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(tokenizer))
    steps = TextPreprocess(tokenizer=str(file), max_length=16)
    found = interface(tmp_path / "b", draft, built(TEXTS), preprocess=steps, task="feature-extraction")
    common = {"tokenizer": "tokenizer.json", "algorithm": "WordPiece", "max_length": 16, "padding": "max_length"}
    assert found.inputs == (
        TokenInput(name="input_ids", part="ids", pad_id=pad_id, **common),  # type: ignore[arg-type]
        TokenInput(name="attention_mask", part="mask", pad_id=pad_id, **common),  # type: ignore[arg-type]
    )
    assert found.outputs == (
        TokenEmbeddingsOutput(name="last_hidden_state", size=2, mask="attention_mask"),
        EmbeddingOutput(name="pooler_output", size=2, normalized=False),
    )


def test_a_fixed_length_is_the_length_to_pad_to(tmp_path: Path, draft: Manifest) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(TOKENIZER))
    steps = TextPreprocess(tokenizer=str(file), max_length=16, padding="longest")
    found = interface(tmp_path / "b", draft, built(TEXTS.replace("N,L]", "1,12]")), preprocess=steps)
    first = found.inputs[0]
    assert isinstance(first, TokenInput)
    assert (first.max_length, first.padding) == (12, "max_length")


def test_what_is_known_already_is_kept_and_gets_its_labels(tmp_path: Path, draft: Manifest) -> None:
    known = Interface(
        inputs=(PixelInput(name="x", channels=("RGB",), height=8, width=8, steps=STEPS),),
        outputs=(ClassesOutput(name="y", count=2, classes=3),),
    )
    found = interface(tmp_path / "b", draft, built(PICTURES), ("a", "b", "c"), interface=known)
    assert found.inputs == known.inputs
    assert found.outputs == (ClassesOutput(name="y", count=2, classes=3, labels="labels.txt"),)


def test_a_file_that_only_the_interface_names_must_be_listed(tmp_path: Path, draft: Manifest) -> None:
    interface(tmp_path / "b", draft, built(PICTURES), ("a", "b", "c", "d"))
    file = tmp_path / "b" / "manifest.json"
    file.write_text(
        file.read_text().replace('"labels": "labels.txt",\n        "name"', '"labels": "../x",\n        "name"')
    )
    with pytest.raises(ValidationError, match=r"names \.\./x, but lists no checksum"):
        read_bundle(tmp_path / "b")


def test_an_unknown_kind_is_an_error(tmp_path: Path, draft: Manifest) -> None:
    interface(tmp_path / "b", draft, built(PICTURES))
    file = tmp_path / "b" / "manifest.json"
    file.write_text(file.read_text().replace('"kind": "logits"', '"kind": "guesses"'))
    with pytest.raises(ConfigError, match="guesses"):
        read_bundle(tmp_path / "b")


def test_a_manifest_without_an_interface_still_reads(tmp_path: Path, draft: Manifest) -> None:
    interface(tmp_path / "b", draft, built(PICTURES))
    file = tmp_path / "b" / "manifest.json"
    table = json.loads(file.read_text())
    del table["interface"]
    file.write_text(json.dumps(table))
    assert read_bundle(tmp_path / "b").manifest.interface == Interface()
