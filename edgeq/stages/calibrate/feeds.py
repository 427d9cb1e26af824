"""Calibration feeds: samples by number, re-iterable and deterministic, whatever they come from."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from edgeq.errors import CalibrationError
from edgeq.graph import TensorInfo
from edgeq.recipe import ImagePreprocess, Preprocess, Recipe, TextPreprocess, load_recipe
from edgeq.resources import data_names
from edgeq.stages.calibrate.arrays import open_array_files
from edgeq.stages.calibrate.conform import conform, has_batch_axis
from edgeq.stages.calibrate.images import IMAGE_SUFFIXES, ImageStore, image_files
from edgeq.stages.calibrate.iterables import collect
from edgeq.stages.calibrate.texts import TextStore

__all__ = ["Feed", "Store", "check_data", "group_of", "load_feed", "raw_pictures", "split_feed"]

_log = logging.getLogger(__name__)


class Store(Protocol):
    """Where a feed's items are: each is one row (leading dimension 1) of every input, unless it says otherwise.

    ``names`` tells a user which item is meant. ``settings`` and ``digest(row)`` together identify
    what ``read`` gives: ``settings`` what was done to an item, ``digest`` its content.
    """

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def settings(self) -> str: ...

    def read(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """The items as one batch."""
        ...

    def digest(self, row: int) -> bytes: ...


@dataclass(frozen=True)
class Feed:
    """Samples ready for a model: iterating gives ``{input: array}``, the same ones every time.

    A sample is a batch of up to ``batch`` items of ``store``; ``rows`` are the items in use.
    """

    store: Store
    inputs: tuple[TensorInfo, ...]
    rows: tuple[int, ...]
    batch: int
    description: str
    licence: str
    groups: tuple[str, ...] = field(repr=False)
    """One per item of ``store``: items of one group show the same thing."""

    preprocess: Preprocess | None = None
    """What was done to the data, with an absolute path of the tokenizer; None for arrays."""

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self.samples()

    def samples(self, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """The samples from number ``start`` on.

        Raises:
            CalibrationError: an item is unreadable, or does not fit the model's inputs.
        """
        for index in range(start, len(self)):
            arrays = self.store.read(self.rows[index * self.batch : (index + 1) * self.batch])
            yield conform(arrays, self.inputs, self.sample_name(index))

    @property
    def is_batch_fixed(self) -> bool:
        """Whether the model takes batches of this one size only."""
        return has_batch_axis(self.inputs) and isinstance(self.inputs[0].shape[0], int)

    @property
    def item_names(self) -> tuple[str, ...]:
        """What each item is: a file, a line or its number."""
        return tuple(self.store.names[row] for row in self.rows)

    def sample_name(self, index: int) -> str:
        """What sample ``index`` is, for messages: a file, a line, or its number."""
        names = [self.store.names[row] for row in self.rows[index * self.batch : (index + 1) * self.batch]]
        return names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]}"

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the samples' contents and of what is done to them; reads all of them once."""
        digest = hashlib.sha256(f"{self.store.settings}:{self.batch}:{self.inputs}".encode())
        for row in self.rows:
            digest.update(self.store.digest(row))
        return digest.hexdigest()


@dataclass(frozen=True)
class _Wanted:
    """What the caller (or the recipe) asks of the data."""

    preprocess: Preprocess | None
    count: int | None
    seed: int
    batch: int
    text_field: str
    licence: str = "not stated: the user's own data"
    base: Path = Path()
    """Where a relative tokenizer path starts."""

    def resolved(self) -> Preprocess | None:
        """The preprocessing, with the tokenizer's path as seen from anywhere."""
        if isinstance(self.preprocess, TextPreprocess):
            return msgspec.structs.replace(self.preprocess, tokenizer=str(self.base / self.preprocess.tokenizer))
        return self.preprocess


def load_feed(
    data: Any,
    inputs: Sequence[TensorInfo],
    *,
    preprocess: Preprocess | None = None,
    count: int | None = None,
    seed: int | None = None,
    batch: int | None = None,
    text_field: str | None = None,
) -> Feed:
    """A feed of whatever a user has.

    ``data`` is a folder of pictures; a ``.npy`` or ``.npz`` file or a folder of them (leading axis:
    samples; in ``.npz``, arrays are named as the inputs); a ``.jsonl`` file of texts; a recipe (its
    name, ``.toml`` path or `Recipe`); or anything iterable over dicts, tuples or single arrays, such
    as a list or a torch DataLoader. Lists stay where they are; other iterables are read once, up to
    ``count`` items, into a temporary file.

    A recipe's own preprocessing takes precedence over ``preprocess``; the other arguments take
    precedence over the recipe. ``count`` items (default: all) are drawn with ``seed``; ``batch`` of
    them (default 1) form a sample, unless the model's batch dimension is fixed: then that many do,
    and a remainder is left out.

    Raises:
        CalibrationError: the data is missing, unreadable, or does not fit ``inputs``.
        ConfigError: the recipe is unknown or malformed.
    """
    if count is not None and count < 1:
        raise CalibrationError(f"{count} calibration samples were asked for", remedy="ask for at least 1")
    recipe = _as_recipe(data)
    if recipe is None:
        wanted = _Wanted(preprocess, count, seed or 0, batch or 1, text_field or "text")
    else:
        source = recipe.source
        wanted = _Wanted(
            recipe.preprocess or preprocess,
            count or source.count,
            source.seed if seed is None else seed,
            batch or source.batch,
            text_field or source.field,
            source.licence,
            Path(recipe.folder) if recipe.preprocess is not None else Path(),
        )
        data = recipe.path
    if isinstance(data, (str, os.PathLike)):
        return _from_path(Path(data), tuple(inputs), wanted, recipe)
    store = collect(data, inputs, wanted.count)
    return _feed(store, tuple(inputs), wanted, f"{len(store.names)} samples from a {type(data).__name__}")


