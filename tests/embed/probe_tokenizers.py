"""What the package tokenizers does with each character: `python probe_tokenizers.py` writes characters.txt."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping

import edgeq.stages.embed.characters as characters

HANGUL = range(0xAC00, 0xD7A4)
"""Syllables, which generated code decomposes by arithmetic (Unicode 16.0, section 3.12)."""


def probe() -> str:
    """The text of the file."""
    import tokenizers
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    def normalizer(name: str) -> Callable[[str], str]:
        off = dict.fromkeys(("clean_text", "handle_chinese_chars", "strip_accents", "lowercase"), False)
        return BertNormalizer(**{**off, name: True}).normalize_str  # type: ignore[no-any-return]

    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    words = {p: [word for word, _ in BertPreTokenizer().pre_tokenize_str(f"a{chr(p)}b")] for p in points}
    stripped = changes(points, normalizer("strip_accents"))
    kinds = {
        "control": [p for p, text in changes(points, normalizer("clean_text")).items() if text == ""],
        "space": [p for p in points if words[p] == ["a", "b"]],
        "punctuation": [p for p in points if words[p] == ["a", chr(p), "b"]],
        "chinese": list(changes(points, normalizer("handle_chinese_chars"))),
        "mark": [p for p, text in stripped.items() if text == ""],
    }
    maps = {
        "decomposed": {p: text for p, text in stripped.items() if text and p not in HANGUL},
        "lower": changes(points, normalizer("lowercase")),
    }
    lines = [
        f"# What BertNormalizer and BertPreTokenizer of the package tokenizers {tokenizers.__version__} do with each",
        "# character, in hexadecimal; made by tests/embed/probe_tokenizers.py.",
        *(line for name, found in kinds.items() for line in wrapped(name, ranges(found))),
        *(line for name, found in maps.items() for line in wrapped(name, mapped(found))),
    ]
    return "\n".join(lines) + "\n"


def changes(points: list[int], function: Callable[[str], str]) -> dict[int, str]:
    found = {point: function(chr(point)) for point in points}
    return {point: text for point, text in found.items() if text != chr(point)}


def wrapped(name: str, items: list[str]) -> list[str]:
    return [f"{name} {line}" for line in textwrap.wrap(" ".join(items), 105, break_on_hyphens=False)]


def ranges(points: list[int]) -> list[str]:
    found: list[list[int]] = []
    for point in sorted(points):
        if found and found[-1][1] + 1 == point:
            found[-1][1] = point
        else:
            found.append([point, point])
    return [f"{first:x}" if first == last else f"{first:x}-{last:x}" for first, last in found]


def mapped(found: Mapping[int, str]) -> list[str]:
    return [f"{point:x}={'.'.join(f'{ord(char):x}' for char in text)}" for point, text in sorted(found.items())]


if __name__ == "__main__":
    characters.FILE.write_text(probe(), encoding="ascii")
