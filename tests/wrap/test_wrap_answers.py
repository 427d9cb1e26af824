"""Answers computed in the graph against numpy, and against what sentence-transformers does."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_models import parse, weights

from edgeq.errors import ConfigError
from edgeq.graph import TensorInfo, input_infos, output_infos
from edgeq.interface import (
    ClassesOutput,
    EmbeddingOutput,
    LogitsOutput,
    Output,
    ProbabilitiesOutput,
    TensorOutput,
    TokenEmbeddingsOutput,
)
from edgeq.runtime import run_model
from edgeq.source import Pooling
from edgeq.stages.run.accuracy import pool
from edgeq.stages.wrap import Back, answer_back, join

FLOAT = np.dtype(np.float32)
MASK = TensorInfo("attention_mask", np.dtype(np.int64), ("N", "L"))


def back(
    meaning: Output, shape: tuple[int | str, ...], mask: TensorInfo | None = None, pooling: Pooling = "mean"
) -> Back:
    info = TensorInfo(meaning.name, FLOAT, shape)
    made = answer_back([meaning], [info], mask=mask, pooling=pooling, opset=21)
    onnx.checker.check_model(ir.to_proto(made.graph), full_check=True)
    assert [info.name for info in output_infos(made.graph)] == [entry.name for entry in made.outputs]
    return made


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("shape", [("N", 12), (2, 12), ("N", "tokens", 12), ("N", 3)], ids=str)
def test_probabilities_and_the_best_classes(shape: tuple[int | str, ...]) -> None:
    made = back(LogitsOutput(name="a b", classes=int(shape[-1])), shape)
    logits = weights(*(n if isinstance(n, int) else 2 for n in shape), scale=3.0)
    found = run_model(made.graph, {"a b": logits})
    count = min(5, int(shape[-1]))
    np.testing.assert_allclose(found["probabilities"], softmax(logits), rtol=1e-5)
    np.testing.assert_array_equal(found["classes"], np.argsort(-logits, axis=-1)[..., :count])
    np.testing.assert_allclose(found["class_probabilities"], -np.sort(-softmax(logits))[..., :count], rtol=1e-5)
    assert made.outputs == (
        ProbabilitiesOutput(name="probabilities", classes=int(shape[-1])),
        ClassesOutput(name="classes", count=count, classes=int(shape[-1])),
        ProbabilitiesOutput(name="class_probabilities", classes=count, of="classes"),
    )
    assert made.replaces == {"a b"}
    assert output_infos(made.graph)[0].shape == shape  # under the model's own names


def test_probabilities_that_are_there_already_stay() -> None:
    made = back(ProbabilitiesOutput(name="probabilities", classes=7), ("N", 7))
    given = softmax(weights(2, 7, scale=3.0))
    found = run_model(made.graph, {"probabilities": given})
    np.testing.assert_array_equal(found["classes"], np.argsort(-given)[:, :5])
    assert made.replaces == frozenset()


@pytest.mark.parametrize("pooling", ["mean", "first", "max"])
@pytest.mark.parametrize("masked", [True, False], ids=["with padding", "without a mask"])
def test_embeddings_are_pooled_and_normalized(pooling: Pooling, masked: bool) -> None:
    meaning = TokenEmbeddingsOutput(name="hidden", size=6, mask="attention_mask" if masked else None)
    made = back(meaning, ("N", "L", 6), MASK if masked else None, pooling)
    hidden = weights(3, 5, 6, scale=2.0)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    if not masked:
        mask = np.ones_like(mask)
    feeds: dict[str, np.ndarray] = {"hidden": hidden}
    if masked and pooling != "first":
        feeds["attention_mask"] = mask
    (found,) = run_model(made.graph, feeds).values()
    allowed = [row[kept.astype(bool)] for row, kept in zip(hidden, mask, strict=True)]
    vectors = {
        "mean": [row.mean(axis=0) for row in allowed],
        "first": [row[0] for row in allowed],
        "max": [row.max(axis=0) for row in allowed],
    }[pooling]
    wanted = [vector / np.linalg.norm(vector) for vector in vectors]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    if pooling == "mean":
        np.testing.assert_allclose(found, pool(hidden, mask), rtol=1e-5, atol=1e-6)
    assert made.outputs == (EmbeddingOutput(name="sentence_embedding", size=6, normalized=True),)


def test_an_empty_text_and_a_vector_of_zeros_give_zeros() -> None:
    meaning = TokenEmbeddingsOutput(name="hidden", size=4, mask="attention_mask")
    made = back(meaning, ("N", "L", 4), MASK)
    found = run_model(made.graph, {"hidden": weights(1, 3, 4), "attention_mask": np.zeros((1, 3), np.int64)})
    np.testing.assert_array_equal(found["sentence_embedding"], np.zeros((1, 4)))


def test_a_vector_gets_the_length_1() -> None:
    made = back(EmbeddingOutput(name="pooler_output", size=4, normalized=False), ("N", 4))
    vectors = weights(3, 4)
    (found,) = run_model(made.graph, {"pooler_output": vectors}).values()
    np.testing.assert_allclose(found, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), rtol=1e-5)


def test_outputs_that_are_not_answered_stay() -> None:
    model = parse(
        "g (float[N,3] x) => (float[N,3] y, float[N,3] other) { y = MatMul(x, w) other = Add(y, y) }", w=weights(3, 3)
    )
    meanings = [LogitsOutput(name="y", classes=3), TensorOutput(name="other")]
    made = answer_back(meanings, output_infos(model), mask=None, pooling="mean", opset=21)
    whole = join(model, None, made.graph, made.replaces).model
    names = [info.name for info in output_infos(whole)]
    assert names == ["probabilities", "classes", "class_probabilities", "other"]
    assert [info.name for info in input_infos(whole)] == ["x"]
    found, plain = (run_model(one, {"x": weights(2, 3, seed=4)}) for one in (whole, model))
    np.testing.assert_array_equal(found["other"], plain["other"])
    np.testing.assert_allclose(found["probabilities"], softmax(plain["y"]), rtol=1e-5)


def test_nothing_to_do_is_an_error() -> None:
    info = TensorInfo("y", FLOAT, ("N", 3))
    with pytest.raises(ConfigError, match=r"its outputs are y \(tensor\)") as caught:
        answer_back([TensorOutput(name="y")], [info], mask=None, pooling="mean", opset=21)
    assert "--task image-classification" in str(caught.value.remedy)


def test_a_name_that_is_taken_is_refused() -> None:
    model = parse("g (float[N,3] x) => (float[N,3] y, float[N,3] classes) { y = Neg(x) classes = Abs(x) }")
    meanings = [LogitsOutput(name="y", classes=3), TensorOutput(name="classes")]
    made = answer_back(meanings, output_infos(model), mask=None, pooling="mean", opset=21)
    with pytest.raises(ConfigError, match="the model itself has a tensor classes, as an embedded step's is called"):
        join(model, None, made.graph, made.replaces)
