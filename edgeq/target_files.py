"""Target profiles as files: what they inherit, and the variant that is merged over them. See ``edgeq.target``."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from edgeq.errors import ConfigError
from edgeq.resources import data_folder

__all__ = ["profile_table"]


def profile_table(path: Path, variant: str | None) -> dict[str, Any]:
    """The file merged over all that it inherits from, with the tables of ``variant`` (None: its default) over both.

    Raises:
        ConfigError: unreadable TOML, a circle, or no such variant.
    """
    return _with_variant(_inherited(path), variant, path)


def _with_variant(table: dict[str, Any], asked: str | None, path: Path) -> dict[str, Any]:
    """The profile with the tables of one variant merged over it; one that was asked for is part of the name."""
    variants = table.get("variants", {})
    chosen = asked or table.get("variant")
    if chosen is None:
        return table
    if not isinstance(variants, dict) or chosen not in variants:
        there = f"its variants are {', '.join(variants)}" if variants else "it has none"
        raise ConfigError(
            f"target {path.stem!r} has no variant {chosen!r}: {there}",
            where=str(path),
            remedy="leave out what stands behind the @, or choose one of them",
        )
    if not isinstance(variants[chosen], dict):
        raise ConfigError(
            f"the variant {chosen!r} is no table", where=str(path), remedy=f"write [variants.{chosen}] and keys below"
        )
    table = _merge(table, {**variants[chosen], "variant": chosen})
    if asked is not None:
        table["name"] = f"{table.get('name')}@{asked}"
    return table


def _inherited(path: Path, heirs: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file merged over the one that it inherits from, and so on."""
    if path in heirs:
        raise ConfigError("the target profile inherits from itself", where=str(path), remedy="end the circle")
    table = _read(path)
    base = table.get("inherits")
    return table if base is None else _merge(_inherited(_base_path(path, str(base)), (*heirs, path)), table)


def _base_path(path: Path, base: str) -> Path:
    providers = path.parent if path.parent.name == "providers" else path.parent / "providers"
    beside = providers / f"{base}.toml"
    return beside if beside.exists() else data_folder("targets") / "providers" / f"{base}.toml"


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the target profile: {error.strerror}", where=str(path)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the target profile is not valid TOML: {error}", where=str(path)) from None


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Tables merge key by key, lists of tables and sources are appended, everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        elif key in ("capability", "fixed", "sources"):
            merged[key] = [*merged.get(key, []), *value]
        else:
            merged[key] = value
    return merged
