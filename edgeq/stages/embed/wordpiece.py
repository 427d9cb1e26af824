"""BERT's tokenizer (WordPiece), as far as generated code knows it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edgeq.escape import Foreign
from edgeq.stages.embed.characters import Characters, Settings, normalize, read_characters

__all__ = ["WordPiece", "read_wordpiece"]

_MOST_LETTERS = 1000
"""Of a word that is looked up: generated code has room for one."""


@dataclass(frozen=True)
class WordPiece:
    """A tokenizer whose code is generated.

    ``vocabulary`` are the tokens by id; ``prefix`` begins those that continue a word. A word of more than ``letters``
    letters is ``unknown``. ``before`` and ``behind`` are the ids around a text. ``special`` are tokens that a text may
    hold as they are; ``normalized`` those that are looked for after normalization, as they read then.
    """

    vocabulary: tuple[str, ...]
    prefix: Foreign
    unknown: int
    letters: int
    before: tuple[int, ...]
    behind: tuple[int, ...]
    special: tuple[tuple[Foreign, int], ...]
    normalized: tuple[tuple[Foreign, int], ...]
    settings: Settings

    @cached_property
    def file(self) -> bytes:
        """UTF-8 text, a token per line, by id."""
        return "".join(f"{token}\n" for token in self.vocabulary).encode()

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest token."""
        return max(len(token.encode()) for token in self.vocabulary)

    @cached_property
    def characters(self) -> Characters:
        letters = {letter for token in self.vocabulary for letter in token}
        return read_characters(self.settings, letters.union(*(text for text, _ in self.normalized)))


def read_wordpiece(path: Path) -> WordPiece | None:
    """What a ``tokenizer.json`` says; None if it asks for anything that generated code does not do."""
    try:
        tokenizer = _read(json.loads(path.read_text(encoding="utf-8")))
        return tokenizer if tokenizer.file else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError):
        return None


def _read(file: dict[str, Any]) -> WordPiece:
    """Raises ValueError and its like for another tokenizer."""
    model = file["model"]
    _want(model.get("type", "WordPiece") == "WordPiece")
    _want(file["normalizer"]["type"] == "BertNormalizer" and file["pre_tokenizer"]["type"] == "BertPreTokenizer")
    ids: dict[str, int] = model["vocab"]
    tokens = tuple(sorted(ids, key=lambda token: ids[token]))
    _want([ids[token] for token in tokens] == list(range(len(tokens))))
    _want(not any("\n" in token or "\r" in token for token in tokens))
    letters = int(model.get("max_input_chars_per_word", 100))
    _want(0 < letters <= _MOST_LETTERS)
    settings = _settings(file["normalizer"])
    added = [one for one in file.get("added_tokens") or () if one["content"]]
    _want(not any(one.get("single_word") for one in added))  # lstrip and rstrip take spaces, which are no tokens anyway
    _want(not any("\0" in one["content"] for one in added))
    before, behind = _around(file.get("post_processor"))
    return WordPiece(
        vocabulary=tokens,
        prefix=Foreign(model.get("continuing_subword_prefix", "##")),
        unknown=ids[model.get("unk_token", "[UNK]")],
        letters=letters,
        before=before,
        behind=behind,
        special=_special((str(one["content"]), one["id"]) for one in added if not one.get("normalized")),
        normalized=_special((normalize(one["content"], settings), one["id"]) for one in added if one.get("normalized")),
        settings=settings,
    )


def _want(condition: bool) -> None:
    if not condition:
        raise ValueError


def _settings(normalizer: dict[str, Any]) -> Settings:
    lowercase, accents = bool(normalizer["lowercase"]), normalizer.get("strip_accents")
    return Settings(
        clean=bool(normalizer["clean_text"]),
        chinese=bool(normalizer["handle_chinese_chars"]),
        accents=lowercase if accents is None else bool(accents),
        lowercase=lowercase,
    )


def _special(tokens: Any) -> tuple[tuple[Foreign, int], ...]:
    """The longest first: where several begin at one place, that one is meant."""
    found = {text: _id(number) for text, number in tokens if text}
    return tuple((Foreign(text), found[text]) for text in sorted(found, key=lambda text: (-len(text.encode()), text)))


def _id(number: Any) -> int:
    _want(isinstance(number, int) and 0 <= number < 1 << 31)
    return int(number)


def _around(processor: dict[str, Any] | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids before and behind a text."""
    if processor is None:
        return (), ()
    if processor["type"] in ("BertProcessing", "RobertaProcessing"):
        return (_id(processor["cls"][1]),), (_id(processor["sep"][1]),)
    _want(processor["type"] == "TemplateProcessing")
    parts, named = processor["single"], processor["special_tokens"]
    _want(not any(kind["type_id"] for part in parts for kind in part.values()))
    _want(sum("Sequence" in part for part in parts) == 1)
    at = next(i for i, part in enumerate(parts) if "Sequence" in part)
    before, behind = (
        tuple(_id(number) for part in some for number in named[part["SpecialToken"]["id"]]["ids"])
        for some in (parts[:at], parts[at + 1 :])
    )
    return before, behind
