"""Taylor scores against what they stand for, where that is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import parse, weights

from edgeq.errors import ModelError

torch = pytest.importorskip("torch")

from edgeq.torch_graph import Perturbation, TorchGraph, taylor_scores  # noqa: E402

pytestmark = pytest.mark.torch

W1, W2 = weights(6, 5, seed=1), weights(5, 4, seed=2, scale=0.7)
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def graph():
    text = "g (float[n,6] x) => (float[n,4] y) { a = MatMul(x, w1) h = Tanh(a) y = MatMul(h, w2) }"
    return TorchGraph(parse(text, w1=W1, w2=W2))


def feeds(count: int, batch: int = 1):
    return [{"x": torch.from_numpy(RNG.standard_normal((batch, 6)).astype(np.float32))} for _ in range(count)]


def shifted(by: np.ndarray) -> Perturbation:
    return Perturbation(("a",), ("h",), {"h": lambda tensor: tensor + torch.from_numpy(by)})


def test_the_score_of_a_perturbation_is_the_error_that_reaches_the_output(graph) -> None:
    by = weights(5, seed=7, scale=0.01)
    data = feeds(30, batch=10)
    scores = taylor_scores(graph, data, {"shift": shifted(by), "twice": shifted(2 * by)}, draws=10)
    exact = float(((by @ W2) ** 2).sum())
    assert scores["shift"] == pytest.approx(exact, rel=0.1)
    assert scores["twice"] == pytest.approx(4 * scores["shift"], rel=1e-4)


def test_the_categorical_score_is_twice_the_divergence(graph) -> None:
    by = weights(5, seed=7, scale=0.02)
    data = feeds(20, batch=20)
    score = taylor_scores(graph, data, {"shift": shifted(by)}, likelihood="categorical", draws=20)["shift"]
    divergence = 0.0
    for feed in data:
        before = torch.log_softmax(graph.run(feed, ["y"])["y"], -1)
        changed = shifted(by).run(graph, graph.run(feed, ["a", "h"]))["h"]
        after = torch.log_softmax(graph.run({"h": changed}, ["y"])["y"], -1)
        divergence += float((before.exp() * (before - after)).sum().detach()) / 400
    assert score == pytest.approx(2 * divergence, rel=0.15)


def test_errors_of_several_tensors_may_cancel() -> None:
    text = "g (float[n,6] x) => (float[n,5] y) { a = MatMul(x, w1) b = Neg(x) c = MatMul(b, w1) y = Add(a, c) }"
    graph = TorchGraph(parse(text, w1=W1))
    by = torch.from_numpy(weights(5, seed=7))
    both = {
        f"{sign:+d}": Perturbation(
            ("x", "b"), ("a", "c"), {"a": lambda t: t + by, "c": lambda t, sign=sign: t + sign * by}
        )
        for sign in (1, -1)
    }
    scores = taylor_scores(graph, feeds(10, batch=10), both, draws=10)
    assert scores["+1"] == pytest.approx(float((2 * by).square().sum()), rel=0.15)
    assert scores["-1"] < 1e-6 * scores["+1"]


def test_samples_together_or_one_by_one_give_the_same(graph) -> None:
    together = feeds(1, batch=8)
    single = [{"x": row[None]} for row in together[0]["x"]]
    change = {"s": shifted(weights(5, seed=7, scale=0.01))}
    for likelihood in ("gaussian", "categorical"):
        a, b = (taylor_scores(graph, data, change, likelihood=likelihood)["s"] for data in (together, single))
        assert a == pytest.approx(b, rel=1e-4)


def test_the_same_seed_gives_the_same_number(graph) -> None:
    data, change = feeds(4), {"s": shifted(weights(5, seed=7, scale=0.01))}
    first, again, other = (taylor_scores(graph, data, change, seed=seed)["s"] for seed in (3, 3, 4))
    assert first == again != other


def test_a_mean_that_shifts_everywhere_counts_in_full(graph) -> None:
    by = np.full(5, 0.01, np.float32)
    found = taylor_scores(graph, feeds(30, batch=10), {"s": shifted(by)}, draws=10)["s"]
    assert found == pytest.approx(float(((by @ W2) ** 2).sum()), rel=0.15)


def test_what_padding_gives_does_not_count() -> None:
    text = "g (float[1,4,6] x, int64[1,4] attention_mask) => (float[1,4,5] y) { y = MatMul(x, w1) }"
    graph = TorchGraph(parse(text, w1=W1))
    change = {"s": Perturbation(("x",), ("y",), {"y": lambda t: t + 0.1})}
    feed = {"x": torch.ones(1, 4, 6), "attention_mask": torch.tensor([[1, 1, 0, 0]])}
    found = taylor_scores(graph, [feed], change, draws=400)["s"]
    assert found == pytest.approx(2 * 5 * 0.1**2, rel=0.3)


def test_what_has_no_gradient_is_named(graph) -> None:
    with pytest.raises(ModelError, match="no tensor nowhere"):
        taylor_scores(graph, feeds(1), {"s": Perturbation(("x",), ("nowhere",))})
    with pytest.raises(ModelError, match="no gradient at w1"):
        taylor_scores(graph, feeds(1), {"s": Perturbation(("x",), ("w1",))})
    with pytest.raises(ModelError, match="no sample"):
        taylor_scores(graph, [], {})
