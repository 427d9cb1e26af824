"""What an app does with a model: a picture or texts go in, classes, boxes or an embedding come out."""

from __future__ import annotations

from dataclasses import dataclass

from edgeq.box_metrics import BOX_TOLERANCE
from edgeq.bundle import GraphEntry, Manifest, Samples
from edgeq.interface import (
    BoxClassesOutput,
    BoxCountOutput,
    BoxesOutput,
    BoxScoresOutput,
    ClassesOutput,
    EmbeddingOutput,
    ImageInput,
    LogitsOutput,
    Output,
    PixelInput,
    ProbabilitiesOutput,
    TokenEmbeddingsOutput,
    TokenInput,
)

__all__ = ["Boxes", "Meaning", "pictures_at_once", "read_meaning"]


@dataclass(frozen=True)
class Boxes:
    """The outputs of a detector that are read together."""

    boxes: BoxesOutput
    scores: BoxScoresOutput
    classes: BoxClassesOutput
    count: BoxCountOutput

    @property
    def names(self) -> tuple[str, str, str, str]:
        """Of the outputs: boxes, scores, classes, count."""
        return self.boxes.name, self.scores.name, self.classes.name, self.count.name

    def least_agreement(self, graph: GraphEntry, samples: Samples | None) -> float | None:
        """Percent that a test of the samples has to reach with ``graph``; None where they tell nothing of boxes."""
        recorded = graph.box_agreement.get(self.boxes.name)
        if recorded is None or samples is None or not set(self.names) <= set(samples.outputs):
            return None
        return recorded - BOX_TOLERANCE

    @property
    def of_input(self) -> bool:
        """Whether an app has to map them from what the model sees of a picture to the picture."""
        return self.boxes.of == "input"


@dataclass(frozen=True)
class Meaning:
    """The inputs and outputs that generated code knows how to fill and to read; None and empty: it does not.

    ``picture`` is the only input, or ``tokens`` are all inputs. ``scores`` are those of all classes, or of the
    ``classes`` that the graph chose itself. ``boxes`` are what a detector found. ``embedding`` is a vector per
    picture or text, or one per token.
    """

    picture: PixelInput | ImageInput | None = None
    tokens: tuple[TokenInput, ...] = ()
    scores: LogitsOutput | ProbabilitiesOutput | None = None
    classes: ClassesOutput | None = None
    boxes: Boxes | None = None
    embedding: EmbeddingOutput | TokenEmbeddingsOutput | None = None

    @property
    def readable(self) -> bool:
        """Whether what comes out is known as well as what goes in."""
        known = self.scores or self.embedding or self.boxes
        return bool(known and (self.picture or self.tokens))

    @property
    def detects(self) -> bool:
        """Whether generated code finds boxes in pictures: an app cannot map them where the graph resizes by itself."""
        if self.boxes is None or self.picture is None:
            return False
        return isinstance(self.picture, ImageInput) or not self.boxes.of_input

    @property
    def maps_boxes(self) -> bool:
        """Whether generated code maps them to the picture."""
        return self.detects and self.boxes is not None and self.boxes.of_input

    def sqnr_counts(self, output: str) -> bool:
        """Whether a ratio to the float model's numbers tells how close an output is.

        It does not for boxes: two that trade places are as right as before.
        """
        return self.boxes is None or output not in self.boxes.names


def read_meaning(manifest: Manifest) -> Meaning:
    """What the entries of a manifest say together.

    A picture that the model takes only together with others is none: generated code prepares one at a time.
    """
    inputs, outputs = manifest.interface.inputs, manifest.interface.outputs
    pictures = [entry for entry in inputs if isinstance(entry, (PixelInput, ImageInput))]
    tokens = tuple(entry for entry in inputs if isinstance(entry, TokenInput))
    scores = next((entry for entry in outputs if isinstance(entry, (LogitsOutput, ProbabilitiesOutput))), None)
    by_name = {entry.name: entry for entry in outputs if isinstance(entry, ClassesOutput)}
    of = scores.of if isinstance(scores, ProbabilitiesOutput) else None
    return Meaning(
        picture=pictures[0] if len(pictures) == len(inputs) == 1 == pictures_at_once(manifest) else None,
        tokens=tokens if tokens and len(tokens) == len(inputs) else (),
        scores=scores,
        classes=by_name.get(of or ""),
        boxes=_boxes(outputs),
        embedding=next((e for e in outputs if isinstance(e, (EmbeddingOutput, TokenEmbeddingsOutput))), None),
    )


def pictures_at_once(manifest: Manifest) -> int:
    """How many pictures the model takes at a time, if that is fixed; else 1."""
    pictures = [entry.name for entry in manifest.interface.inputs if isinstance(entry, (PixelInput, ImageInput))]
    shapes = [entry.shape for entry in manifest.inputs if entry.name in pictures]
    return next((shape[0] for shape in shapes if shape and isinstance(shape[0], int)), 1)


def _boxes(outputs: tuple[Output, ...]) -> Boxes | None:
    """The first boxes whose scores, classes and count are there."""
    by_name = {entry.name: entry for entry in outputs}
    for boxes in outputs:
        if isinstance(boxes, BoxesOutput):
            scores, classes, count = (by_name.get(name) for name in (boxes.scores, boxes.classes, boxes.count))
            if (
                isinstance(scores, BoxScoresOutput)
                and isinstance(classes, BoxClassesOutput)
                and isinstance(count, BoxCountOutput)
            ):
                return Boxes(boxes, scores, classes, count)
    return None
