from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeq.errors import CalibrationError
from edgeq.graph import TensorInfo
from edgeq.recipe import TextPreprocess
from edgeq.stages.calibrate.feeds import load_feed

tokenizers = pytest.importorskip("tokenizers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "on", "mat", "a", "dog", "barks", ",", ".", "!"]
TEXTS = ["The cat sat on the mat.", "A dog barks!", "zebra", "the " * 40]


def inputs(*names: str, length: int | str = "L", dtype: type = np.int64) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(name, np.dtype(dtype), ("N", length)) for name in names)


BERT = inputs("input_ids", "attention_mask", "token_type_ids")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A small BERT tokenizer, as a file."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    model.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    model.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    model.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    path = tmp_path / "tokenizer.json"
    model.save(str(path))
    return path


def write(folder: Path, records: list[Any]) -> Path:
    path = folder / "texts.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records))
    return path


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write(tmp_path, [{"text": text, "id": 1} for text in TEXTS])


@pytest.mark.parametrize("padding", ["max_length", "longest"])
@pytest.mark.parametrize("batch", [1, 3])
def test_ids_are_those_of_transformers(padding: Any, batch: int, tokenizer: Path, texts: Path) -> None:
    transformers = pytest.importorskip("transformers")
    oracle = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer), pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    preprocess = TextPreprocess(tokenizer=str(tokenizer), max_length=12, padding=padding)
    feed = load_feed(texts, BERT, preprocess=preprocess, batch=batch)
    chunks = [TEXTS[i : i + batch] for i in range(0, len(TEXTS), batch)]
    assert len(feed) == len(chunks)
    for sample, chunk in zip(feed, chunks, strict=True):
        expected = oracle(chunk, truncation=True, max_length=12, padding=padding, return_tensors="np")
        assert set(sample) == set(expected) == {"input_ids", "attention_mask", "token_type_ids"}
        for name, array in sample.items():
            assert array.dtype == np.int64
            np.testing.assert_array_equal(array, expected[name])


def test_a_fixed_length_wins_over_max_length(tokenizer: Path, texts: Path) -> None:
    feed = load_feed(
        texts,
        inputs("input_ids", "attention_mask", length=7, dtype=np.int32),
        preprocess=TextPreprocess(tokenizer=str(tokenizer), max_length=99, padding="longest"),
    )
    sample = next(iter(feed))
    assert sample["input_ids"].tolist() == [[2, 4, 5, 6, 7, 4, 3]]
    assert sample["input_ids"].dtype == np.int32
    assert next(iter(feed.samples(start=2)))["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0, 0]]


def test_position_ids_and_a_tokenizer_folder(tokenizer: Path, texts: Path) -> None:
    preprocess = TextPreprocess(tokenizer=str(tokenizer.parent), max_length=4)
    sample = next(iter(load_feed(texts, inputs("input_ids", "position_ids"), preprocess=preprocess)))
    assert sample["position_ids"].tolist() == [[0, 1, 2, 3]]


def test_fingerprint_follows_texts_length_and_tokenizer(tokenizer: Path, texts: Path) -> None:
    def fingerprint(length: int = 8) -> str:
        return load_feed(
            texts, BERT, preprocess=TextPreprocess(tokenizer=str(tokenizer), max_length=length)
        ).fingerprint

    first = fingerprint()
    assert fingerprint() == first
    assert fingerprint(9) != first
    texts.write_text(texts.read_text().replace("dog", "cat"))
    second = fingerprint()
    assert second != first
    tokenizer.write_text(tokenizer.read_text().replace("barks", "meows"))
    assert fingerprint() not in (first, second)


def test_a_recipes_tokenizer_is_relative_to_the_recipe(tokenizer: Path, texts: Path) -> None:
    (texts.parent / "own.toml").write_text(
        'summary = "x"\n[source]\nkind = "text"\npath = "texts.jsonl"\nlicence = "CC0"\n'
        '[preprocess]\nkind = "text"\ntokenizer = "tokenizer.json"\nmax_length = 6\n'
    )
    assert next(iter(load_feed(texts.parent / "own.toml", BERT)))["input_ids"].shape == (1, 6)


@pytest.mark.parametrize(
    ("records", "text"),
    [
        ([{"text": "a"}, '{"text": "b"'], r"(?s)the line is not valid JSON.*texts\.jsonl, line 2"),
        ([{"text": "a"}, "", {"body": "b", "id": 1}], r"(?s)no field 'text'; it has body, id.*line 3"),
        (["[1, 2]"], "no field 'text'; it has a list"),
        ([{"text": 5}], r"(?s)field 'text' holds a int, not a text.*line 1"),
        ([], "the text file is empty"),
    ],
)
def test_bad_text_files(records: list[Any], text: str, tokenizer: Path, tmp_path: Path) -> None:
    path = write(tmp_path, records)
    with pytest.raises(CalibrationError, match=text):
        load_feed(path, BERT, preprocess=TextPreprocess(tokenizer=str(tokenizer)))


def test_text_that_is_not_utf8(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes('{"text": "caf\u00e9"}'.encode("latin-1"))
    with pytest.raises(CalibrationError, match=r"(?s)not valid JSON.*x\.jsonl, line 1"):
        load_feed(tmp_path / "x.jsonl", BERT, preprocess=TextPreprocess(tokenizer=str(tokenizer)))


def test_another_field(tokenizer: Path, tmp_path: Path) -> None:
    path = write(tmp_path, [{"body": "a dog"}])
    feed = load_feed(path, BERT, preprocess=TextPreprocess(tokenizer=str(tokenizer), max_length=4), text_field="body")
    assert next(iter(feed))["input_ids"].tolist() == [[2, 9, 10, 3]]


def test_missing_and_broken_tokenizers(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"(?s)the tokenizer cannot be read: No such file.*nowhere\.json"):
        load_feed(texts, BERT, preprocess=TextPreprocess(tokenizer=str(tmp_path / "nowhere.json")))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(CalibrationError, match=r"(?s)the file is no tokenizer\.json.*bad\.json"):
        load_feed(texts, BERT, preprocess=TextPreprocess(tokenizer=str(tmp_path / "bad.json")))


def test_without_knowing_the_tokenizer(texts: Path) -> None:
    with pytest.raises(CalibrationError, match=r'(?s)how the model wants its text prepared.*kind = "text"'):
        load_feed(texts, BERT)


def test_without_the_package(tokenizer: Path, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *args: Any) -> Any:
        if name == "tokenizers":
            raise ImportError(name)
        return original(name, *args)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(CalibrationError, match=r"(?s)texts need the package tokenizers.*pip install 'edgeq\[text\]'"):
        load_feed(texts, BERT, preprocess=TextPreprocess(tokenizer=str(tokenizer)))


def test_inputs_that_a_tokenizer_does_not_give(tokenizer: Path, texts: Path) -> None:
    with pytest.raises(CalibrationError, match=r"the model also wants past: int64\[N, L\]"):
        load_feed(texts, (*BERT, *inputs("past")), preprocess=TextPreprocess(tokenizer=str(tokenizer)))
