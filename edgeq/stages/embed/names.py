"""Identifiers from names of a model: valid and unique in the language, never one of its keywords."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from edgeq.errors import ConfigError

__all__ = [
    "KOTLIN",
    "PYTHON",
    "SWIFT",
    "TYPESCRIPT",
    "C",
    "Language",
    "camel",
    "constant",
    "pascal",
    "slug",
    "snake",
    "words",
]

_LONGEST = 48
"""Characters of an identifier; a model may have names of thousands."""

Case = Callable[[tuple[str, ...]], str]


def words(text: str) -> tuple[str, ...]:
    """The words of a name in lower-case ASCII: ``"lastHiddenState.1"`` is ``("last", "hidden", "state", "1")``."""
    ascii_only = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    humps = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", ascii_only)
    return tuple(re.findall(r"[a-z0-9]+", humps.lower()))


def camel(parts: tuple[str, ...]) -> str:
    """``lastHiddenState``."""
    return parts[0] + "".join(part.capitalize() for part in parts[1:]) if parts else ""


def pascal(parts: tuple[str, ...]) -> str:
    """``LastHiddenState``."""
    return "".join(part.capitalize() for part in parts)


def snake(parts: tuple[str, ...]) -> str:
    """``last_hidden_state``."""
    return "_".join(parts)


def constant(parts: tuple[str, ...]) -> str:
    """``LAST_HIDDEN_STATE``."""
    return "_".join(parts).upper()


def slug(name: str) -> str:
    """``last-hidden-state``, for names of packages and folders."""
    return "-".join(words(name))[:_LONGEST].rstrip("-") or "model"


@dataclass(frozen=True)
class Language:
    """A programming language: what no identifier may be called."""

    name: str
    keywords: frozenset[str]

    def identifiers(
        self, names: Iterable[str], case: Case, noun: str, reserved: Collection[str] = ()
    ) -> tuple[str, ...]:
        """One identifier per name, all different.

        ``noun`` (such as ``"input"``) goes in front of what begins with a digit or has no ASCII letter or digit,
        and after what would be a keyword or one of ``reserved``; further ones of the same name are numbered.
        """
        taken = {*self.keywords, *reserved}
        found: list[str] = []
        for name in names:
            parts = words(name)
            if not parts or parts[0][0].isdigit():
                parts = (noun, *parts)
            identifier = case(parts)[:_LONGEST].rstrip("_")
            if identifier in taken - set(found):
                identifier = case((*parts, noun))[-_LONGEST:].lstrip("_0123456789")
            number = 2
            unique = identifier
            while unique in taken:
                unique = f"{identifier}_{number}" if identifier[-1].isdigit() else f"{identifier}{number}"
                number += 1
            taken.add(unique)
            found.append(unique)
        return tuple(found)

    def class_name(self, model: str, chosen: str | None, reserved: Collection[str]) -> str:
        """The name of a model's class: the one that was chosen, else one that follows from the model's.

        Raises:
            ConfigError: the language or the generated code (``reserved``) uses the chosen name already.
        """
        if chosen is not None and chosen in {*self.keywords, *reserved}:
            raise ConfigError(
                f"{chosen!r} cannot be the name of the class: {self.name} or the generated code uses it already",
                where="--name",
                remedy="choose another name",
            )
        return chosen or self.identifiers([model], pascal, "model", reserved)[0]


def _keywords(text: str) -> frozenset[str]:
    return frozenset(text.split())


KOTLIN = Language(
    "Kotlin",
    # Hard, soft and modifier keywords, and those of Java, since Java code calls it, too.
    _keywords("""
    as break class continue do else false for fun if in interface is null object package return super this throw true
    try typealias typeof val var when while by catch constructor delegate dynamic field file finally get import init
    param property receiver set setparam value where abstract actual annotation companion const crossinline data enum
    expect external final infix inline inner internal lateinit noinline open operator out override private protected
    public reified sealed suspend tailrec vararg it abstract assert boolean byte case char default double extends float
    goto implements instanceof int long native new short static strictfp switch synchronized throws transient void
    volatile Any Array Boolean Byte Char Double Exception Float Int List Long Map Nothing Number Short String Unit
    """),
)

SWIFT = Language(
    "Swift",
    _keywords("""
    associatedtype class deinit enum extension fileprivate func import init inout internal let open operator private
    precedencegroup protocol public rethrows static struct subscript typealias var break case catch continue default
    defer do else fallthrough for guard if in repeat return throw switch where while Any as await catch false is nil
    self Self super throw throws true try actor async borrowing consuming each macro package some any nonisolated
    Type Protocol Array Bool Data Double Float Int Optional Result String URL Error
    """),
)

TYPESCRIPT = Language(
    "TypeScript",
    _keywords("""
    abstract any arguments as asserts async await bigint boolean break case catch class const constructor continue
    debugger declare default delete do else enum eval export extends false finally for from function get if implements
    import in infer instanceof interface is keyof let module namespace never new null number object of package private
    protected public readonly require return satisfies set static string super switch symbol this throw true try type
    typeof undefined unique unknown using var void while with yield Array Boolean Map Number Object Promise Set String
    Symbol prototype hasOwnProperty toString valueOf globalThis Infinity NaN
    """),
)

PYTHON = Language(
    "Python",
    _keywords("""
    False None True and as assert async await break class continue def del elif else except finally for from global if
    import in is lambda match case type nonlocal not or pass raise return self cls try while with yield bool bytes dict
    float int list object set str tuple np print len max min sum range zip id input map filter open
    """),
)

C = Language(
    "C",
    _keywords("""
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char char8_t char16_t char32_t class compl
    concept const consteval constexpr constinit const_cast continue co_await co_return co_yield decltype default delete
    do double dynamic_cast else enum explicit export extern false float for friend goto if inline int long mutable
    namespace new noexcept not not_eq nullptr operator or or_eq private protected public register reinterpret_cast
    requires restrict return short signed sizeof static static_assert static_cast struct switch template this
    thread_local throw true try typedef typeid typename typeof union unsigned using virtual void volatile wchar_t while
    xor xor_eq NULL EOF FILE errno main stdin stdout stderr
    """),
)
