"""What an Android app does with a model, beyond tensors: it passes a bitmap and gets named classes or boxes."""

from __future__ import annotations

from dataclasses import dataclass

from edgeq.interface import ImageInput, LogitsOutput, PixelInput
from edgeq.recipe import ImagePreprocess
from edgeq.stages.embed.meaning import Boxes, read_meaning
from edgeq.stages.embed.platforms.android_code import Code, TensorView
from edgeq.stages.embed.project import Request
from edgeq.stages.embed.signature import Tensor

__all__ = ["BoxesView", "PictureView", "RankedView", "boxes_view", "picture_view", "ranked_view"]

_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0}
"""How far Pillow's filters reach (Resample.c)."""


@dataclass(frozen=True)
class PictureView:
    """The only input, if it is a picture.

    ``raw``: the graph does all steps itself. ``sizes`` are the arguments of ``run`` that choose dimensions, for a
    bitmap called ``bitmap``; ``shifts`` say where a pixel 0xAARRGGBB holds the channels, in the model's order.
    """

    tensor: TensorView
    steps: ImagePreprocess
    raw: bool
    channels: int
    sizes: tuple[tuple[str, str], ...]
    height: int | None = None
    width: int | None = None

    @property
    def array(self) -> str:
        return self.tensor.type.array

    @property
    def bytes(self) -> bool:
        return self.array == "ByteArray"

    @property
    def shifts(self) -> tuple[int, ...]:
        return (0, 8, 16) if self.steps.color == "BGR" else (16, 8, 0)

    @property
    def support(self) -> float | None:
        return _SUPPORT.get(self.steps.interpolation)

    @property
    def math(self) -> tuple[str, ...]:
        """What the code of the steps imports of kotlin.math."""
        if self.raw:
            return ()
        letterbox = self.steps.letterbox is not None
        names = {"min"} if self.steps.resize else set()
        names |= {"max"} if letterbox else set()
        names |= set() if self.steps.stretch else {"round"}
        names |= {"abs", "max", "min"} if self.support else set()
        return tuple(sorted(names | ({"PI", "sin"} if self.steps.interpolation == "lanczos" else set())))

    @property
    def mean(self) -> tuple[float, ...]:
        return self.steps.mean[: self.channels]

    @property
    def std(self) -> tuple[float, ...]:
        return self.steps.std[: self.channels]

    @property
    def imports(self) -> frozenset[str]:
        return frozenset({"android.graphics.Bitmap"})


@dataclass(frozen=True)
class RankedView:
    """The output that has a score per class.

    ``classes`` is their number in a row. ``probable``: the app sees probabilities, which softmax makes if the scores
    are logits. ``of`` is the output that holds the numbers of the classes, where the graph has chosen some.
    """

    tensor: TensorView
    classes: int
    probable: bool = False
    softmax: bool = False
    of: TensorView | None = None

    @property
    def imports(self) -> frozenset[str]:
        return frozenset({"kotlin.math.exp"} if self.softmax else ())


@dataclass(frozen=True)
class BoxesView:
    """The outputs that say what was found. ``detects``: the app gives a picture and sees boxes of it."""

    found: Boxes
    detects: bool
    boxes: TensorView
    scores: TensorView
    classes: TensorView
    count: TensorView

    @property
    def most(self) -> int:
        """Rows of each picture."""
        return self.found.boxes.most

    @property
    def least_score(self) -> float:
        return self.found.boxes.least_score

    @property
    def seen(self) -> bool:
        """Whether they are mapped to the picture by what the model saw of it."""
        return self.found.of_input

    @property
    def named(self) -> bool:
        return self.found.classes.labels is not None


def boxes_view(request: Request, code: Code) -> BoxesView | None:
    """None where the model finds no boxes, or they have other types than a detector of edgeq's gives."""
    meaning = read_meaning(request.bundle.manifest)
    found = meaning.boxes
    by_name = {str(view.name): view for view in code.outputs}
    if found is None or not set(found.names) <= by_name.keys():
        return None
    boxes, scores, classes, count = (by_name[name] for name in found.names)
    if [view.type.array for view in (boxes, scores, classes, count)] != ["FloatArray"] * 2 + ["LongArray"] * 2:
        return None
    return BoxesView(found, meaning.detects, boxes, scores, classes, count)


def picture_view(request: Request, code: Code) -> PictureView | None:
    """None where the input is no picture, or one whose tensor has a type that pictures are not written in."""
    entry = read_meaning(request.bundle.manifest).picture
    view = code.inputs[0] if len(code.inputs) == 1 else None
    if entry is None or view is None or view.type.array not in ("FloatArray", "ByteArray"):
        return None
    raw = isinstance(entry, PixelInput)
    if raw != (view.tensor.dtype == "uint8") and (raw or view.type.array == "ByteArray"):
        return None
    if isinstance(entry, PixelInput):
        last = view.tensor.shape[-1]
        channels = last if isinstance(last, int) else 3
        axes = ("1", "bitmap.height", "bitmap.width", "3")
        sizes = _chosen(view.tensor, code, axes)
        return PictureView(view, entry.steps, True, channels, sizes, entry.height, entry.width)
    channels = 1 if entry.steps.color == "L" else 3
    return PictureView(view, entry.steps, False, channels, _chosen(view.tensor, code, _axes(entry, channels)))


def _axes(entry: ImageInput, channels: int) -> tuple[str, ...]:
    height, width = map(str, entry.steps.crop)
    if entry.steps.layout == "NCHW":
        return ("1", str(channels), height, width)
    return ("1", height, width, str(channels))


def _chosen(tensor: Tensor, code: Code, axes: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """The argument of ``run`` for each dynamic dimension and the expression of its value."""
    by_name = {size.name: size.id for size in code.sizes}
    return tuple((by_name[dim], axes[axis]) for axis, dim in enumerate(tensor.shape) if isinstance(dim, str))


def ranked_view(request: Request, code: Code) -> RankedView | None:
    """The scores that the manifest tells of, else the output whose last axis fits the labels."""
    meaning = read_meaning(request.bundle.manifest)
    by_name = {str(view.name): view for view in code.outputs if view.type.array == "FloatArray"}
    if meaning.scores is not None and meaning.scores.name in by_name:
        of = next(
            (v for v in code.outputs if meaning.classes is not None and str(v.name) == meaning.classes.name), None
        )
        count = meaning.classes.count if meaning.classes is not None else meaning.scores.classes
        if of is None or of.type.array == "LongArray":
            view = by_name[meaning.scores.name]
            return RankedView(view, count, True, isinstance(meaning.scores, LogitsOutput), of)
    labelled = request.signature.labelled
    if labelled is not None and str(labelled.name) in by_name:
        return RankedView(by_name[str(labelled.name)], len(request.signature.labels))
    return None
