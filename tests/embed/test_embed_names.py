"""Identifiers in each language, and texts of strangers inside generated files."""

from __future__ import annotations

import ast
import json
import re

import pytest
from embed_models import HOSTILE

from edgeq import escape
from edgeq.stages.embed.names import (
    KOTLIN,
    PYTHON,
    SWIFT,
    TYPESCRIPT,
    C,
    Language,
    camel,
    constant,
    pascal,
    snake,
    words,
)

LANGUAGES = (C, KOTLIN, PYTHON, SWIFT, TYPESCRIPT)


def test_words_of_a_name() -> None:
    assert words("lastHiddenState.1") == ("last", "hidden", "state", "1")
    assert words("Café__ж") == ("cafe",)
    parts = words("input_ids")
    assert (camel(parts), pascal(parts), snake(parts), constant(parts)) == (
        "inputIds",
        "InputIds",
        "input_ids",
        "INPUT_IDS",
    )


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
@pytest.mark.parametrize("case", [camel, pascal, snake, constant])
def test_identifiers_are_valid_and_unique_and_no_keywords(language: Language, case: object) -> None:
    names = [*HOSTILE, *sorted(language.keywords), "a.b", "a_b", "a b", ""]
    found = language.identifiers(names, case, "input", reserved=("session",))  # type: ignore[arg-type]
    assert len(found) == len(names) == len(set(found))
    assert all(re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,60}", identifier) for identifier in found)
    assert not set(found) & {*language.keywords, "session"}


def test_a_name_stays_what_it_is_where_it_can() -> None:
    assert KOTLIN.identifiers(["pixel_values", "class", "0", "class"], camel, "input") == (
        "pixelValues",
        "classInput",
        "input0",
        "classInput2",
    )


def test_python_knows_its_own_keywords() -> None:
    import keyword

    assert set(keyword.kwlist) | set(keyword.softkwlist) - {"_"} <= PYTHON.keywords


# -- escapes, each read back by a parser of the language where there is one here


@pytest.mark.parametrize("text", HOSTILE)
def test_escaped_texts_are_read_back(text: str) -> None:
    assert ast.literal_eval(escape.python_string(text)) == text
    assert json.loads(escape.javascript_string(text)) == text
    octal = escape.c_string(text)
    assert ast.literal_eval(f"b{octal}") == text.encode()  # Python's bytes know C's octal escapes
    for literal in (escape.kotlin_string(text), escape.swift_string(text), octal, escape.python_string(text)):
        assert literal.isascii()
        assert literal.isprintable()


def test_a_kotlin_string_is_only_text() -> None:
    assert escape.kotlin_string('a"$x\\\n é 😀') == '"a\\"\\$x\\\\\\u000a \\u00e9 \\ud83d\\ude00"'
    assert escape.swift_string('\\(x)"\n😀') == '"\\\\(x)\\"\\u{A}\\u{1F600}"'
    assert escape.c_string("%s??/\x011é") == '"%s\\077\\077/\\0011\\303\\251"'


@pytest.mark.parametrize("text", HOSTILE)
def test_comments_and_tables_end_where_they_should(text: str) -> None:
    comment = escape.comment(text)
    assert not re.search(r"[*/\"'`\\<>\n\u2028$@{}]|--", comment)
    assert all(char.isprintable() for char in comment)
    assert "\n" not in escape.plain(text)
    assert "<" not in escape.xml_text(text)
