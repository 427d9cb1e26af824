"""How far the boxes of two models agree: what counts as the same box, and what does not matter."""

from __future__ import annotations

import numpy as np
import pytest

from edgeq.box_metrics import box_overlaps, matched_boxes
from edgeq.errors import CalibrationError
from edgeq.interface import BoxesOutput
from edgeq.stages.run.accuracy import score
from edgeq.stages.run.boxes import BoxCloseness, read_boxes
from edgeq.stages.run.closeness import Closeness, closeness_metrics, compare_outputs

ENTRY = BoxesOutput(
    name="boxes", most=4, of="picture", scores="scores", classes="classes", count="count", least_score=0.25
)
Rows = list[tuple[float, float, float, float, float, int]]
A, B, C = (0.1, 0.1, 0.3, 0.4, 0.9, 1), (0.5, 0.5, 0.9, 0.8, 0.8, 1), (0.2, 0.6, 0.4, 0.9, 0.6, 2)


def outputs(*pictures: Rows, **more: np.ndarray) -> dict[str, np.ndarray]:
    boxes, scores = np.zeros((len(pictures), 4, 4), np.float32), np.zeros((len(pictures), 4), np.float32)
    classes, count = np.full((len(pictures), 4), -1), np.array([len(rows) for rows in pictures])
    for index, rows in enumerate(pictures):
        for place, row in enumerate(rows):
            boxes[index, place], scores[index, place], classes[index, place] = row[:4], row[4], row[5]
    return {"boxes": boxes, "scores": scores, "classes": classes, "count": count, **more}


def agreement(reference: dict[str, np.ndarray], output: dict[str, np.ndarray]) -> float:
    found = BoxCloseness(ENTRY)
    found.add(reference, output)
    return found.value


def test_overlaps_are_intersection_over_union() -> None:
    a = np.array([[0, 0, 2, 2], [0, 0, 1, 1], [3, 3, 3, 3]], np.float32)
    b = np.array([[1, 1, 3, 3], [0, 0, 2, 2]], np.float32)
    np.testing.assert_allclose(box_overlaps(a, b), [[1 / 7, 1], [0, 1 / 4], [0, 0]])
    assert box_overlaps(a[:0], b).shape == (0, 2)


def test_each_box_is_matched_once_the_most_probable_first() -> None:
    overlaps = np.array([[0.9, 0.6], [0.8, 0.7], [0.9, 0.9]])
    same = np.ones((3, 2), bool)
    assert matched_boxes(overlaps, same).tolist() == [0, 1, -1]
    assert matched_boxes(overlaps, same & np.array([[False, True]])).tolist() == [1, -1, -1]
    assert matched_boxes(overlaps, same, 0.75).tolist() == [0, -1, 1]
    assert matched_boxes(np.zeros((2, 0)), np.zeros((2, 0), bool)).tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("found", "percent"),
    [
        ([A, B, C], 100.0),
        ([B, A, C], 100.0),  # the order is a matter of a hair's breadth
        ([A, B], 80.0),
        ([A, B, C, (0.0, 0.0, 0.1, 0.1, 0.3, 1)], 600 / 7),
        ([A, B, (*C[:5], 1)], 200 / 3),  # another class
        ([A, B, (0.3, 0.6, 0.5, 0.9, 0.6, 2)], 200 / 3),  # overlaps by a third
        ([A, A, A], 100 / 3),  # one box three times is one
        ([], 0.0),
    ],
)
def test_agreement_is_the_f1_of_boxes(found: Rows, percent: float) -> None:
    assert agreement(outputs([A, B, C]), outputs(found)) == pytest.approx(percent, abs=1e-3)
    assert agreement(outputs(found), outputs([A, B, C])) == pytest.approx(percent, abs=1e-3)


def test_where_neither_finds_anything_they_agree() -> None:
    assert agreement(outputs([]), outputs([])) == 100.0
    assert agreement(outputs([A], []), outputs([A], [B])) == pytest.approx(200 / 3, abs=1e-3)


def test_a_count_that_is_not_true_reads_no_row_too_many() -> None:
    broken = {**outputs([A]), "count": np.array([99])}
    assert len(read_boxes(broken, ENTRY)[0].boxes) == 4
    assert len(read_boxes({**broken, "count": np.array([-3])}, ENTRY)[0].boxes) == 0


def test_boxes_are_compared_as_boxes_and_other_outputs_by_their_signal() -> None:
    features = np.ones((1, 3), np.float32)
    reference, answer = outputs([A, B], features=features), outputs([B, A], features=features * 1.1)
    found = compare_outputs([{}], [reference], [answer], ENTRY)
    assert list(found) == ["features", "boxes"]
    assert isinstance(found["features"], Closeness)
    assert (found["features"].value, found["features"].unit) == (pytest.approx(20, abs=0.01), "dB")
    assert (found["boxes"].value, found["boxes"].unit) == (100, "%")
    assert found["features"].asked(20, 3) == 17
    assert found["boxes"].asked(95, 3) == 85
    names = [metric.name for metric in closeness_metrics(found, where=" on a", source="")]
    assert names == ["box agreement on a", "overlap of boxes that agree on a", "cosine on a", "features SQNR on a"]
    assert "boxes" in compare_outputs([{}], [reference], [answer])  # without the entry it is a signal as any other


def test_agreement_is_what_a_detector_is_judged_by() -> None:
    answers = [({}, outputs([A, B]), outputs([A])), ({}, outputs([C]), outputs([C]))]
    found = score(answers, task="object-detection", source="x", boxes=ENTRY)
    assert (found.primary, found.drop) == ("box agreement", pytest.approx(20))
    assert found.box_agreement == {"boxes": 80.0}
    assert found.sqnr_db == {}
    assert [metric.value for metric in found.metrics] == [80.0, 100.0]
    assert found.metrics[0].source == "x, 3 boxes of the float model in 2 pictures"
    with pytest.raises(CalibrationError, match="nothing to compare"):
        score([({}, None, outputs([A]))], task="object-detection", source="x", boxes=ENTRY)


def test_samples_are_pictures_in_which_something_is_found() -> None:
    pictures = [outputs([]), outputs([A]), outputs([]), outputs([B, C])]
    answers = [({"x": np.array([index])}, one, one) for index, one in enumerate(pictures)]
    found = score(answers, task=None, source="x", boxes=ENTRY, keep=3)
    assert [int(batch["x"][0]) for batch in found.sample_inputs] == [1, 3, 0]
    assert [int(one["count"][0]) for one in found.reference_outputs] == [1, 2, 0]
