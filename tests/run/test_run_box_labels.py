"""Average precision against COCO's own code, and labels brought into the frame in which a package sees a picture."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from edgeq.box_metrics import THRESHOLDS, Boxes, average_precision
from edgeq.errors import CalibrationError
from edgeq.geometry import framed, seen
from edgeq.interface import BoxesOutput
from edgeq.recipe import ImagePreprocess
from edgeq.stages.run.accuracy import score
from edgeq.stages.run.box_labels import load_box_labels

SIZE = (100, 200)


def pictures(seed: int, count: int = 12) -> tuple[list[Boxes], list[Boxes]]:
    """What is there, and what a middling detector makes of it: moved, missed, twice, of another class."""
    random = np.random.default_rng(seed)
    truths, found = [], []
    for _ in range(count):
        n = int(random.integers(0, 6))
        corner = random.uniform(0, 0.6, (n, 2))
        boxes = np.concatenate([corner, corner + random.uniform(0.15, 0.4, (n, 2))], axis=1)
        classes = random.integers(0, 4, n)
        truths.append(Boxes(boxes, classes, np.ones(n)))
        which = random.integers(0, n, 2 * n) if n else np.array([], int)
        moved = boxes[which] + random.normal(0, 0.03, (len(which), 4))
        labels = np.where(random.uniform(size=len(which)) < 0.8, classes[which], random.integers(0, 5, len(which)))
        scores = np.sort(random.uniform(0.1, 1, len(which)))[::-1]
        found.append(Boxes(moved, labels, scores))
    return truths, found


def table(truths: list[Boxes]) -> dict[str, Any]:
    """In COCO's form."""
    scale = np.array([SIZE[1], SIZE[0]] * 2)
    rows: list[dict[str, Any]] = []
    for index, truth in enumerate(truths):
        for box, label in zip(truth.boxes * scale, truth.classes, strict=True):
            x, y, right, bottom = box.tolist()
            area = (right - x) * (bottom - y)
            entry = {"bbox": [x, y, right - x, bottom - y], "area": area, "iscrowd": 0, "category_id": int(label) + 1}
            rows.append({"id": len(rows) + 1, "image_id": index, **entry})
    images = [{"id": i, "file_name": f"{i}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in range(len(truths))]
    categories = [{"id": number + 1, "name": f"class {number}"} for number in range(5)]
    return {"images": images, "annotations": rows, "categories": categories}


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_is_that_of_coco(seed: int) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    truths, found = pictures(seed)
    scale = np.array([SIZE[1], SIZE[0]] * 2)
    made = [
        [index, x, y, right - x, bottom - y, value, int(label) + 1]
        for index, one in enumerate(found)
        for (x, y, right, bottom), value, label in zip(one.boxes * scale, one.scores, one.classes, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        there = coco.COCO()
        there.dataset = table(truths)
        there.createIndex()
        judge = evaluation.COCOeval(there, there.loadRes(np.array(made)), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    assert average_precision(truths, found) == pytest.approx(judge.stats[0], abs=1e-6)
    assert average_precision(truths, found, (0.5,)) == pytest.approx(judge.stats[1], abs=1e-6)
    assert 0.05 < judge.stats[0] < judge.stats[1] < 1


def test_what_is_all_right_is_one_and_what_is_nothing_is_none() -> None:
    truths, _ = pictures(1)
    assert average_precision(truths, truths) == 1
    nothing = [Boxes(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0)) for _ in truths]
    assert average_precision(truths, nothing) == 0
    assert np.isnan(average_precision(nothing, truths))
    assert THRESHOLDS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_labels_are_read_by_file_and_by_the_names_of_classes(tmp_path: Path) -> None:
    truths, _ = pictures(2)
    file = write(tmp_path / "labels.json", table(truths))
    names = [f"class {number}" for number in (4, 3, 2, 1, 0, 9)]
    read = load_box_labels(file, ["photos/3.jpg", "photos/1.jpg"], names, 6, lambda size: [])
    for found, wanted in zip(read, (truths[3], truths[1]), strict=True):
        np.testing.assert_allclose(found.boxes, np.clip(wanted.boxes, 0, 1))
        assert found.classes.tolist() == [4 - label for label in wanted.classes]
    numbered = load_box_labels(file, ["3.jpg"], [], 5, lambda size: [])
    assert numbered[0].classes.tolist() == truths[3].classes.tolist()


@pytest.mark.parametrize("size", [(100, 200), (160, 90), (64, 64)], ids=str)
def test_a_frame_is_what_pillow_leaves_of_a_picture(size: tuple[int, int]) -> None:
    columns, rows = np.meshgrid(np.linspace(0, 255, size[1]), np.linspace(0, 255, size[0]))
    picture = Image.fromarray(np.stack([columns, rows, rows], -1).round().astype(np.uint8))
    cut = np.asarray(ImageOps.fit(picture, (60, 48), Image.Resampling.BILINEAR)).astype(float)
    left, top, right, bottom = framed(size, (48, 60))
    assert cut[24, 30, :2] / 255 == pytest.approx([(left + right) / 2, (top + bottom) / 2], abs=0.02)
    assert cut[24, 0, 0] / 255 == pytest.approx(left, abs=0.03)
    assert cut[0, 30, 1] / 255 == pytest.approx(top, abs=0.03)
    assert cut[24, -1, 0] / 255 == pytest.approx(right, abs=0.03)


def test_boxes_go_where_the_picture_goes_and_what_is_cut_off_is_not_asked_for(tmp_path: Path) -> None:
    boxes = np.array([[0.4, 0.4, 0.6, 0.6], [0.2, 0.2, 0.3, 0.4], [0.0, 0.0, 0.1, 0.1]])
    file = write(tmp_path / "labels.json", table([Boxes(boxes, np.array([0, 1, 2]), np.ones(3))]))
    steps = ImagePreprocess(crop=(64, 64), letterbox="centre")
    (whole,) = load_box_labels(file, ["0.jpg"], [], 5, lambda size: [seen(steps, size)])
    np.testing.assert_allclose(whole.boxes[0], [0.4, 0.45, 0.6, 0.55], atol=1e-9)
    assert whole.classes.tolist() == [0, 1, 2]
    (square,) = load_box_labels(file, ["0.jpg"], [], 5, lambda size: [framed(size, (50, 50))])
    np.testing.assert_allclose(square.boxes[0], [0.3, 0.4, 0.7, 0.6], atol=1e-9)
    np.testing.assert_allclose(square.boxes[1], [0, 0.2, 0.1, 0.4], atol=1e-9)  # half of it is left
    assert square.classes.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": [{"id": 0}]}, "KeyError"),
        ({"annotations": [{"image_id": 0, "category_id": 1, "bbox": [1, 2, 3]}]}, "no box of left"),
        ({"annotations": [{"image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 1e999]}]}, "no box of left"),
        ({"annotations": [{"image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 10**400]}]}, "OverflowError"),
        ({"annotations": [{"image_id": 0, "category_id": 1e999, "bbox": [1, 2, 3, 4]}]}, "OverflowError"),
        ({"annotations": [[0, 1]]}, "AttributeError"),
        ({"annotations": [], "categories": [{"id": 0, "name": "a"}]}, "name nothing in 1 pictures"),
        (
            {"images": [{"id": 0, "file_name": "0.jpg", "height": 1e999, "width": 9}], "annotations": []},
            "without a size",
        ),
        ({"annotations": [{"image_id": 0, "category_id": 77, "bbox": [1, 2, 3, 4]}]}, "category that is not listed"),
        ({"images": [{"id": 0, "file_name": "0.jpg", "height": 0, "width": 9}], "annotations": []}, "without a size"),
        ({"categories": [{"id": n + 1, "name": f"x{n}"} for n in range(5)]}, "5 categories and the model 3 classes"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    truths, _ = pictures(3)
    file = write(tmp_path / "labels.json", {**table(truths), **change})
    with pytest.raises(CalibrationError, match=words):
        load_box_labels(file, ["0.jpg"], ["a", "b", "c"], 3, lambda size: [])


def test_labels_nested_without_end_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "labels.json"
    file.write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(CalibrationError, match="RecursionError"):
        load_box_labels(file, ["0.jpg"], [], 5, lambda size: [])


@pytest.mark.parametrize(
    ("categories", "classes"),
    [
        (["Car", "TRUCK", "bicycle"], [1, 2, 0]),  # the same names, in another order
        (["cyclist", "car", "lorry"], [0, 1, 2]),  # other names, in the order that "car" confirms
        (["car", "lorry", "cyclist"], None),  # "car" stands elsewhere: the order says nothing
    ],
)
def test_categories_are_classes_by_name_and_in_order_only_if_no_name_contradicts(
    tmp_path: Path, categories: list[str], classes: list[int] | None
) -> None:
    listed = [{"id": number, "name": name} for number, name in enumerate(categories)]
    rows = [{"image_id": 0, "category_id": number, "bbox": [10, 10, 20, 20]} for number in range(3)]
    image = {"id": 0, "file_name": "0.jpg", "height": 100, "width": 100}
    file = write(tmp_path / "labels.json", {"images": [image], "annotations": rows, "categories": listed})

    def read() -> list[int]:
        (found,) = load_box_labels(file, ["0.jpg"], ["bicycle", "car", "truck"], 3, lambda size: [])
        return list(found.classes)

    if classes is not None:
        assert read() == classes
        return
    with pytest.raises(CalibrationError, match="their names differ: lorry, cyclist"):
        read()


def test_a_picture_without_labels_is_an_error(tmp_path: Path) -> None:
    file = write(tmp_path / "labels.json", table(pictures(3)[0]))
    with pytest.raises(CalibrationError, match=r"name no picture 'other\.jpg'"):
        load_box_labels(file, ["other.jpg"], [], 5, lambda size: [])


def test_precision_comes_before_agreement() -> None:
    entry = BoxesOutput(name="b", most=20, of="picture", scores="s", classes="c", count="n", least_score=0.25)
    truths, found = pictures(4)

    def outputs(one: Boxes) -> dict[str, np.ndarray]:
        rows = len(one.scores)
        made = {"b": np.zeros((1, 20, 4)), "s": np.zeros((1, 20)), "c": np.full((1, 20), -1), "n": np.array([rows])}
        made["b"][0, :rows], made["s"][0, :rows], made["c"][0, :rows] = one.boxes, one.scores, one.classes
        return made

    answers = [({}, outputs(truth), outputs(ours)) for truth, ours in zip(truths, found, strict=True)]
    judged = score(answers, task=None, source="x", boxes=entry, truths=truths)
    assert [metric.name for metric in judged.metrics[:3]] == ["mAP@50-95", "mAP@50", "box agreement"]
    assert judged.metrics[0].float_value == pytest.approx(100)
    assert judged.metrics[0].value == pytest.approx(100 * average_precision(truths, found))
    assert (judged.primary, judged.drop) == ("mAP@50-95", pytest.approx(100 - judged.metrics[0].value))
    with pytest.raises(CalibrationError, match="labels of 3 pictures"):
        score(answers, task=None, source="x", boxes=entry, truths=truths[:3])
