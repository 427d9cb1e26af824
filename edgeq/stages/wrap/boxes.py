"""A detector's head to boxes, as a piece of graph: decode, best class, leave out what overlaps, the best first.

The heads that are known, ``N`` candidates of ``C`` classes each:

========= ======================================================================================================
yolov5    ``[batch, N, 5 + C]``: centre x, centre y, width, height in pixels, objectness, a score per class, all
          within 0 to 1. YOLOv5 and v7, and YOLOX where it was exported with its decoding.
yolov8    ``[batch, 4 + C, N]``: centre x, centre y, width, height in pixels, a score per class. Ultralytics' v8, v9,
          11 and 12, also of others.
yolov10   ``[batch, N, 6]``: left, top, right, bottom in pixels, score, class; nothing overlaps any more.
yolox     ``[batch, N, 5 + C]`` as YOLOX exports it: offsets from cells of 8, 16 and 32 pixels and logarithms of sizes
          (``YOLOXHead.decode_outputs``), objectness, a score per class.
detr      ``[batch, N, C + 1]`` logits, the last of "nothing", and ``[batch, N, 4]``: centre x, centre y, width, height
          in parts of the picture (Carion et al. 2020, https://arxiv.org/abs/2005.12872). No two queries find the same.
rt-detr   the same without "nothing", the scores by sigmoid (Zhao et al. 2023, https://arxiv.org/abs/2304.08069).
========= ======================================================================================================

A candidate has its best class only. Of two boxes of one class that overlap by more than asked (intersection over
union) the more probable one stays, as in YOLO's own ``non_max_suppression``: boxes of other classes are moved out of
the way first, so that one NonMaxSuppression over all is enough.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgeq.errors import ConfigError
from edgeq.graph import TensorInfo
from edgeq.interface import BoxClassesOutput, BoxCountOutput, BoxesOutput, BoxScoresOutput, Output
from edgeq.source import BoxLayout
from edgeq.stages.wrap.back import Back
from edgeq.stages.wrap.snippet import Lines, parse_snippet
from edgeq.wrap import BoxChoice

__all__ = ["BOXES", "boxes_back"]

BOXES = "boxes"
"""What the output with the boxes is called, and the front part of the names of all added nodes."""

_APART = 4.0
"""How far boxes of neighbouring classes are moved apart, in pictures: none is that large, seen from its centre."""

_STRIDES = (8, 16, 32)
"""YOLOX's cells, in pixels."""

_REMEDY = "name the layout of its head, such as --embed-postprocessing yolov8; see docs/preprocessing.md"

_PIXELS = frozenset({"yolov5", "yolov8", "yolov10", "yolox"})
_OVERLAPPING = frozenset({"yolov5", "yolov8", "yolox"})
_PAIRED = frozenset({"detr", "rt-detr"})


def boxes_back(
    infos: Sequence[TensorInfo],
    layout: BoxLayout,
    choice: BoxChoice,
    *,
    size: tuple[int, int] | None,
    seen: tuple[float, float, float, float] | str | None,
    classes: int = 0,
    opset: int,
) -> Back:
    """The piece of graph behind a detector: ``boxes``, ``box_scores``, ``box_classes`` and ``box_count``.

    Args:
        infos: The model's outputs.
        layout: How they hold boxes.
        choice: Which boxes are given.
        size: ``(height, width)`` of the model's input; None: not known.
        seen: The part of the given picture that the model's input shows: left, top, right, bottom in parts of its
            width and height; or the name of a tensor that holds these four, float32, where it depends on the
            picture. None: that is not known here, and boxes are in parts of the model's input.
        classes: How many classes have names; 0: not known.
        opset: The model's.

    Raises:
        ConfigError: the outputs are not those of ``layout``, or their sizes are not fixed.
    """
    head = _find_head(infos, layout, classes)
    if classes and head.classes != classes:
        raise ConfigError(
            f"a {layout} head of this shape has {head.classes} classes, and the source names {classes}: "
            f"{', '.join(info.describe() for info in head.infos)}",
            remedy=_REMEDY,
        )
    if layout in _PIXELS and size is None:
        raise ConfigError(
            f"boxes of {layout} are in pixels, and the model's input has no fixed height and width",
            remedy="fix them, such as --fix height=640 --fix width=640 (see `edgeq inspect` for their names)",
        )
    if layout == "yolox" and size is not None and (cells := _cells(size)[0].shape[1]) != head.count:
        raise ConfigError(
            f"a {layout} head has {cells} cells of 8, 16 and 32 pixels for an input of {size[0]}x{size[1]}, "
            f"and this one gives {head.count} boxes",
            remedy="if it was exported with its decoding, its layout is yolov5",
        )
    return _Boxes(head, layout, choice, size or (1, 1), seen, opset).build()


