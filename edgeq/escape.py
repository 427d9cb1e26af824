"""A stranger's text inside files that are generated: each place has a way to write it that cannot be broken out of.

Names in a model are a stranger's text. `Foreign` marks them: templates refuse to print such a text unless one
of the functions below has made a plain ``str`` of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

__all__ = ["ESCAPES", "Foreign", "c_string", "comment", "javascript_string", "kotlin_string", "plain", "python_string"]
__all__ += ["swift_string", "xml_text"]


class Foreign(str):
    """A text that must not be printed as it is."""

    __slots__ = ()


def plain(text: str) -> str:
    """For Markdown: one line, without characters that could end a cell or start markup."""
    return re.sub(r"[`|<\\\[\]]", "_", " ".join(text.split()))


def comment(text: str) -> str:
    """For a comment in any language: one line of letters, digits and harmless signs; the others become ``_``."""
    return re.sub(r"--+", "-", re.sub(r"[^\w .,:;()=#%+-]", "_", " ".join(text.split())))


def kotlin_string(text: str) -> str:
    """A Kotlin (or Java) string literal, quotes included, in ASCII; ``$`` starts no template."""
    return _quoted(text, {'"': '\\"', "\\": "\\\\", "$": "\\$"}, _utf16)


def swift_string(text: str) -> str:
    """A Swift string literal, quotes included, in ASCII, without interpolation."""
    return _quoted(text, {'"': '\\"', "\\": "\\\\"}, lambda char: f"\\u{{{ord(char):X}}}")


def javascript_string(text: str) -> str:
    """A JavaScript, TypeScript or JSON string literal, quotes included, in ASCII, harmless inside ``<script>``, too."""
    return json.dumps(str(text)).replace("<", "\\u003c")


def python_string(text: str) -> str:
    """A Python string literal, quotes included, in ASCII."""
    return json.dumps(str(text), ensure_ascii=True) if text.isascii() and text.isprintable() else ascii(str(text))


def c_string(text: str) -> str:
    """A C or C++ string literal of the UTF-8 bytes, quotes included, in ASCII; no trigraph, no ``%`` of its own."""
    octal = "".join(
        f"\\{byte:03o}" if byte > 126 or byte < 32 or byte in b'"\\?' else chr(byte) for byte in _utf8(text)
    )
    return f'"{octal}"'


def xml_text(text: str) -> str:
    """For text and attributes of XML or HTML."""
    import markupsafe

    return str(markupsafe.escape("".join(char if char.isprintable() else "_" for char in text)))


def _quoted(text: str, named: dict[str, str], escape: Callable[[str], str]) -> str:
    return '"' + "".join(named.get(c) or (c if " " <= c <= "~" else escape(c)) for c in text) + '"'


def _utf16(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i] << 8 | units[i + 1]:04x}" for i in range(0, len(units), 2))


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


ESCAPES: dict[str, Callable[[str], str]] = {
    "kotlin": kotlin_string,
    "swift": swift_string,
    "javascript": javascript_string,
    "python": python_string,
    "c": c_string,
    "xml": xml_text,
    "plain": plain,
    "comment": comment,
}
"""Filters of the templates, by name."""
