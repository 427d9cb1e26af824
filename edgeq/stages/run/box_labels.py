"""What pictures are said to hold, from COCO's ``annotations.json``, in the frame in which a package sees them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.box_metrics import Boxes
from edgeq.errors import CalibrationError

__all__ = ["Part", "load_box_labels"]

Part = tuple[float, float, float, float]
"""Left, top, right, bottom of what is seen of a picture, in parts of its width and height."""

_LEAST_SEEN = 0.25
"""What is cut off but for less than this part of its area is not asked for."""

_MOST_PIXELS = 1e9
"""No picture is as wide or high, and no box reaches as far."""


@dataclass(frozen=True)
class _Table:
    sizes: Mapping[str, tuple[float, float]]
    boxes: Mapping[str, list[tuple[list[float], int]]]
    categories: Mapping[int, str]


def load_box_labels(
    path: str | os.PathLike[str],
    files: Sequence[str | os.PathLike[str]],
    labels: Sequence[str],
    classes: int,
    parts: Callable[[tuple[int, int]], Sequence[Part]],
) -> tuple[Boxes, ...]:
    """What is in each of ``files``, in their order, in parts of what is seen of them.

    Args:
        path: A JSON file of COCO's form: ``images`` (``file_name``, ``height``, ``width``), ``annotations``
            (``image_id``, ``category_id``, ``bbox`` as left, top, width, height in pixels) and ``categories``. Crowds
            (``iscrowd``) are left out.
        files: The pictures; one that the file does not name is an error.
        labels: The model's names of classes, which are those of the categories, large letters or small; where some are
            not, categories count in the order of their ids, unless a name of theirs says otherwise.
        classes: How many classes the model has.
        parts: From a picture's ``(height, width)`` to what is seen of it, step by step.

    Raises:
        CalibrationError: unreadable, malformed, a picture that is not in it, categories that are no classes, or
            no boxes at all.
    """
    table = _read(Path(path))
    numbers = _numbers(table.categories, labels, classes, str(path))
    found = []
    for file in files:
        name = Path(file).name
        if name not in table.sizes:
            raise CalibrationError(
                f"the labels name no picture {name!r}", where=str(path), remedy="measure on the pictures that it names"
            )
        height, width = table.sizes[name]
        rows = table.boxes.get(name, [])
        boxes = np.array([box for box, _ in rows], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes /= [width, height, width, height]
        known = np.array([numbers[category] for _, category in rows], np.int64)
        for left, top, right, bottom in parts((int(height), int(width))):
            boxes = (boxes - [left, top, left, top]) / ([right - left, bottom - top] * 2)
        cut = np.clip(boxes, 0, 1)
        kept = _area(cut) >= _LEAST_SEEN * np.maximum(_area(boxes), 1e-12)
        found.append(Boxes(cut[kept], known[kept], np.ones(int(kept.sum()))))
    if not any(len(one.classes) for one in found):
        raise CalibrationError(
            f"the labels name nothing in {len(found)} pictures that could be found",
            where=str(path),
            remedy="give labels with boxes in these pictures, or none",
        )
    return tuple(found)


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=1))


def _read(path: Path) -> _Table:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        names = {image["id"]: Path(str(image["file_name"])).name for image in table["images"]}
        sizes = {names[i["id"]]: (float(i["height"]), float(i["width"])) for i in table["images"]}
        boxes: dict[str, list[tuple[list[float], int]]] = {}
        for row in table["annotations"]:
            if not row.get("iscrowd"):
                boxes.setdefault(names[row["image_id"]], []).append((_box(row["bbox"]), int(row["category_id"])))
        categories = {int(one["id"]): str(one["name"]) for one in table["categories"]}
        if any(category not in categories for rows in boxes.values() for _, category in rows):
            raise ValueError("an annotation has a category that is not listed")
        if len(sizes) != len(names) or not all(_is_size(*one) for one in sizes.values()):
            raise ValueError("two pictures of one name, or one without a size")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CalibrationError(
            f"the labels cannot be read: {type(error).__name__}: {str(error)[:200]}",
            where=str(path),
            remedy="a detector's labels are a JSON file of COCO's form, with images, annotations and categories",
        ) from None
    return _Table(sizes, boxes, categories)


def _is_size(height: float, width: float) -> bool:
    return 1 <= height <= _MOST_PIXELS and 1 <= width <= _MOST_PIXELS


def _box(value: Any) -> list[float]:
    box = [float(number) for number in value]
    if len(box) != 4 or not all(abs(number) <= _MOST_PIXELS for number in box):
        raise ValueError(f"{value!r} is no box of left, top, width, height")
    return box


def _numbers(categories: Mapping[int, str], labels: Sequence[str], classes: int, where: str) -> dict[int, int]:
    """The model's class of each category."""
    numbers = {name.casefold(): number for number, name in reversed([*enumerate(labels)])}
    named = {category: numbers[name.casefold()] for category, name in categories.items() if name.casefold() in numbers}
    if labels and len(named) == len(categories):
        return named
    counted = {category: number for number, category in enumerate(sorted(categories))}
    if len(categories) == classes and named.items() <= counted.items():
        return counted
    strangers = [name for category, name in categories.items() if category not in named] or ["none"]
    raise CalibrationError(
        f"the labels have {len(categories)} categories and the model {classes} classes, and their names differ: "
        f"{', '.join(strangers[:3])}",
        where=where,
        remedy="name the categories as the model's labels do",
    )