class _Head:
    """The outputs that hold boxes (of two, the scores first), the number of candidates and of classes."""

    def __init__(self, infos: Sequence[TensorInfo], count: int, classes: int) -> None:
        self.infos = tuple(infos)
        self.count = count
        self.classes = classes


class _Boxes:
    """Lines of the snippet and its constants; the methods run in the order of ``build``."""

    def __init__(
        self,
        head: _Head,
        layout: BoxLayout,
        choice: BoxChoice,
        size: tuple[int, int],
        seen: tuple[float, float, float, float] | str | None,
        opset: int,
    ) -> None:
        self.head = head
        self.layout = layout
        self.choice = choice
        self.size = size
        self.seen = seen
        self.opset = opset
        self.most = min(choice.most, head.count)
        self.made = Lines(BOXES)
        self._add = self.made.add

    def build(self) -> Back:
        corners, scores, classes = self._decode([self._wide(index) for index in range(len(self.head.infos))])
        kept = self._without_overlap(corners, scores, classes) if self.layout in _OVERLAPPING else scores
        self._best(corners, kept, classes)
        batch, most = self.head.infos[0].shape[0], self.most
        dims = batch if isinstance(batch, int) else "batch"
        shapes = [", ".join(str(d) if isinstance(d, int) else "batch" for d in info.shape) for info in self.head.infos]
        types = ["float" if info.dtype == np.float32 else info.dtype.name for info in self.head.infos]
        given = ", ".join(f"{of}[{shape}] head{i}" for i, (of, shape) in enumerate(zip(types, shapes, strict=True)))
        made = (
            f"float[{dims}, {most}, 4] boxes, float[{dims}, {most}] box_scores, "
            f"int64[{dims}, {most}] box_classes, int64[{dims}] box_count"
        )
        if isinstance(self.seen, str):
            given += ", float[4] seen"
        model = parse_snippet(f"({given}) => ({made}) {{ {self.made.text} }}", self.made.constants, self.opset)
        # The model's own names are a stranger's text: they go past the parser.
        names = [info.name for info in self.head.infos] + ([self.seen] if isinstance(self.seen, str) else [])
        for value, name in zip(model.graph.inputs, names, strict=True):
            value.name = name
        if not isinstance(batch, int):
            for value in (*model.graph.inputs, *(output for node in model.graph for output in node.outputs)):
                if value.shape is not None:
                    value.shape = ir.Shape([batch if str(dim) == "batch" else dim for dim in value.shape])
        return Back(model, self._outputs(), frozenset(info.name for info in self.head.infos))

    def _wide(self, index: int) -> str:
        """The name of an output of the model in float32: pixels beyond 2048 have no fractions in float16."""
        if self.head.infos[index].dtype == np.float32:
            return f"head{index}"
        return self._add(f"wide{index}", f"Cast<to = 1>(head{index})")

    def _outputs(self) -> tuple[Output, ...]:
        return (
            BoxesOutput(
                name=BOXES,
                most=self.most,
                of="input" if self.seen is None else "picture",
                scores="box_scores",
                classes="box_classes",
                count="box_count",
                least_score=self.choice.least_score,
            ),
            BoxScoresOutput(name="box_scores", boxes=BOXES),
            BoxClassesOutput(name="box_classes", boxes=BOXES, classes=self.head.classes),
            BoxCountOutput(name="box_count", boxes=BOXES),
        )

    def _slice(self, name: str, of: str, start: int, end: int, axis: int) -> str:
        return self._add(name, f"Slice({of}, $start, $end, $axis)", {"start": [start], "end": [end], "axis": [axis]})

    def _largest(self, of: str, axis: int) -> str:
        if self.opset < 18:  # before that axes are no input
            return self._add("best", f"ReduceMax<axes = [{axis}], keepdims = 0>({of})")
        return self._add("best", f"ReduceMax<keepdims = 0>({of}, $axis)", {"axis": [axis]})

    # -- the steps

    def _decode(self, heads: Sequence[str]) -> tuple[str, str, str]:
        """Names of: corners ``[batch, N, 4]`` in parts of the input, best scores and their classes ``[batch, N]``."""
        if self.layout in _PAIRED:
            return self._queries(*heads)
        if self.layout == "yolov10":
            return self._finished(heads[0])
        head, classes_last = heads[0], self.layout != "yolov8"
        axis, first = (2, 5) if classes_last else (1, 4)
        end = first + self.head.classes
        raw = self._slice("raw", head, 0, 4, axis)
        if not classes_last:
            raw = self._add("rows", f"Transpose<perm = [0, 2, 1]>({raw})")
        per_class = self._slice("per_class", head, first, end, axis)
        scores = self._largest(per_class, axis)
        if classes_last:
            whether = self._slice("objectness", head, 4, 5, 2)
            flat = self._add("whether", f"Squeeze({whether}, $axis)", {"axis": [2]})
            scores = self._add("scores", f"Mul({scores}, {flat})")
        classes = self._add("class", f"ArgMax<axis = {axis}, keepdims = 0>({per_class})")
        if self.layout == "yolox":
            raw = self._from_cells(raw)
        return self._corners(raw, pixels=True), scores, classes

    def _queries(self, logits: str, boxes: str) -> tuple[str, str, str]:
        if self.layout == "rt-detr":
            per_class = self._add("per_class", f"Sigmoid({logits})")
        else:
            all_classes = self._add("with_nothing", f"Softmax<axis = -1>({logits})")
            per_class = self._slice("per_class", all_classes, 0, self.head.classes, 2)
        scores = self._largest(per_class, 2)
        classes = self._add("class", f"ArgMax<axis = 2, keepdims = 0>({per_class})")
        return self._corners(boxes, pixels=False), scores, classes

    def _finished(self, head: str) -> tuple[str, str, str]:
        corners = self._slice("pixels", head, 0, 4, 2)
        height, width = self.size
        scale = np.array([width, height, width, height], np.float32)
        corners = self._add("corners", f"Div({corners}, $scale)", {"scale": scale})
        columns = [self._slice(name, head, at, at + 1, 2) for name, at in (("score", 4), ("number", 5))]
        scores, numbers = (
            self._add(f"{name}s", f"Squeeze({column}, $axis)", {"axis": [2]})
            for name, column in zip(("score", "number"), columns, strict=True)
        )
        return corners, scores, self._add("class", f"Cast<to = 7>({numbers})")

    def _from_cells(self, raw: str) -> str:
        """YOLOX: ``(offset + cell) * stride`` and ``exp(size) * stride``."""
        cells, strides = _cells(self.size)
        offsets, sizes = self._slice("offsets", raw, 0, 2, 2), self._slice("sizes", raw, 2, 4, 2)
        moved = self._add("moved", f"Add({offsets}, $cells)", {"cells": cells})
        centres = self._add("centres", f"Mul({moved}, $strides)", {"strides": strides})
        powers = self._add("powers", f"Exp({sizes})")
        spans = self._add("spans", f"Mul({powers}, $strides)", {"strides": strides})
        return self._add("centred", f"Concat<axis = 2>({centres}, {spans})")

    def _corners(self, raw: str, *, pixels: bool) -> str:
        """From centre and size to left, top, right, bottom, in parts of the input."""
        if pixels:
            height, width = self.size
            scale = np.array([width, height, width, height], np.float32)
            raw = self._add("parts", f"Div({raw}, $scale)", {"scale": scale})
        centre, size = self._slice("centre", raw, 0, 2, 2), self._slice("size", raw, 2, 4, 2)
        half = self._add("half", f"Mul({size}, $by)", {"by": np.float32(0.5)})
        low, high = self._add("low", f"Sub({centre}, {half})"), self._add("high", f"Add({centre}, {half})")
        return self._add("corners", f"Concat<axis = 2>({low}, {high})")

    def _without_overlap(self, corners: str, scores: str, classes: str) -> str:
        """The scores, 0 for all that a better box of the same class covers."""
        number = self._add("class_number", f"Cast<to = 1>({classes})")
        far = self._add("far", f"Mul({number}, $by)", {"by": np.float32(_APART)})
        shift = self._add("shift", f"Unsqueeze({far}, $axis)", {"axis": [2]})
        apart = self._add("apart", f"Add({corners}, {shift})")
        asked = self._add("asked", f"Unsqueeze({scores}, $axis)", {"axis": [1]})
        selected = self._add(
            "selected",
            f"NonMaxSuppression({apart}, {asked}, $most, $overlap, $least)",
            {
                "most": [self.most],
                "overlap": np.array([self.choice.most_overlap], np.float32),
                "least": np.array([self.choice.least_score], np.float32),
            },
        )
        where = self._add("where", f"Gather<axis = 1>({selected}, $columns)", {"columns": [0, 2]})
        found = self._add("found", f"GatherND({scores}, {where})")
        shape = self._add("shape", f"Shape({scores})")
        nothing = self._add("nothing", f"ConstantOfShape({shape})")
        return self._add("kept", f"ScatterND({nothing}, {where}, {found})")

    def _best(self, corners: str, scores: str, classes: str) -> None:
        """The ``most`` most probable ones; what is not above ``least_score`` becomes an empty row."""
        least = np.float32(self.choice.least_score)
        self.made.lines.append(
            f'"{BOXES}/top_scores", "{BOXES}/order" = TopK<axis = 1>({scores}, "{BOXES}/order/most")'
        )
        self.made.constants[f"{BOXES}/order/most"] = np.array([self.most])
        top, order = f'"{BOXES}/top_scores"', f'"{BOXES}/order"'
        rows = self._add("which", f"Unsqueeze({order}, $axis)", {"axis": [2]})
        taken = self._add("taken", f"GatherND<batch_dims = 1>({corners}, {rows})")
        named = self._add("named", f"GatherND<batch_dims = 1>({classes}, {rows})")
        good = self._add("good", f"Greater({top}, $least)", {"least": least})
        wide = self._add("good_rows", f"Unsqueeze({good}, $axis)", {"axis": [2]})
        ones = self._add("ones", f"Cast<to = 7>({good})")
        within = self._in_picture(taken)
        self.made.constants |= {
            "boxes/none": np.array(0, np.float32),
            "boxes/no_class": np.array(-1),
            "boxes/ones/axis": np.array([1]),
        }
        self.made.lines += [
            f'boxes = Where({wide}, {within}, "boxes/none")',
            f'box_scores = Where({good}, {top}, "boxes/none")',
            f'box_classes = Where({good}, {named}, "boxes/no_class")',
            f'box_count = ReduceSum<keepdims = 0>({ones}, "boxes/ones/axis")',
        ]

    def _in_picture(self, boxes: str) -> str:
        """From parts of the input to parts of the picture, without what lies outside of it."""
        if isinstance(self.seen, str):
            start = self._add("start", "Gather(seen, $which)", {"which": [0, 1, 0, 1]})
            end = self._add("end", "Gather(seen, $which)", {"which": [2, 3, 2, 3]})
            span = self._add("span", f"Sub({end}, {start})")
            boxes = self._add("scaled", f"Mul({boxes}, {span})")
            boxes = self._add("placed", f"Add({boxes}, {start})")
        elif self.seen is not None and self.seen != (0, 0, 1, 1):
            left, top, right, bottom = self.seen
            by = np.array([right - left, bottom - top] * 2, np.float32)
            boxes = self._add("scaled", f"Mul({boxes}, $by)", {"by": by})
            boxes = self._add("placed", f"Add({boxes}, $start)", {"start": np.array([left, top] * 2, np.float32)})
        return self._add("within", f"Clip({boxes}, $low, $high)", {"low": np.float32(0), "high": np.float32(1)})


