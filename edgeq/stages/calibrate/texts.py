"""Texts to token ids, with a ``tokenizer.json`` and the `tokenizers` package."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgeq.errors import CalibrationError
from edgeq.graph import TensorInfo
from edgeq.recipe import PAD_TOKENS, TextPreprocess

__all__ = ["TextStore", "read_texts"]


def read_texts(path: Path, field: str) -> tuple[tuple[int, str], ...]:
    """``(line number, text)`` of every line of a JSONL file; blank lines are passed over.

    Raises:
        CalibrationError: unreadable, not UTF-8, or a line that is no JSON object with a text in
            ``field``; the line's number is told.
    """
    texts: list[tuple[int, str]] = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise CalibrationError(f"the text file cannot be read: {error.strerror}", where=str(path)) from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:  # also bytes that are not UTF-8
            raise CalibrationError(
                f"the line is not valid JSON: {error}", where=where, remedy='write one {"text": "..."} per line'
            ) from None
        if not isinstance(record, dict) or field not in record:
            found = ", ".join(sorted(record)) if isinstance(record, dict) else f"a {type(record).__name__}"
            raise CalibrationError(
                f"the line has no field {field!r}; it has {found or 'none'}",
                where=where,
                remedy="name the field with `field` in the recipe's [source]",
            )
        if not isinstance(record[field], str):
            raise CalibrationError(
                f"field {field!r} holds a {type(record[field]).__name__}, not a text",
                where=where,
                remedy="give texts, or another field",
            )
        texts.append((number, record[field]))
    if not texts:
        raise CalibrationError("the text file is empty", where=str(path), remedy='write one {"text": "..."} per line')
    return tuple(texts)


class TextStore:
    """Texts for a model that takes token ids (see `edgeq.stages.calibrate.feeds.Store`).

    A model of fixed length gets its own length instead of ``max_length``.

    Raises:
        CalibrationError: the file, the tokenizer or the package `tokenizers` is missing or unusable,
            or the model has an input that a tokenizer does not give.
    """

    def __init__(
        self, path: Path, field: str, preprocess: TextPreprocess, base: Path, inputs: Sequence[TensorInfo]
    ) -> None:
        self._inputs = tuple(inputs)
        self._texts = read_texts(path, field)
        self.names = tuple(f"{path}, line {number}" for number, _ in self._texts)
        self._tokenizer, self._tokenizer_hash = _load_tokenizer(base / preprocess.tokenizer)
        known = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
        strange = [info.describe() for info in inputs if info.name not in known]
        if strange:
            raise CalibrationError(
                f"a tokenizer gives {', '.join(known)}, but the model also wants {'; '.join(strange)}",
                where=str(path),
                remedy="give arrays: .npz files, or a Python iterable of dicts",
            )
        self.settings = self._set_lengths(preprocess)

    def digest(self, row: int) -> bytes:
        return hashlib.sha256(self._texts[row][1].encode("utf-8", "surrogatepass")).digest()

    def read(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """Token ids and masks, integer ``[len(rows), length]``."""
        encodings = self._tokenizer.encode_batch([self._texts[row][1] for row in rows])
        columns = {
            "input_ids": [encoding.ids for encoding in encodings],
            "attention_mask": [encoding.attention_mask for encoding in encodings],
            "token_type_ids": [encoding.type_ids for encoding in encodings],
            "position_ids": [range(len(encoding.ids)) for encoding in encodings],
        }
        return {info.name: np.array(columns[info.name], np.int64) for info in self._inputs}

    def _set_lengths(self, preprocess: TextPreprocess) -> str:
        fixed = self._inputs[0].shape[1] if len(self._inputs[0].shape) == 2 else None
        length = fixed if isinstance(fixed, int) else preprocess.max_length
        padded = isinstance(fixed, int) or preprocess.padding == "max_length"
        padding = self._tokenizer.padding or {}
        token = padding.get("pad_token") or next(
            (token for token in PAD_TOKENS if self._tokenizer.token_to_id(token) is not None), ""
        )
        pad_id = padding.get("pad_id", self._tokenizer.token_to_id(token) if token else 0)
        try:
            self._tokenizer.enable_truncation(length)
        except Exception as error:  # tokenizers raises bare Exception
            raise CalibrationError(f"the tokenizer cannot cut texts to {length} tokens: {error}") from None
        self._tokenizer.enable_padding(
            direction="right",
            pad_id=pad_id,
            pad_type_id=padding.get("pad_type_id", 0),
            pad_token=token or "[PAD]",
            length=length if padded else None,
        )
        return msgspec.json.encode([self._tokenizer_hash, length, padded, pad_id]).decode()


def _load_tokenizer(path: Path) -> tuple[Any, str]:
    """The tokenizer (the package has no types) and the sha256 of its file."""
    try:
        from tokenizers import Tokenizer  # type: ignore[import-untyped]
    except ImportError:
        raise CalibrationError(
            "texts need the package tokenizers, which is not installed", remedy="pip install 'edgeq[text]'"
        ) from None
    if path.is_dir():
        path = path / "tokenizer.json"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CalibrationError(
            f"the tokenizer cannot be read: {error.strerror}",
            where=str(path),
            remedy="give the path of the model's tokenizer.json as `tokenizer` in the recipe's [preprocess]",
        ) from None
    try:
        return Tokenizer.from_buffer(content), hashlib.sha256(content).hexdigest()
    except Exception as error:  # tokenizers raises bare Exception
        raise CalibrationError(
            f"the file is no tokenizer.json: {str(error)[:200]}",
            where=str(path),
            remedy="export one with save_pretrained of a fast tokenizer",
        ) from None
