"""The float model answers once."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import parse, weights

from edgeq.stages.run import predict
from edgeq.stages.run.accuracy import evaluate
from edgeq.stages.run.predict import Reference, predictor

NET = "g (float[n,4] x) => (float[n,4] y) { y = MatMul(x, w) }"


def asked(reference: Reference, rows: list[np.ndarray]) -> list[np.ndarray]:
    with predictor(reference) as run:
        return [run({"x": row})["y"] for row in rows]


def test_what_was_asked_before_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = parse(NET, w=weights(4, 4))
    rows = [np.full((1, 4), value, np.float32) for value in (1, 2, 3)]
    reference = Reference(model)
    first = asked(reference, rows)
    monkeypatch.setattr(predict, "open_session", lambda *_: pytest.fail("computed again"))
    assert all(np.array_equal(a, b) for a, b in zip(first, asked(reference, rows), strict=True))
    with pytest.raises(pytest.fail.Exception):
        asked(reference, [np.full((2, 4), 1, np.float32)])  # another shape is another question


def test_memory_is_bounded() -> None:
    reference = Reference(parse(NET, w=weights(4, 4)), most_bytes=40)
    rows = [np.full((1, 4), value, np.float32) for value in range(9)]
    expected = [row @ weights(4, 4) for row in rows]
    for _ in range(2):
        np.testing.assert_allclose(asked(reference, rows), expected, rtol=1e-5)
    assert len(reference.held) == 2
    assert reference.held_bytes == 32


def test_a_comparison_says_the_same_with_what_is_remembered() -> None:
    model, other = parse(NET, w=weights(4, 4)), parse(NET, w=weights(4, 4) * 1.01)
    feed = [{"x": np.random.default_rng(n).standard_normal((2, 4)).astype(np.float32)} for n in range(3)]
    reference = Reference(model)
    found = [evaluate(one, other, feed, task=None, source="s").metrics for one in (model, reference, reference)]
    assert found[0] == found[1] == found[2]