def _cells(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """YOLOX's cells ``[1, N, 2]`` (column, row) and strides ``[1, N, 1]``, in its order."""
    cells, strides = [], []
    for stride in _STRIDES:
        rows, columns = np.mgrid[: size[0] // stride, : size[1] // stride]
        cells.append(np.stack([columns, rows], axis=-1).reshape(1, -1, 2))
        strides.append(np.full((1, rows.size, 1), stride))
    return np.concatenate(cells, axis=1).astype(np.float32), np.concatenate(strides, axis=1).astype(np.float32)


def _find_head(infos: Sequence[TensorInfo], layout: BoxLayout, classes: int) -> _Head:
    found = ", ".join(info.describe() for info in infos)
    cubes = [info for info in infos if len(info.shape) == 3 and info.dtype in (np.float32, np.float16)]
    if layout in _PAIRED:
        boxes = next((info for info in cubes if info.shape[2] == 4 and "box" in info.name), None)
        boxes = boxes or next((info for info in cubes if info.shape[2] == 4), None)
        scores = next((info for info in cubes if info is not boxes and boxes and info.shape[1] == boxes.shape[1]), None)
        if boxes is None or scores is None:
            raise ConfigError(f"the outputs are no {layout} head, which has logits and boxes: {found}", remedy=_REMEDY)
        count, width = scores.shape[1:]
        rest = 1 if layout == "detr" else 0
        return _checked([scores, boxes], count, _less(width, rest), layout, found)
    if not cubes:
        text = f"the outputs are no {layout} head, which has three dimensions and is float32 or float16: {found}"
        raise ConfigError(text, remedy=_REMEDY)
    head = cubes[0]
    rows, columns = head.shape[1:]
    if layout == "yolov8":
        return _checked([head], columns, _less(rows, 4), layout, found)
    if layout == "yolov10":
        if columns != 6:
            raise ConfigError(f"the outputs are no {layout} head, which has 6 columns: {found}", remedy=_REMEDY)
        return _checked([head], rows, classes, layout, found)
    return _checked([head], rows, _less(columns, 5), layout, found)


def _less(size: int | str | None, by: int) -> int | None:
    return size - by if isinstance(size, int) else None


def _checked(infos: list[TensorInfo], count: int | str | None, classes: int | None, layout: str, found: str) -> _Head:
    if not isinstance(count, int) or classes is None:
        raise ConfigError(
            f"how many boxes the model gives depends on the size of its input: {found}",
            remedy="fix it, such as --fix height=640 --fix width=640 (see `edgeq inspect` for the names)",
        )
    swapped = layout in _OVERLAPPING and classes > count  # there are more places to look at than classes
    if (classes < 1 and layout != "yolov10") or swapped:
        raise ConfigError(
            f"the outputs are no {layout} head of {count} boxes and {classes} classes: {found}", remedy=_REMEDY
        )
    return _Head(infos, count, classes)