def split_feed(feed: Feed, fraction: float = 0.2, minimum: int = 8) -> tuple[Feed, Feed]:
    """A calibration part and a held-out part of about ``fraction``, but ``minimum`` items where half of them suffice.

    Items of one group (crops of one photograph, see `group_of`) go to the same part, or the
    held-out part would flatter. Which groups are held out follows from their names alone. Where
    all items are of one group the last ones are held out, with a warning.

    Raises:
        CalibrationError: fewer than two samples.
    """
    total = len(feed.rows)
    most = total // 2 // feed.batch * feed.batch
    target = min(-(-max(round(total * fraction), minimum, 1) // feed.batch) * feed.batch, most)
    if target < 1:
        raise CalibrationError(
            f"{len(feed)} sample cannot be split into a calibration and a held-out part",
            where=feed.description,
            remedy="give more calibration data",
        )
    members: dict[str, list[int]] = {}
    for row in feed.rows:
        members.setdefault(feed.groups[row], []).append(row)
    held: set[int] = set()
    for group in sorted(members, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if len(held) < target and len(held) + len(members[group]) <= total // 2:
            held.update(members[group])
    if len(held) < (feed.batch if feed.is_batch_fixed else 1):
        _log.warning("all calibration samples are of one group: the held-out part resembles the calibration part")
        held = set(feed.rows[-target:])
    keep = tuple(row for row in feed.rows if row not in held)
    out = tuple(row for row in feed.rows if row in held)
    return _part(feed, keep, "calibration part"), _part(feed, out, "held-out part")


def group_of(name: str) -> str:
    """The stem of a file name up to a last ``-`` or ``__`` before digits: ``cat-2.jpg`` -> ``cat``."""
    stem = os.path.splitext(name.split("[")[0])[0]  # rows of one array file are one group  # noqa: PTH122
    return re.sub(r"(?<=[^/])(?:-|__)\d+$", "", stem)


def _part(feed: Feed, rows: tuple[int, ...], name: str) -> Feed:
    if feed.is_batch_fixed:
        rows = rows[: len(rows) // feed.batch * feed.batch]
    return replace(feed, rows=rows, description=f"{name}, {len(rows)} of {feed.description}")


def raw_pictures(feed: Feed, inputs: Sequence[TensorInfo], size: tuple[int, int] | None, channels: int | None) -> Feed:
    """The same pictures as a package takes them that prepares them itself.

    Args:
        feed: Of pictures, for the model inside.
        inputs: The package's own one input, of uint8 ``[batch, height, width, channels]``.
        size: The ``(height, width)`` of all pictures that it takes; None: any.
        channels: 3 or 4; None: either.

    Raises:
        CalibrationError: the samples are no pictures, or pictures of many sizes would have to form a batch.
    """
    if not isinstance(feed.store, ImageStore):
        raise CalibrationError(
            "what takes raw pixels can be measured on pictures only",
            where=feed.description,
            remedy="give a folder of pictures, or leave out --embed-preprocessing",
        )
    batch = feed.batch if size is not None or feed.is_batch_fixed else 1
    if batch > 1 and size is None:
        raise CalibrationError(
            f"the model takes batches of {batch}, and pictures of any size form none",
            remedy="give the size of the pictures, such as --embed-preprocessing 480x640, or --fix batch=1",
        )
    store = feed.store.raw(inputs[0].name, size, channels or 3)
    return replace(feed, store=store, inputs=tuple(inputs), batch=batch)


def check_data(data: Any) -> None:
    """Raise what ``load_feed`` would for data that is not there, before there is a model to feed.

    Raises:
        CalibrationError: the path does not exist, or holds nothing that is data.
        ConfigError: the recipe is unknown or malformed.
    """
    recipe = _as_recipe(data)
    if recipe is None and isinstance(data, (str, os.PathLike)):
        _kind(Path(data))


def _as_recipe(data: Any) -> Recipe | None:
    if isinstance(data, Recipe):
        return data
    if not isinstance(data, (str, os.PathLike)):
        return None
    path = Path(data)
    if path.suffix == ".toml":
        return load_recipe(path)
    if not path.exists() and path.name == str(data) and path.name in data_names("calibration"):
        return load_recipe(path.name)
    return None


def _from_path(path: Path, inputs: tuple[TensorInfo, ...], wanted: _Wanted, recipe: Recipe | None) -> Feed:
    kind = _kind(path) if recipe is None else recipe.source.kind
    if recipe is not None and not path.exists():
        raise CalibrationError(
            f"the data of calibration recipe {recipe.name!r} does not exist",
            where=str(path),
            remedy="correct `path` in the recipe; it is relative to the recipe's file",
        )
    # Descriptions go into reports: they name no folder of this machine.
    origin = f"recipe {recipe.name!r}" if recipe is not None else repr(path.name)
    store: Store
    if kind == "images":
        if not isinstance(wanted.preprocess, ImagePreprocess):
            raise _needs_preprocess(path, "pictures", "image")
        store = ImageStore(image_files(path), wanted.preprocess, inputs)
        return _feed(store, inputs, wanted, f"{len(store.names)} pictures of {origin}", group_of, str(path))
    if kind == "text":
        if not isinstance(wanted.preprocess, TextPreprocess):
            raise _needs_preprocess(path, "text", "text")
        store = TextStore(path, wanted.text_field, wanted.preprocess, wanted.base, inputs)
        return _feed(store, inputs, wanted, f"{len(store.names)} texts of {origin}", root=str(path))
    store = open_array_files(path, inputs)
    return _feed(
        store,
        inputs,
        wanted,
        f"{len(store.names)} rows of arrays of {origin}",
        group_of if path.is_dir() else str,
        str(path),
    )


def _needs_preprocess(path: Path, noun: str, kind: str) -> CalibrationError:
    return CalibrationError(
        f"it is not known how the model wants its {noun} prepared",
        where=str(path),
        remedy=f'write a recipe with a [preprocess] table of kind = "{kind}" and give its .toml as calibration data',
    )


def _kind(path: Path) -> str:
    """What a path that is no recipe holds, by its ending or its files' endings."""
    if not path.exists():
        raise CalibrationError(
            "the calibration data does not exist: neither a file, nor a folder, nor a bundled recipe",
            where=str(path),
            remedy=f"check the path, or use a bundled recipe: {', '.join(data_names('calibration'))}",
        )
    if path.is_file():
        kinds = {".npy": "arrays", ".npz": "arrays", ".jsonl": "text", **dict.fromkeys(IMAGE_SUFFIXES, "images")}
        if path.suffix.lower() in kinds:
            return kinds[path.suffix.lower()]
        raise CalibrationError(
            f"a file with the ending {path.suffix!r} is no calibration data",
            where=str(path),
            remedy="give a folder of pictures, .npy or .npz, a .jsonl of texts, or a recipe (.toml)",
        )
    try:
        suffixes = {entry.suffix.lower() for entry in path.iterdir() if not entry.name.startswith(".")}
    except OSError as error:
        raise CalibrationError(f"the folder cannot be read: {error.strerror}", where=str(path)) from None
    if not suffixes:
        raise CalibrationError("the folder is empty", where=str(path), remedy="put pictures or arrays into it")
    return "arrays" if suffixes & {".npy", ".npz"} and not suffixes & set(IMAGE_SUFFIXES) else "images"


def _feed(
    store: Store,
    inputs: tuple[TensorInfo, ...],
    wanted: _Wanted,
    description: str,
    group: Callable[[str], str] = str,
    root: str = "",
) -> Feed:
    """Draw the items, settle the batch, and describe the result."""
    # Without the folder, so that neither the draw nor the split depends on where the data lies.
    names = [name.removeprefix(root) for name in store.names]
    rows = list(range(len(names)))
    if wanted.count is not None and wanted.count < len(rows):
        # Ranked by hash: the same on every machine, and adding files changes few of the others.
        rank = {row: hashlib.sha256(f"{wanted.seed}:{names[row]}".encode()).digest() for row in rows}
        rows = sorted(sorted(rows, key=rank.__getitem__)[: wanted.count])
        description = f"{wanted.count} of {description}"
    elif wanted.count is not None and wanted.count > len(rows):
        _log.warning("%d calibration samples asked for, %d available: using all", wanted.count, len(rows))
        description += f" ({wanted.count} were asked for)"
    fixed = inputs[0].shape[0] if has_batch_axis(inputs) else 1
    batch = fixed if isinstance(fixed, int) else wanted.batch
    if isinstance(fixed, int):
        rows = rows[: len(rows) // batch * batch]
    if not rows:
        raise CalibrationError(
            f"{len(names)} calibration samples do not fill one batch of {batch}, the model's fixed batch size",
            where=description,
            remedy="give more samples, or export the model with a dynamic batch dimension",
        )
    groups = tuple(group(name) for name in names)
    used = wanted.resolved() if isinstance(store, (ImageStore, TextStore)) else None
    return Feed(store, inputs, tuple(rows), batch, description, wanted.licence, groups, used)
