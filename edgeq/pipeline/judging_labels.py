"""Labels for what is measured: classes of a classifier's samples, boxes of a detector's pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgeq.box_metrics import Boxes
from edgeq.errors import CalibrationError
from edgeq.geometry import framed, seen
from edgeq.interface import BoxClassesOutput, BoxesOutput, Interface
from edgeq.recipe import ImagePreprocess, Preprocess
from edgeq.stages.calibrate.feeds import Feed
from edgeq.stages.run.box_labels import Part, load_box_labels
from edgeq.stages.run.labels import load_labels

__all__ = ["Judged", "read_labels"]


@dataclass(frozen=True)
class Judged:
    """For each sample the classes that count as right, or the boxes that should be found; None: not said."""

    classes: Sequence[Sequence[int]] | None = None
    boxes: Sequence[Boxes] | None = None


def read_labels(
    path: str | os.PathLike[str] | None,
    feed: Feed,
    interface: Interface,
    *,
    names: Sequence[str],
    preprocess: Preprocess | None,
) -> Judged:
    """The labels of a feed's samples, in their order.

    Args:
        path: The file or folder; None: there are none.
        feed: What is measured on.
        interface: What the package takes and gives.
        names: Of the classes.
        preprocess: What pictures go through, in the package or before it.

    Raises:
        CalibrationError: they cannot be read, or do not fit.
    """
    if path is None:
        return Judged()
    boxes = interface.boxes
    numbers = next((entry for entry in interface.outputs if isinstance(entry, BoxClassesOutput)), None)
    if boxes is None or numbers is None:
        return Judged(classes=load_labels(path, feed.item_names))
    if not isinstance(preprocess, ImagePreprocess):
        raise CalibrationError(
            "labels of boxes belong to pictures, and the data are none",
            where=feed.description,
            remedy="give a folder of pictures, and a recipe that says how they are prepared",
        )
    parts = _parts(boxes, preprocess, interface.pixels.size if interface.pixels is not None else None)
    return Judged(boxes=load_box_labels(path, feed.item_names, names, numbers.classes, parts))


def _parts(
    boxes: BoxesOutput, steps: ImagePreprocess, frame: tuple[int, int] | None
) -> Callable[[tuple[int, int]], list[Part]]:
    """What is seen of a picture, step by step: cut to the frame, then, if boxes are in parts of the input, by steps."""

    def parts(size: tuple[int, int]) -> list[Part]:
        found = [framed(size, frame)] if frame is not None else []
        return [*found, seen(steps, frame or size)] if boxes.of == "input" else found

    return parts
