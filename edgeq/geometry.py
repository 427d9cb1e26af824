"""Which part of a picture a model sees, as its preprocessing says: sizes are ``(height, width)`` in pixels."""

from __future__ import annotations

from edgeq.recipe import ImagePreprocess

__all__ = ["framed", "origin", "resized", "seen"]


def resized(steps: ImagePreprocess, size: tuple[int, int]) -> tuple[int, int]:
    """A picture's size after the resize, before anything is cut or filled.

    A letterbox is as long as ``crop`` on one side. The other side follows in proportion and is rounded to the nearest
    pixel, halves to even, but not to nothing. The proportion is exact (a quotient of two integers is right in float64,
    ties included), so that every language comes to the same size. Ultralytics' ``LetterBox`` rounds a ratio first: into
    640x640 it gives the same for all pictures up to 4000x4000, into 416x416 for all but 57, which are ties.
    """
    height, width = size
    if steps.stretch:
        return steps.crop
    if steps.letterbox is not None:
        tall, wide = steps.crop
        if tall * width <= wide * height:
            return tall, max(1, round(tall * width / height))
        return max(1, round(wide * height / width)), wide
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
