"""Metrics against figures worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import parser

from edgeq.errors import CalibrationError, ConfigError, ModelError
from edgeq.report import LIMIT_DB
from edgeq.stages.run.accuracy import evaluate, evaluate_custom, evaluate_pairs, metric_drop, pool
from edgeq.stages.run.labels import load_labels


def _model(tmp_path, name: str, body: str, io: str = "(float[N,3] x) => (float[N,3] y)"):
    path = tmp_path / f"{name}.onnx"
    onnx.save(parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> g {io} {{ {body} }}'), path)
    return path


@pytest.fixture
def identity(tmp_path):
    return _model(tmp_path, "float", "y = Identity(x)")


def _named(evaluation):
    return {metric.name: metric for metric in evaluation.metrics}


def test_scaled_output_has_twenty_decibels_and_the_same_direction(identity, tmp_path):
    scaled = _model(tmp_path, "q", "c = Constant<value = float {0.9}>() y = Mul(x, c)")
    batches = [{"x": np.array([[1, 2, 3]], np.float32)}, {"x": np.array([[30, -20, 10]], np.float32)}]
    result = evaluate(identity, scaled, batches, task=None, source="two rows", keep=1)
    metrics = _named(result)
    assert metrics["SQNR"].value == pytest.approx(20, abs=0.01)
    assert metrics["SQNR"].samples == 2
    assert metrics["cosine"].value == pytest.approx(1)
    assert (result.primary, result.drop) == ("cosine", pytest.approx(0, abs=1e-4))
    assert len(result.sample_inputs) == len(result.reference_outputs) == 1
    assert result.sqnr_db["y"] == pytest.approx(20, abs=0.01)


def test_classifier_is_judged_by_agreement_and_with_labels_by_accuracy(identity, tmp_path):
    # Column 0 is damped: rows whose best class was 0 by less than 0.5 change their mind.
    damped = _model(tmp_path, "q", "c = Constant<value = float[3] {0.5, 0.0, 0.0}>() y = Sub(x, c)")
    x = np.array([[1.0, 0.8, 0], [2.0, 0.8, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    batches = [{"x": x[:3]}, {"x": x[3:]}]
    result = evaluate(identity, damped, batches, task="image-classification", source="4 rows")
    assert result.primary == "top-1 agreement"
    assert _named(result)["top-1 agreement"].value == 75
    assert result.drop == 25
    assert "top-5 agreement" not in _named(result)

    labels = [(0,), (0, 1), (2,), (2,)]
    result = evaluate(identity, damped, batches, task=None, source="4 rows", labels=labels)
    metric = _named(result)["top-1 accuracy"]
    assert (metric.float_value, metric.value) == (75, 50)
    assert (result.primary, result.drop) == ("top-1 accuracy", 25)


def test_identical_and_broken_outputs_stay_within_json(identity, tmp_path):
    batch = [{"x": np.ones((1, 3), np.float32)}]
    assert _named(evaluate(identity, identity, batch, task=None, source="s"))["SQNR"].value == LIMIT_DB
    broken = _model(tmp_path, "q", "z = Sub(x, x) y = Div(z, z)")
    metrics = _named(evaluate(identity, broken, batch, task=None, source="s"))
    assert (metrics["SQNR"].value, metrics["cosine"].value) == (-LIMIT_DB, 0)


def test_several_outputs_are_judged_by_the_worst(tmp_path):
    io = "(float[N,2] x) => (float[N,2] a, float[N,2] b)"
    plain = _model(tmp_path, "f", "a = Identity(x) b = Identity(x)", io)
    other = _model(tmp_path, "q", "a = Identity(x) c = Constant<value = float {0.9}>() b = Mul(x, c)", io)
    metrics = _named(evaluate(plain, other, [{"x": np.ones((1, 2), np.float32)}], task=None, source="s"))
    assert metrics["worst output's SQNR"].value == metrics["b SQNR"].value == pytest.approx(20, abs=0.01)
    assert metrics["a SQNR"].value == LIMIT_DB


def test_pooling_leaves_padding_out():
    hidden = np.array([[[3.0, 0], [0, 4], [100, 100]]])
    np.testing.assert_allclose(pool(hidden, np.array([[1, 1, 0]])), [[0.6, 0.8]])


def test_hidden_states_of_padding_do_not_count(tmp_path):
    """As if each text had been run alone, without padding."""
    io = "(float[N,L,2] x, int64[N,L] attention_mask) => (float[N,L,2] y)"
    whole = _model(tmp_path, "float", "y = Identity(x)", io)
    noisy = _model(tmp_path, "q", "c = Constant<value = float {0.9}>() s = Mul(x, c) t = Sin(x) y = Add(s, t)", io)
    rng = np.random.default_rng(0)
    x, mask = rng.normal(size=(2, 4, 2)).astype(np.float32), np.array([[1, 1, 0, 0], [1, 1, 1, 0]])
    x[mask == 0] *= 50
    alone = [{"x": x[i : i + 1, :n], "attention_mask": np.ones((1, n), np.int64)} for i, n in enumerate((2, 3))]
    found, expected = (
        evaluate(whole, noisy, feed, task="feature-extraction", source="2 texts")
        for feed in ([{"x": x, "attention_mask": mask}], alone)
    )
    for name in ("cosine", "SQNR"):
        assert _named(found)[name].value == pytest.approx(_named(expected)[name].value), name
        assert _named(found)[name].samples == 2
    assert found.sqnr_db["y"] == pytest.approx(expected.sqnr_db["y"])
    batch = {"x": x, "attention_mask": mask}
    assert evaluate_pairs(whole, noisy, [batch], [batch], source="2 pairs").sqnr_db == found.sqnr_db
    assert _named(evaluate(whole, noisy, [{**batch, "attention_mask": 0 * mask + 1}], task=None, source=""))[
        "SQNR"
    ].value != pytest.approx(found.sqnr_db["y"], abs=1)


def test_retrieval_counts_queries_that_lost_their_document(tmp_path):
    io = "(float[N,L,2] x, int64[N,L] attention_mask) => (float[N,L,2] y)"
    plain = _model(tmp_path, "f", "y = Identity(x)", io)
    # The second feature is erased: queries along it no longer find their document.
    erased = _model(tmp_path, "q", "c = Constant<value = float[2] {1.0, 0.0}>() y = Mul(x, c)", io)

    def feed(rows):
        return [{"x": np.array([[row]], np.float32), "attention_mask": np.ones((1, 1), np.int64)} for row in rows]

    queries, documents = feed([[1, 0.1], [0.1, 1]]), feed([[1, 0], [0, 1]])
    result = evaluate_pairs(plain, erased, queries, documents, source="2 pairs")
    metric = _named(result)["recall@1"]
    assert (metric.float_value, metric.value, result.drop) == (100, 50, 50)
    with pytest.raises(CalibrationError, match="2 queries but 1 documents"):
        evaluate_pairs(plain, erased, queries, documents[:1], source="s")


def test_custom_metric_runs_on_both_models(identity, tmp_path):
    half = _model(tmp_path, "q", "c = Constant<value = float {0.5}>() y = Mul(x, c)")
    file = tmp_path / "metric.py"
    file.write_text(
        "import numpy as np\n"
        "def mine(predict):\n    return 80 * predict({'x': np.ones((1, 3), np.float32)})['y'][0, 0]\n"
        "def bad(predict):\n    raise KeyError('no data')\n"
        "def none(predict):\n    return float('nan')\n"
    )
    metric = evaluate_custom(identity, half, f"{file}:mine")
    assert (metric.name, metric.float_value, metric.value, metric_drop(metric)) == ("mine", 80, 40, 40)
    for name, text in {
        "bad": "the metric raised KeyError: 'no data'",
        "none": "the metric returned nan and nan, not two numbers",
        "other": "has no function 'other'",
    }.items():
        with pytest.raises(ConfigError, match=text):
            evaluate_custom(identity, half, f"{file}:{name}")
    with pytest.raises(ConfigError, match=r"no metric at 'x.py:f'[\s\S]*path/to/metric.py:function"):
        evaluate_custom(identity, half, "x.py:f")


def test_bad_data_gives_one_clear_error(identity):
    with pytest.raises(CalibrationError, match="no data to measure accuracy on"):
        evaluate(identity, identity, [], task=None, source="s")
    batch = [{"x": np.ones((2, 3), np.float32)}]
    with pytest.raises(CalibrationError, match="there are 3 labels, but 2 samples"):
        evaluate(identity, identity, batch, task=None, source="s", labels=[(1,)] * 3)
    with pytest.raises(ModelError, match="fails on the evaluation's data"):
        evaluate(identity, identity, [{"wrong": batch[0]["x"]}], task=None, source="s")


def test_labels_from_json_csv_and_folders(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps([{"file": "a.jpg", "imagenet_ids": [3, 5]}, {"file": "b.jpg", "imagenet_ids": 7}]))
    assert load_labels(path, ["x/b.jpg", "x/a.jpg"]) == ((7,), (3, 5))
    path.write_text(json.dumps({"a.jpg": [1], "b.jpg": 2}))
    assert load_labels(path, ["a.jpg", "b.jpg"]) == ((1,), (2,))
    table = tmp_path / "labels.csv"
    table.write_text("file,class\na.jpg,1 2\nb.jpg,3\n")
    assert load_labels(table, ["a.jpg", "b.jpg"]) == ((1, 2), (3,))
    for name in ("words/ant", "words/cat", "words/dog", "numbers/4", "numbers/17"):
        (tmp_path / name).mkdir(parents=True)
    assert load_labels(tmp_path / "numbers", ["d/17/1.jpg", "d/4/2.jpg"]) == ((17,), (4,))
    # No ant is among the files: the ids of the others stay what they are.
    assert load_labels(tmp_path / "words", ["d/dog/1.jpg", "d/cat/2.jpg"]) == ((2,), (1,))
    with pytest.raises(CalibrationError, match=r"1 of 2 files lie in no class folder of the labels, such as 'd/2.jpg'"):
        load_labels(tmp_path / "words", ["d/dog/1.jpg", "d/2.jpg"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.json", '{"cat/1.jpg": 1, "dog/1.jpg": 2}'),
        ("l.json", '[{"file": "cat/1.jpg", "label": 1}, {"file": "dog/1.jpg", "label": 2}]'),
        ("l.csv", "cat/1.jpg,1\ndog/1.jpg,2\n"),
    ],
)
def test_one_name_with_two_labels_is_an_error(tmp_path, name, text):
    """Files are matched by name alone: taking the last label would be wrong without a word."""
    (tmp_path / name).write_text(text)
    with pytest.raises(CalibrationError, match=r"two files are named '1.jpg', with different labels"):
        load_labels(tmp_path / name, ["cat/1.jpg"])
    (tmp_path / name).write_text(text.replace("2", "1"))
    assert load_labels(tmp_path / name, ["cat/1.jpg"]) == ((1,),)


@pytest.mark.parametrize(
    "text",
    ["{", "3", '[{"file": "a.jpg"}]', '[{"ids": [1]}]', '{"a.jpg": []}', '{"a.jpg": [-1]}', '{"a.jpg": "x"}'],
)
def test_malformed_labels_are_an_error(tmp_path, text):
    path = tmp_path / "labels.json"
    path.write_text(text)
    with pytest.raises(CalibrationError, match="the labels cannot be read"):
        load_labels(path, ["a.jpg"])


def test_a_file_without_a_label_is_named(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("a.jpg,1\n")
    with pytest.raises(CalibrationError, match=r"1 of 2 files have no label, such as 'b.jpg'"):
        load_labels(path, ["a.jpg", "b.jpg"])
