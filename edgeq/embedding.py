"""What one may ask of an embedding project, and what is told of it once it is written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgeq.errors import ConfigError

__all__ = ["EmbedOptions", "Embedded", "SizeRow"]

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_PACKAGE = re.compile(r"[@A-Za-z][A-Za-z0-9_./-]*")


class EmbedOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the user may choose; None is what was chosen for the project before, else the platform's default.

    ``name`` is the class or module of the model, ``package`` what the platform calls a package. ``format`` is the
    model's: ``"ort"`` is converted while embedding. ``abis`` are Android's names of processors. ``bench`` adds what
    measures on the device.
    """

    name: str | None = None
    package: str | None = None
    format: Literal["onnx", "ort"] | None = None
    abis: tuple[str, ...] | None = None
    bench: bool | None = None

    def __post_init__(self) -> None:
        if self.format not in (None, "onnx", "ort"):
            raise ConfigError(f"there is no model format {self.format!r}", remedy="choose onnx or ort")
        for option, value, form in (("name", self.name, _NAME), ("package", self.package, _PACKAGE)):
            if value is not None and not form.fullmatch(value):
                raise ConfigError(
                    f"{value!r} cannot be used in generated code",
                    where=f"--{option}",
                    remedy="use ASCII letters and digits, with a letter in front",
                )

    def over(self, earlier: EmbedOptions) -> EmbedOptions:
        """These options, with ``earlier`` ones where there is None."""
        return msgspec.structs.replace(earlier, **_given(self))

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the options that are not None."""
        return tuple(_given(self))


def _given(options: EmbedOptions) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(options).items() if value is not None}


class SizeRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a part adds to an app, in bytes; None where that cannot be known here, with the reason in ``note``."""

    part: str
    bytes: int | None
    note: str = ""


@dataclass(frozen=True)
class Embedded:
    """What ``edgeq.embed`` returns: where the project is, and what became of each of its files.

    ``written`` are new or changed, ``unchanged`` were so already. ``kept`` are the user's: files that were edited
    after edgeq wrote them. Of those in ``conflicts`` the new version lies beside them (``.new``). ``removed`` are
    generated no longer. ``next`` says what to do with the project; ``notes`` what to know.
    """

    path: Path
    platform: str
    written: tuple[str, ...]
    unchanged: tuple[str, ...]
    kept: tuple[str, ...]
    conflicts: tuple[str, ...]
    removed: tuple[str, ...]
    sizes: tuple[SizeRow, ...] = ()
    notes: tuple[str, ...] = ()
    next: tuple[str, ...] = ()
