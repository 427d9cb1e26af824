"""What every export route hands over: a float model, and what is known of where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from edgeq.recipe import Preprocess

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

__all__ = ["BoxLayout", "Licence", "Parity", "Pooling", "Source"]

Pooling = Literal["mean", "first", "max"]
"""The mean over the tokens of a text, the first token alone (``[CLS]``), or the largest number of all."""

BoxLayout = Literal["yolov5", "yolov8", "yolov10", "yolox", "detr", "rt-detr"]
"""How the outputs of a detector hold its boxes: see ``edgeq.stages.wrap.boxes``."""


@dataclass(frozen=True)
class Licence:
    """The licence of a part (``"code"``, ``"weights"``, ``"calibration data"``) and where that is said."""

    part: str
    licence: str
    origin: str


@dataclass(frozen=True)
class Parity:
    """How close the exported model is to its source on ``samples`` random or example inputs.

    ``max_abs_error`` and ``max_abs_output`` are over all outputs; ``sqnr_db`` is of the worst output.
    """

    reference: str
    samples: int
    max_abs_error: float
    max_abs_output: float
    sqnr_db: float


@dataclass(frozen=True)
class Source:
    """A float model and its provenance.

    ``task`` is ``"image-classification"``, ``"feature-extraction"``, ... or None if unknown.
    ``example_inputs`` are one batch of valid inputs by name. ``provenance`` is what a stranger
    needs to obtain the same model: route, origin, versions, sha256 of the weights.
    ``recipe`` names a bundled calibration recipe that suits the model, or is None. ``pooling`` is how a sentence
    encoder makes one vector of its tokens', None if that is not said; ``boxes`` how a detector's outputs hold its.
    """

    name: str
    model: ir.Model
    example_inputs: Mapping[str, np.ndarray]
    provenance: Mapping[str, str]
    task: str | None = None
    preprocess: Preprocess | None = None
    licences: tuple[Licence, ...] = ()
    parity: Parity | None = None
    recipe: str | None = None
    labels: tuple[str, ...] = field(default=())
    pooling: Pooling | None = None
    boxes: BoxLayout | None = None
