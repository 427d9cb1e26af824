"""What a packaged detector finds in a picture, computed here: what generated code has to find, too."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeq.bundle import Bundle
from edgeq.geometry import seen
from edgeq.graph import input_infos, load_model
from edgeq.interface import BoxesOutput, ImageInput
from edgeq.recipe import ImagePreprocess
from edgeq.runtime import open_session, session_options
from edgeq.stages.calibrate.images import ImageStore

__all__ = ["Row", "found_in", "outputs_of", "same"]

Row = tuple[int, str, float, float, float, float, float]
"""Class, name, score, left, top, right, bottom."""


def outputs_of(bundle: Bundle, picture: Path) -> list[np.ndarray]:
    """Boxes, scores, classes and count."""
    feed = ImageStore([picture], _steps(bundle), input_infos(load_model(bundle.model))).read([0])
    with open_session(bundle.model, session_options(threads=1)) as session:
        return list(session.run(None, feed)[:4])


def found_in(bundle: Bundle, picture: Path, *, unnamed: str = "{}") -> list[Row]:
    """Mapped to the picture by the recipe's own arithmetic; ``unnamed`` is the name of a class without a label."""
    from PIL import Image

    boxes, scores, classes, count = outputs_of(bundle, picture)
    entry = bundle.manifest.interface.outputs[0]
    assert isinstance(entry, BoxesOutput)
    with Image.open(picture) as image:
        part = seen(_steps(bundle), (image.height, image.width)) if entry.of == "input" else (0.0, 0.0, 1.0, 1.0)
    edges = boxes[0] * np.array([part[2] - part[0], part[3] - part[1]] * 2) + np.array(part[:2] * 2)
    labels = bundle.file("labels.txt").read_text(encoding="utf-8").splitlines()
    rows = zip(classes[0].tolist(), scores[0].tolist(), edges.clip(0, 1).tolist(), strict=True)
    return [
        (index, labels[index] if index < len(labels) else unnamed.format(index), score, *box)
        for index, score, box in list(rows)[: count[0]]
        if score >= entry.least_score and box[0] < box[2] and box[1] < box[3]
    ]


def same(found: list[Row], right: list[Row]) -> None:
    """Assert that both say the same, to the precision of 32-bit floats."""
    assert [row[:2] for row in found] == [row[:2] for row in right]
    np.testing.assert_allclose([row[2:] for row in found], [row[2:] for row in right], atol=2e-6)


def _steps(bundle: Bundle) -> ImagePreprocess:
    (entry,) = bundle.manifest.interface.inputs
    assert isinstance(entry, ImageInput)
    return entry.steps
