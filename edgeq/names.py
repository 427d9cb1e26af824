"""Names of classes that a user gives, where the source brings none."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from edgeq.errors import ConfigError

__all__ = ["read_names"]

_MOST_BYTES = 1 << 24


def read_names(names: Sequence[str] | str | os.PathLike[str]) -> tuple[str, ...]:
    """A list as it is, or the lines of a text file (UTF-8): line ``n`` names class ``n``, from 0.

    Raises:
        ConfigError: the file cannot be read, is no text, or a name is missing, or is not one line.
    """
    if not isinstance(names, (str, os.PathLike)):
        found = tuple(str(name).strip() for name in names)
        where = None
    else:
        path = Path(names)
        where = str(path)
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise ConfigError("the file with the names of classes is larger than 16 MB", where=where)
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
            raise ConfigError(
                f"the names of classes cannot be read: {reason}", where=where, remedy="write one name a line"
            ) from None
        found = tuple(line.strip() for line in text.rstrip().split("\n"))
    broken = next((number for number, name in enumerate(found) if not name or len(name.splitlines()) > 1), None)
    if broken is not None or not found:
        raise ConfigError(
            f"class {broken or 0} has no name of one line",
            where=where,
            remedy="write one name a line, none of them empty",
        )
    return found
