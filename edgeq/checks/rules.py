"""What a rule is: a name, a sentence, and a function that finds where a model breaks it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec

from edgeq.checks.view import View

__all__ = ["Finds", "Rule", "Violation"]

Finds = Callable[[View], Iterator[tuple[str, str]]]
"""Yields ``(node name, what is wrong)``; the name is empty for what concerns the whole graph."""


@dataclass(frozen=True)
class Rule:
    """``text`` says what a model must be; an ``error`` is refused or wrong there, a ``warning`` slow or untried."""

    name: str
    text: str
    find: Finds
    severity: Literal["error", "warning"] = "error"


class Violation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One place where a model breaks a rule; ``node`` is empty for the whole graph."""

    rule: str
    severity: Literal["error", "warning"]
    node: str
    text: str
