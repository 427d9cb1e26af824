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
        labels: The model's names of classes, which are those of the categories; where they are not, categories count
            in the order of their ids.
        classes: How many classes the model has.
        parts: From a picture's ``(height, width)`` to what is seen of it, step by step.

    Raises:
        CalibrationError: unreadable, malformed, a picture that is not in it, or categories that are no classes.
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
        if len(sizes) != len(names) or any(min(size) <= 0 for size in sizes.values()):
            raise ValueError("two pictures of one name, or one without a size")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CalibrationError(
            f"the labels cannot be read: {type(error).__name__}: {error}",
            where=str(path),
            remedy="a detector's labels are a JSON file of COCO's form, with images, annotations and categories",
        ) from None
    return _Table(sizes, boxes, categories)


def _box(value: Any) -> list[float]:
    box = [float(number) for number in value]
    if len(box) != 4 or not np.isfinite(box).all():
        raise ValueError(f"{value!r} is no box of left, top, width, height")
    return box


def _numbers(categories: Mapping[int, str], labels: Sequence[str], classes: int, where: str) -> dict[int, int]:
    """The model's class of each category."""
    if labels and set(categories.values()) <= set(labels):
        return {category: list(labels).index(name) for category, name in categories.items()}
    if len(categories) == classes:
        return {category: number for number, category in enumerate(sorted(categories))}
    strangers = [name for name in categories.values() if name not in labels] or ["none"]
    raise CalibrationError(
        f"the labels have {len(categories)} categories and the model {classes} classes, and their names differ: "
        f"{', '.join(strangers[:3])}",
        where=where,
        remedy="name the categories as the model's labels do",
    )
