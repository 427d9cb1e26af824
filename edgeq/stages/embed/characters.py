"""What BERT's tokenizer does with each character, as tables that are small enough for generated code.

Unicode's version differs between phones, compilers and Python, and the package tokenizers mixes three of them. Code
that asked its own system would split some texts in another way than the tokenizer that a model was trained with, so it
gets tables of what that one does (``characters.txt``).
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cache, cached_property
from pathlib import Path

__all__ = ["FILE", "Characters", "Kind", "Settings", "normalize", "read_characters"]

FILE = Path(__file__).with_name("characters.txt")

_JAMO, _SYLLABLES = range(0x1100, 0x1200), range(0xAC00, 0xD7A4)


class Kind(IntEnum):
    """What a character is; those in no table are letters."""

    LETTER = 0
    DROPPED = 1
    SPACE = 2
    PUNCTUATION = 3
    CHINESE = 4


@dataclass(frozen=True)
class Settings:
    """Those of BertNormalizer, in the order in which it applies them."""

    clean: bool
    chinese: bool
    accents: bool
    lowercase: bool


@dataclass(frozen=True)
class Characters:
    """Tables for one tokenizer, sorted by code point.

    ``kinds`` are ranges (first, last, kind). A letter becomes another one (``single``: ranges (first, last, to)), or
    several (``several``: (from, to)), of which each again has its kind. ``hangul``: syllables are decomposed, by
    arithmetic (Unicode 16.0, section 3.12).
    """

    kinds: tuple[tuple[int, int, Kind], ...]
    single: tuple[tuple[int, int, int], ...]
    several: tuple[tuple[int, tuple[int, ...]], ...]
    hangul: bool

    @property
    def longest(self) -> int:
        """The largest number of characters that one becomes."""
        return max([1, 3 * self.hangul, *(len(to) for _, to in self.several)])

    @cached_property
    def _starts(self) -> list[int]:
        return [first for first, _, _ in self.kinds]

    def kind(self, point: int) -> Kind:
        at = bisect_right(self._starts, point) - 1
        return self.kinds[at][2] if at >= 0 and point <= self.kinds[at][1] else Kind.LETTER


def read_characters(settings: Settings, letters: Iterable[str]) -> Characters:
    """The tables of a tokenizer whose vocabulary is written with ``letters``.

    What a letter becomes is left out where that changes no token: neither it nor all of what it becomes is in the
    vocabulary, and none of it ends a word, so that its word is unknown either way. Combining marks that are no accents
    and stand in another than their canonical order are not put into it.
    """
    known = {ord(letter) for letter in letters}
    found = Characters(_kinds(settings), (), (), settings.accents and any(p in known for p in _hangul()))
    ends = (Kind.SPACE, Kind.PUNCTUATION)
    changed = {
        point: to
        for point, to in _changed(settings).items()
        if point in known
        or known.issuperset(to)
        or found.kind(point) in ends
        or any(found.kind(part) in ends for part in to)
    }
    single: list[tuple[int, int, int]] = []
    for point, to in sorted(changed.items()):
        if len(to) != 1:
            continue
        if single and single[-1][1] + 1 == point and single[-1][2] == to[0]:
            single[-1] = (single[-1][0], point, to[0])
        else:
            single.append((point, point, to[0]))
    several = tuple((point, to) for point, to in sorted(changed.items()) if len(to) > 1)
    return Characters(found.kinds, tuple(single), several, found.hangul)


def normalize(text: str, settings: Settings) -> str:
    """A text as BertNormalizer leaves it, but for the canonical order of marks that are no accents."""
    kinds, changed = Characters(_kinds(settings), (), (), False), _changed(settings)
    found = []
    for char in text:
        kind = kinds.kind(ord(char))
        if kind == Kind.DROPPED:
            continue
        if kind == Kind.SPACE and settings.clean:
            char = " "
        to = "".join(map(chr, changed.get(ord(char), (ord(char),))))
        if settings.accents and ord(char) in _SYLLABLES:
            to = unicodedata.normalize("NFD", char)
        found.append(f" {to} " if kind == Kind.CHINESE else to)
    return "".join(found)


def _hangul() -> Iterable[int]:
    yield from _JAMO
    yield from _SYLLABLES


@cache
def _kinds(settings: Settings) -> tuple[tuple[int, int, Kind], ...]:
    table = _file()
    controls = table.ranges["control"] if settings.clean else []
    marks = table.ranges["mark"] if settings.accents else []
    spaces = [point for first, last in table.ranges["space"] for point in range(first, last + 1)]
    by_kind = {
        Kind.DROPPED: controls + marks,
        Kind.SPACE: [(p, p) for p in spaces if not _inside(p, controls)],  # a control is gone before anybody asks
        Kind.PUNCTUATION: table.ranges["punctuation"],
        Kind.CHINESE: table.ranges["chinese"] if settings.chinese else [],
    }
    found: list[tuple[int, int, Kind]] = []
    for first, last, kind in sorted((*range_, kind) for kind, ranges in by_kind.items() for range_ in ranges):
        if found and found[-1][1] + 1 == first and found[-1][2] == kind:
            found[-1] = (found[-1][0], last, kind)
        else:
            found.append((first, last, kind))
    return tuple(found)


def _inside(point: int, ranges: Iterable[tuple[int, int]]) -> bool:
    return any(first <= point <= last for first, last in ranges)


@cache
def _changed(settings: Settings) -> Mapping[int, tuple[int, ...]]:
    """What becomes of each character that is another one after stripping accents and lowering."""
    table = _file()
    stripped = table.maps["decomposed"] if settings.accents else {}
    lower = table.maps["lower"] if settings.lowercase else {}
    found = {}
    for point in sorted({*stripped, *lower}):
        to = tuple(part for whole in stripped.get(point, (point,)) for part in lower.get(whole, (whole,)))
        if to != (point,):
            found[point] = to
    return found


@dataclass(frozen=True)
class _Table:
    """``characters.txt``: ranges of each kind, and what characters become."""

    ranges: Mapping[str, list[tuple[int, int]]]
    maps: Mapping[str, dict[int, tuple[int, ...]]]


@cache
def _file() -> _Table:
    ranges: dict[str, list[tuple[int, int]]] = {}
    maps: dict[str, dict[int, tuple[int, ...]]] = {}
    for line in FILE.read_text(encoding="ascii").splitlines():
        if line.startswith("#"):
            continue
        name, *items = line.split()
        for item in items:
            left, _, right = item.partition("=")
            if right:
                maps.setdefault(name, {})[int(left, 16)] = tuple(int(part, 16) for part in right.split("."))
            else:
                first, _, last = left.partition("-")
                ranges.setdefault(name, []).append((int(first, 16), int(last or first, 16)))
    return _Table(ranges, maps)
