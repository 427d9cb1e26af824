"""Which part of a picture a model sees, as its preprocessing says: sizes are ``(height, width)`` in pixels."""

from __future__ import annotations

from edgeq.recipe import ImagePreprocess

__all__ = ["framed", "origin", "resized", "seen"]


def resized(steps: ImagePreprocess, size: tuple[int, int]) -> tuple[int, int]:
    """A picture's size after the resize, before anything is cut or filled.

    A letterbox computes as Ultralytics' ``LetterBox`` does, in float64, which every language has: one ratio for both
    sides, their products rounded to the nearest pixel, halves to even, but no side to nothing.
    """
    height, width = size
    if steps.stretch:
        return steps.crop
    if steps.letterbox is not None:
        ratio = min(steps.crop[0] / height, steps.crop[1] / width)
        return max(1, round(height * ratio)), max(1, round(width * ratio))
    if steps.resize is None:
        return size
    short = min(size)
    return steps.resize * height // short, steps.resize * width // short


def origin(steps: ImagePreprocess, size: tuple[int, int]) -> tuple[int, int]:
    """``(top, left)`` of the model's input in the resized picture; negative: so many pixels are filled before it.

    The middle of an odd number of pixels is where Python's ``round`` has it for what is cut (as torchvision's
    ``CenterCrop``), and rounded down for what is filled (as Ultralytics' ``LetterBox``).
    """
    if steps.letterbox == "corner":
        return 0, 0
    spare = [have - want for have, want in zip(resized(steps, size), steps.crop, strict=True)]
    if steps.letterbox == "centre":
        return -(-spare[0] // 2), -(-spare[1] // 2)
    return round(spare[0] / 2), round(spare[1] / 2)


def seen(steps: ImagePreprocess, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """``(left, top, right, bottom)`` of what the model's input shows, in parts of the picture's width and height.

    0, 0, 1, 1 is the whole picture, which a stretch shows; a centre crop shows less, and a letterbox reaches beyond.
    What stands at ``x`` in parts of the input's width stands at ``left + x * (right - left)`` in parts of the
    picture's.
    """
    tall, wide = resized(steps, size)
    top, left = origin(steps, size)
    return left / wide, top / tall, (left + steps.crop[1]) / wide, (top + steps.crop[0]) / tall


def framed(size: tuple[int, int], frame: tuple[int, int]) -> tuple[float, float, float, float]:
    """``(left, top, right, bottom)`` of what is left of a picture that is scaled to cover ``frame`` and cut to it.

    In parts of its width and height; the middle stays, as in Pillow's ``ImageOps.fit``.
    """
    height, width = size
    wide = width * frame[0] / (height * frame[1])  # over 1: wider than the frame
    across, down = min(1.0, 1 / wide), min(1.0, wide)
    return (1 - across) / 2, (1 - down) / 2, (1 + across) / 2, (1 + down) / 2
