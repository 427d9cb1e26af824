"""Boxes decoded in the graph against plain loops over candidates."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgeq.errors import ConfigError
from edgeq.geometry import seen
from edgeq.graph import TensorInfo, output_infos
from edgeq.interface import BoxesOutput, BoxScoresOutput
from edgeq.recipe import ImagePreprocess
from edgeq.runtime import run_model
from edgeq.source import BoxLayout
from edgeq.stages.wrap import SEEN, Back, boxes_back, pixel_front
from edgeq.wrap import BoxChoice, parse_wrap

FLOAT = np.dtype(np.float32)
SIZE = (64, 96)
CANDIDATES = {"yolox": 8 * 12 + 4 * 6 + 2 * 3}

Row = tuple[tuple[float, float, float, float], float, int]
"""Left, top, right, bottom in parts of the input; score; class."""


def back(
    layout: BoxLayout, shapes: list[tuple[int | str, ...]], choice: BoxChoice | None = None, **more: object
) -> Back:
    infos = [TensorInfo(f"out put {index}", FLOAT, shape) for index, shape in enumerate(shapes)]
    options: dict[str, object] = {"size": SIZE, "seen": (0.0, 0.0, 1.0, 1.0), "opset": 21, **more}
    made = boxes_back(infos, layout, choice or BoxChoice(), **options)  # type: ignore[arg-type]
    onnx.checker.check_model(ir.to_proto(made.graph), full_check=True)
    assert [info.name for info in output_infos(made.graph)] == [entry.name for entry in made.outputs]
    return made


def head(layout: BoxLayout, batch: int, classes: int, seed: int) -> list[np.ndarray]:
    """Outputs of a detector: clusters of boxes that overlap, scores of all sizes."""
    random = np.random.default_rng(seed)
    count = CANDIDATES.get(layout, 200)
    middle = random.choice([0.2, 0.5, 0.75], (batch, count, 2)) + random.normal(0, 0.03, (batch, count, 2))
    size = random.uniform(0.1, 0.4, (batch, count, 2))
    pixels = np.array([SIZE[1], SIZE[0]])
    scores = random.uniform(0, 1, (batch, count, classes)) ** 2
    whether = random.uniform(0.2, 1, (batch, count, 1))
    if layout == "yolov8":
        made = [np.concatenate([middle * pixels, size * pixels, scores], -1).transpose(0, 2, 1)]
    elif layout == "yolov5":
        made = [np.concatenate([middle * pixels, size * pixels, whether, scores], -1)]
    elif layout == "yolox":
        raw = [random.normal(0.5, 0.3, middle.shape), random.normal(0.8, 0.3, size.shape)]
        made = [np.concatenate([*raw, whether, scores], -1)]
    elif layout == "yolov10":
        corners = np.concatenate([(middle - size / 2) * pixels, (middle + size / 2) * pixels], -1)
        made = [np.concatenate([corners, scores[..., :1], random.integers(0, classes, (batch, count, 1))], -1)]
    else:
        logits = random.normal(0, 3, (batch, count, classes + (layout == "detr")))
        made = [logits, np.concatenate([middle, size], -1)]
    return [array.astype(np.float32) for array in made]


def rows(layout: BoxLayout, outputs: list[np.ndarray], picture: int) -> list[Row]:
    """All candidates of one picture, decoded one by one."""
    found: list[Row] = []
    first = outputs[0][picture].astype(np.float64)
    if layout == "yolov8":
        first = first.T
    cells = [(c, r, s) for s in (8, 16, 32) for r in range(SIZE[0] // s) for c in range(SIZE[1] // s)]
    for index, row in enumerate(first):
        if layout == "yolov10":
            box = row[:4] / [SIZE[1], SIZE[0], SIZE[1], SIZE[0]]
            found.append((tuple(box), float(row[4]), int(row[5])))
            continue
        if layout in ("detr", "rt-detr"):
            powers = np.exp(row) / np.exp(row).sum() if layout == "detr" else 1 / (1 + np.exp(-row))
            scores, box = (powers[:-1] if layout == "detr" else powers), outputs[1][picture, index]
            x, y, w, h = (float(number) for number in box)
        else:
            scores = row[4:] if layout == "yolov8" else row[5:] * row[4]
            x, y, w, h = row[:4]
            if layout == "yolox":
                column, line, stride = cells[index]
                x, y, w, h = (x + column) * stride, (y + line) * stride, np.exp(w) * stride, np.exp(h) * stride
            x, y, w, h = x / SIZE[1], y / SIZE[0], w / SIZE[1], h / SIZE[0]
        corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        found.append((corners, float(scores.max()), int(scores.argmax())))
    return found


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def chosen(candidates: list[Row], choice: BoxChoice, *, overlapping: bool) -> list[Row]:
    """Greedy suppression, as every text book has it."""
    kept: list[Row] = []
    for row in sorted(candidates, key=lambda one: -one[1]):
        covered = any(row[2] == one[2] and overlap(row[0], one[0]) > choice.most_overlap for one in kept)
        if row[1] > choice.least_score and not (overlapping and covered):
            kept.append(row)
    return kept[: choice.most]


@pytest.mark.parametrize("layout", ["yolov5", "yolov8", "yolov10", "yolox", "detr", "rt-detr"])
@pytest.mark.parametrize(("batch", "opset"), [("N", 21), (2, 21), (2, 17)], ids=str)
def test_boxes_are_those_that_loops_find(layout: BoxLayout, batch: int | str, opset: int) -> None:
    outputs = head(layout, 2, 7, seed=3)
    choice = BoxChoice(None, 0.3, 0.4, 20)
    made = back(layout, [(batch, *array.shape[1:]) for array in outputs], choice, classes=7, opset=opset)
    found = run_model(made.graph, {f"out put {index}": array for index, array in enumerate(outputs)})
    overlapping = layout in ("yolov5", "yolov8", "yolox")
    for picture in range(2):
        wanted = chosen(rows(layout, outputs, picture), choice, overlapping=overlapping)
        count = int(found["box_count"][picture])
        assert count == len(wanted) > 3
        assert found["box_classes"][picture, :count].tolist() == [row[2] for row in wanted]
        np.testing.assert_allclose(found["box_scores"][picture, :count], [row[1] for row in wanted], atol=1e-6)
        np.testing.assert_allclose(
            found["boxes"][picture, :count], np.clip([row[0] for row in wanted], 0, 1), atol=1e-5
        )
        assert (found["box_classes"][picture, count:] == -1).all()
        assert not found["boxes"][picture, count:].any()
        assert not found["box_scores"][picture, count:].any()
    if overlapping:
        assert len(wanted) < len(chosen(rows(layout, outputs, 1), BoxChoice(None, 0.3, 0.4, 999), overlapping=False))
    entry = made.outputs[0]
    assert isinstance(entry, BoxesOutput)
    assert (entry.most, entry.of, entry.least_score) == (20, "picture", 0.3)
    assert made.outputs[1] == BoxScoresOutput(name="box_scores", boxes="boxes")
    assert made.replaces == {f"out put {index}" for index in range(len(outputs))}
    assert output_infos(made.graph)[0].shape == (batch, 20, 4)


@pytest.mark.parametrize("layout", ["yolov8", "rt-detr"])
def test_a_head_in_float16_gives_what_its_numbers_say(layout: BoxLayout) -> None:
    outputs = [array.astype(np.float16) for array in head(layout, 1, 7, seed=3)]
    wide = back(layout, [array.shape for array in outputs])
    infos = [TensorInfo(f"out put {i}", np.dtype(np.float16), array.shape) for i, array in enumerate(outputs)]
    made = boxes_back(infos, layout, BoxChoice(), size=SIZE, seen=(0.0, 0.0, 1.0, 1.0), opset=21)
    wanted = run_model(wide.graph, {f"out put {i}": array.astype(np.float32) for i, array in enumerate(outputs)})
    found = run_model(made.graph, {f"out put {i}": array for i, array in enumerate(outputs)})
    assert wanted["box_count"] > 3
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)


def test_nothing_found_is_empty_rows_and_fewer_candidates_than_asked_are_all_that_there_are() -> None:
    made = back("yolov8", [(1, 6, 5)], seen=None)
    entry = made.outputs[0]
    assert isinstance(entry, BoxesOutput)
    assert (entry.most, entry.of) == (5, "input")
    outputs = np.full((1, 6, 5), 0.2, np.float32)
    outputs[0, 4, 2] = np.nan
    found = run_model(made.graph, {"out put 0": outputs})
    assert found["box_count"].tolist() == [0]
    assert found["box_classes"].tolist() == [[-1] * 5]
    assert not found["boxes"].any()
    assert not found["box_scores"].any()


@pytest.mark.parametrize("size", [(100, 140), (141, 99), (480, 640), (97, 97), (33, 200)], ids=str)
@pytest.mark.parametrize(
    "steps",
    [
        ImagePreprocess(crop=(64, 96), letterbox="centre"),
        ImagePreprocess(crop=(64, 96), letterbox="corner"),
        ImagePreprocess(crop=(64, 96), resize=100),
        ImagePreprocess(crop=(32, 64)),
        ImagePreprocess(crop=(64, 96), stretch=True),
    ],
    ids=lambda steps: steps.letterbox or f"resize {steps.resize} stretch {steps.stretch}",
)
def test_boxes_are_in_parts_of_the_picture_that_was_given(steps: ImagePreprocess, size: tuple[int, int]) -> None:
    if steps.resize is None and not steps.letterbox and not steps.stretch and min(size) < 64:
        pytest.skip("a picture smaller than the crop")
    reads = TensorInfo("x", FLOAT, ("N", 3, *steps.crop))
    dynamic = not steps.stretch
    front = pixel_front(reads, steps, None, opset=21, tells_seen=dynamic)
    told = run_model(front, {"pixels": np.zeros((1, *size, 3), np.uint8)}).get(SEEN)
    part = seen(steps, size)
    if dynamic:
        np.testing.assert_allclose(told, part, rtol=1e-6, atol=1e-7)
    outputs = head("yolov8", 1, 3, seed=5)
    shapes: list[tuple[int | str, ...]] = [(1, *array.shape[1:]) for array in outputs]
    plain = run_model(back("yolov8", shapes, size=steps.crop).graph, {"out put 0": outputs[0]})
    fixed = run_model(back("yolov8", shapes, size=steps.crop, seen=part).graph, {"out put 0": outputs[0]})
    left, top, right, bottom = part
    scale, start = np.array([right - left, bottom - top] * 2), np.array([left, top] * 2)
    count = int(plain["box_count"][0])
    raw = rows_of(outputs[0], steps.crop, plain, count)
    np.testing.assert_allclose(fixed["boxes"][0, :count], np.clip(raw * scale + start, 0, 1), atol=1e-4)
    if dynamic:
        given = back("yolov8", shapes, size=steps.crop, seen=SEEN)
        assert told is not None
        found = run_model(given.graph, {"out put 0": outputs[0], SEEN: told})
        np.testing.assert_allclose(found["boxes"], fixed["boxes"], atol=1e-5)


def rows_of(output: np.ndarray, size: tuple[int, int], found: dict[str, np.ndarray], count: int) -> np.ndarray:
    """The boxes of a YOLOv8 head that were chosen, not cut off at the edges."""
    scores = output[0, 4:].max(axis=0)
    order = [int(np.flatnonzero(scores == score)[0]) for score in found["box_scores"][0, :count]]
    x, y, w, h = output[0, :4, order].T / np.array([[size[1]], [size[0]], [size[1]], [size[0]]])
    return np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=-1)


@pytest.mark.parametrize(
    ("layout", "shapes", "more", "words"),
    [
        ("yolov8", [(1, 4, 100)], {}, "no yolov8 head of 100 boxes and 0 classes"),
        ("yolov8", [(1, 8400, 84)], {}, "no yolov8 head"),
        ("yolov5", [(1, 84, 8400)], {}, "no yolov5 head of 84 boxes and 8395 classes"),
        ("yolov5", [(1, 100, 12)], {"classes": 3}, "has 7 classes, and the source names 3"),
        ("yolov8", [(1, 1000)], {}, "which has three dimensions"),
        ("yolov8", [(1, 84, "boxes")], {}, "depends on the size of its input"),
        ("yolov8", [(1, 84, 8400)], {"size": None}, "no fixed height and width"),
        ("yolov10", [(1, 300, 7)], {}, "which has 6 columns"),
        ("yolox", [(1, 99, 85)], {}, "126 cells"),
        ("detr", [(1, 100, 92)], {}, "which has logits and boxes"),
    ],
)
def test_what_is_no_such_head_is_refused(
    layout: BoxLayout, shapes: list[tuple[int | str, ...]], more: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        back(layout, shapes, **more)


def test_what_the_option_takes() -> None:
    assert parse_wrap(False, True).boxes == parse_wrap(False, "auto").boxes == BoxChoice()
    assert parse_wrap(False, "yolov8,score=0.3,overlap=0.5,boxes=50").boxes == BoxChoice("yolov8", 0.3, 0.5, 50)
    assert parse_wrap(False, "score=0.1").boxes == BoxChoice(None, 0.1)
    numbers = ("score=x", "score=1", "boxes=0", "boxes=1.5", "boxes=inf", "boxes=nan", "overlap=nan")
    for text in ("yolo", "yolov8,model.onnx", *numbers):
        with pytest.raises(ConfigError, match="embed-postprocessing"):
            parse_wrap(False, text)
