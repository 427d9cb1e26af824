"""What an app would do around a model, put into its graph: pixels in, answers out. See ``docs/preprocessing.md``."""

from __future__ import annotations

from edgeq.stages.wrap.answers import answer_back
from edgeq.stages.wrap.back import Back
from edgeq.stages.wrap.boxes import BOXES, boxes_back
from edgeq.stages.wrap.join import Joined, join, make_room
from edgeq.stages.wrap.pixels import PIXELS, SEEN, pixel_front

__all__ = [
    "BOXES",
    "PIXELS",
    "SEEN",
    "Back",
    "Joined",
    "answer_back",
    "boxes_back",
    "join",
    "make_room",
    "pixel_front",
]
