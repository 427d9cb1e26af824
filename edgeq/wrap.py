"""What an app would do around the model and the graph does instead, as it is asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

from edgeq.errors import ConfigError
from edgeq.source import BoxLayout

__all__ = ["BoxChoice", "Wrap", "parse_wrap"]

_MOST_PIXELS = 100_000_000
"""Larger pictures are refused where they are read, too."""

_LAYOUTS: tuple[BoxLayout, ...] = get_args(BoxLayout)


@dataclass(frozen=True)
class BoxChoice:
    """How boxes are read from a detector's head, and which are given.

    ``layout`` None is what the source says. Boxes need a score above ``least_score``; of two of one class that
    overlap by more than ``most_overlap`` (intersection over union) the more probable one stays; ``most`` are given
    at most. The defaults are those of YOLOv5 and YOLOv8 (``conf``, ``iou``, ``max_det``), of which the last is 300.
    """

    layout: BoxLayout | None = None
    least_score: float = 0.25
    most_overlap: float = 0.45
    most: int = 100


@dataclass(frozen=True)
class Wrap:
    """What the graph does around the model (see ``docs/preprocessing.md``).

    ``pixels``: it takes raw pixels, of any size or of ``size`` (height, width), with ``channels`` (3 or 4; None:
    either). ``answers``: it gives probabilities and the most probable classes, finished embeddings, or boxes, as
    ``boxes`` says.
    """

    pixels: bool = False
    size: tuple[int, int] | None = None
    channels: int | None = None
    answers: bool = False
    boxes: BoxChoice = BoxChoice()

    def __bool__(self) -> bool:
        return self.pixels or self.answers


def parse_wrap(preprocessing: bool | str | tuple[int, ...], postprocessing: bool | str) -> Wrap:
    """What the two options ask for.

    Args:
        preprocessing: ``True`` or ``"any"`` for pictures of any size; ``"480x640"``, ``"480x640x4"`` or a tuple for
            height and width.
        postprocessing: ``True`` or ``"auto"`` for what the source's outputs mean; for a detector also its layout and
            which boxes are given, such as ``"yolov8,score=0.3,overlap=0.5,boxes=50"``.

    Raises:
        ConfigError: another form, or a number that is out of range.
    """
    answers = Wrap(answers=bool(postprocessing))
    if isinstance(postprocessing, str) and postprocessing != "auto":
        answers = replace(answers, boxes=_parse_boxes(postprocessing))
    if preprocessing is False or preprocessing is True or preprocessing == "any":
        return replace(answers, pixels=bool(preprocessing))
    parts = preprocessing.lower().split("x") if isinstance(preprocessing, str) else [str(n) for n in preprocessing]
    sizes = [int(part) for part in parts if part.isascii() and part.isdecimal() and len(part) < 10]
    fit = len(sizes) == len(parts) in (2, 3) and sizes[2:] in ([], [3], [4])
    if not fit or min(sizes) < 1 or sizes[0] * sizes[1] > _MOST_PIXELS:
        raise ConfigError(
            f"{preprocessing!r} is no size of pictures",
            remedy="write HEIGHTxWIDTH, such as --embed-preprocessing 480x640 (480x640x4 for RGBA), "
            "or nothing behind it for any size; if that was the source, put it in front of the option",
        )
    return replace(answers, pixels=True, size=(sizes[0], sizes[1]), channels=sizes[2] if len(sizes) == 3 else 3)


def _parse_boxes(text: str) -> BoxChoice:
    layout, numbers = None, {"score": 0.25, "overlap": 0.45, "boxes": 100.0}
    for part in text.split(","):
        key, _, value = part.strip().partition("=")
        named = next((name for name in _LAYOUTS if name == key.lower() and not value), None)
        if named is not None:
            layout = named
        elif key in numbers and (number := _number(value)) is not None:
            numbers[key] = number
        else:
            raise ConfigError(
                f"--embed-postprocessing {text!r}: {part.strip()!r} is neither a layout nor a number",
                remedy=f"the layouts of detectors are {', '.join(_LAYOUTS)}; the numbers score=0.25,overlap=0.45,"
                "boxes=100; if that was the source, put it in front of the option",
            )
    score, overlap, most = numbers["score"], numbers["overlap"], numbers["boxes"]
    if not (0 <= score < 1 and 0 <= overlap <= 1 and 1 <= most <= 10_000 and most == int(most)):
        raise ConfigError(
            f"--embed-postprocessing {text!r} is out of range",
            remedy="score is from 0 to below 1, overlap from 0 to 1, boxes a whole number from 1 to 10000",
        )
    return BoxChoice(layout, score, overlap, int(most))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
