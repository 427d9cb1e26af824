"""What Ultralytics writes into the ONNX files that it exports: task, names of classes, the size of pictures.

Its YOLO models carry it as metadata, which other exporters of YOLO write, too, in part. The way from pictures to the
input is not in the file: it is Ultralytics' own (``ultralytics/data/augment.py``, LetterBox and classify_transforms).
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgeq.graph import TensorInfo
from edgeq.recipe import ImagePreprocess
from edgeq.source import BoxLayout

__all__ = ["Described", "read_metadata"]

_MOST_TEXT = 1 << 20
"""Longer texts than this are no names of classes."""

_MOST_SIDE = 8192
"""Pixels, of a side: a few bytes of a stranger's must not ask for gigabytes."""

_TASKS = {"detect": "object-detection", "classify": "image-classification"}


@dataclass(frozen=True)
class Described:
    """What the metadata say; None and empty: nothing."""

    task: str | None = None
    labels: tuple[str, ...] = ()
    boxes: BoxLayout | None = None
    preprocess: ImagePreprocess | None = None


def read_metadata(model: ir.Model, inputs: Sequence[TensorInfo]) -> Described:
    """What the metadata of a model say, as far as its outputs agree with them.

    Pictures get the size of its input ``[batch, 3, height, width]``; where that is not fixed, the one that it was
    exported for.
    """
    facts = model.metadata_props
    labels = _names(facts.get("names", ""))
    task = _TASKS.get(facts.get("task", ""))
    layout = _layout(model, len(labels), facts.get("end2end") == "True") if labels else None
    if "task" in facts and task != "object-detection":
        layout = None  # masks, key points and turned boxes have other heads
    shape = inputs[0].shape if len(inputs) == 1 and len(inputs[0].shape) == 4 else ()
    height, width = shape[2:] if shape else (None, None)
    fixed = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    size = fixed or _size(facts.get("imgsz", ""))
    ours = size is not None and task is not None and "Ultralytics" in facts.get("author", "")
    preprocess = _preprocess(task, size) if ours and size is not None else None
    return Described("object-detection" if layout else task, labels if task or layout else (), layout, preprocess)


def _preprocess(task: str | None, size: tuple[int, int]) -> ImagePreprocess:
    if task == "image-classification":
        return ImagePreprocess(crop=size, resize=min(size), interpolation="bilinear")
    return ImagePreprocess(crop=size, letterbox="centre", interpolation="bilinear")


def _layout(model: ir.Model, classes: int, finished: bool) -> BoxLayout | None:
    """The head whose shape the first output has."""
    shape = model.graph.outputs[0].shape
    if len(model.graph.outputs) != 1 or shape is None or len(shape) != 3:
        return None
    rows, columns = shape[1], shape[2]
    if columns == 6 and finished:
        return "yolov10"
    if rows == 4 + classes:
        return "yolov8"
    return "yolov5" if columns == 5 + classes else None


def _names(text: str) -> tuple[str, ...]:
    """``"{0: 'person', 1: 'car'}"`` or a list; empty if it is neither."""
    found = _literal(text)
    if isinstance(found, dict) and sorted(found, key=repr) == sorted(range(len(found)), key=repr):
        found = [found[number] for number in range(len(found))]
    named = isinstance(found, list) and all(isinstance(name, str) for name in found)
    return tuple(" ".join(name.split()) for name in found) if named and isinstance(found, list) else ()


def _size(text: str) -> tuple[int, int] | None:
    found = _literal(text)
    pair = isinstance(found, list) and len(found) == 2 and all(type(n) is int and 0 < n <= _MOST_SIDE for n in found)
    return (found[0], found[1]) if pair and isinstance(found, list) else None


def _literal(text: str) -> object:
    """A Python literal, which is how these texts are written; None for anything else. Nothing is executed."""
    if len(text) > _MOST_TEXT:
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None
