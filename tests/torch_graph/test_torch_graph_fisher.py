"""Fisher information and Taylor scores against what they stand for, where that is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import parse, weights

from edgeq.errors import ModelError

torch = pytest.importorskip("torch")

from edgeq.torch_graph import Perturbation, TorchGraph, fisher_scores, taylor_scores  # noqa: E402

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


def test_gaussian_information_is_the_squared_jacobian(graph) -> None:
    scores = fisher_scores(graph, feeds(40, batch=10), ["h"], draws=20)
    np.testing.assert_allclose(scores["h"], (W2**2).sum(1), rtol=0.1)


def test_categorical_information_is_that_of_the_softmax(graph) -> None:
    data = feeds(1)
    scores = fisher_scores(graph, data, ["h"], likelihood="categorical", draws=4000)
    p = torch.softmax(graph.run(data[0], ["y"])["y"], -1).detach().numpy()[0]
    exact = W2 @ (np.diag(p) - np.outer(p, p)) @ W2.T
    np.testing.assert_allclose(scores["h"], np.diag(exact), rtol=0.15)


def test_gradients_go_through_all_that_follows(graph) -> None:
    data = feeds(1)
    scores = fisher_scores(graph, data, ["x"], draws=4000)
    slope = 1 - np.tanh(data[0]["x"].numpy()[0] @ W1) ** 2
    jacobian = W1 @ np.diag(slope) @ W2
    np.testing.assert_allclose(scores["x"], (jacobian**2).sum(1), rtol=0.15)


def test_samples_together_or_one_by_one_give_the_same(graph) -> None:
    together = feeds(1, batch=8)
    single = [{"x": row[None]} for row in together[0]["x"]]
    for likelihood in ("gaussian", "categorical"):
        a = fisher_scores(graph, together, ["h", "a"], likelihood=likelihood)
        b = fisher_scores(graph, single, ["h", "a"], likelihood=likelihood)
        for name in a:
            assert a[name].shape == (5,)
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5)


def test_the_same_seed_gives_the_same_bytes(graph) -> None:
    data = feeds(4)
    first, again, other = (fisher_scores(graph, data, ["h"], seed=seed)["h"] for seed in (3, 3, 4))
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_windows_stay_and_open_axes_are_averaged() -> None:
    text = "g (float[1,t,4] x) => (float[1,t,4] y) { r = Reshape(x, s) q = Mul(r, r) y = Reshape(q, b) }"
    model = parse(text, s=np.array([-1, 2, 4]), b=np.array([1, -1, 4]))
    graph = TorchGraph(model)
    even = [{"x": torch.ones(1, 6, 4)}, {"x": torch.ones(1, 6, 4)}]
    assert fisher_scores(graph, even, ["q", "x"])["q"].shape == (3, 2, 4)
    open_axis = [{"x": torch.ones(1, 6, 4)}, {"x": torch.ones(1, 8, 4)}]
    assert fisher_scores(graph, open_axis, ["q", "x"])["x"].shape == (1, 4)


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


def test_the_diagonal_alone_forgets_that_errors_add_up(graph) -> None:
    data = feeds(30, batch=10)
    changes = {"weights": Perturbation(("h",), ("y",), weights={"w2": torch.from_numpy(W2 + np.float32(0.1))})}
    coherent = taylor_scores(graph, data, changes, draws=10)["weights"]
    diagonal = taylor_scores(graph, data, changes, draws=10, coherent=False)["weights"]
    # At the output itself the gaussian information is the identity: both are the squared error there.
    known = [{n: t.detach() for n, t in graph.run(feed, ["h", "y"]).items()} for feed in data]
    exact = np.mean([float(((k["h"] @ torch.full((5, 4), 0.1)) ** 2).sum()) / 10 for k in known])
    assert diagonal == pytest.approx(exact, rel=0.15)
    assert coherent == pytest.approx(exact, rel=0.25)
    equal = shifted(np.full(5, 0.01, np.float32))
    scores = [taylor_scores(graph, data, {"s": equal}, draws=10, coherent=flag)["s"] for flag in (True, False)]
    exact = float(((np.full(5, 0.01) @ W2) ** 2).sum())
    assert abs(scores[0] - exact) < abs(scores[1] - exact)


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


def test_what_has_no_gradient_is_named(graph) -> None:
    with pytest.raises(ModelError, match="no tensor nowhere"):
        fisher_scores(graph, feeds(1), ["nowhere"])
    with pytest.raises(ModelError, match="no gradient at w1"):
        fisher_scores(graph, feeds(1), ["w1"])
    with pytest.raises(ModelError, match="no sample"):
        fisher_scores(graph, [], ["h"])
