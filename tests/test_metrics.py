"""Metrics on values worked out by hand, and at their edges."""

from __future__ import annotations

import numpy as np
import pytest

from edgeq.metrics import cosine, recall_at_1, sqnr_db, top_k_accuracy, top_k_agreement


def test_sqnr() -> None:
    reference = np.array([3.0, 4.0])
    assert sqnr_db(reference, 1.1 * reference) == pytest.approx(20)
    assert sqnr_db(reference, 2 * reference) == pytest.approx(0)
    assert sqnr_db(reference, reference.copy()) == np.inf
    assert sqnr_db(np.zeros(2), np.zeros(2)) == np.inf
    assert sqnr_db(np.zeros(2), np.ones(2)) == -np.inf
    assert sqnr_db(reference, np.array([3.0, np.nan])) == -np.inf
    assert sqnr_db(reference, np.array([3.0, np.inf])) == -np.inf


def test_sqnr_of_half_precision_does_not_overflow() -> None:
    large = np.full(1000, 60000, np.float16)
    assert np.isfinite(sqnr_db(large, large - np.float16(32)))


def test_cosine() -> None:
    a = np.array([[1.0, 0], [1, 0], [0, 0]])
    b = np.array([[0.0, 2], [5, 0], [0, 0]])
    assert cosine(a, b) == pytest.approx((0 + 1 + 1) / 3)
    assert cosine(a[:1], -a[:1]) == pytest.approx(-1)


def test_top_k() -> None:
    reference = np.array([[3.0, 2, 1], [1, 2, 3], [5, 5, 1]])
    output = np.array([[2.0, 3, 1], [1, 2, 3], [5, 5, 1]])
    assert top_k_agreement(reference, output) == pytest.approx(2 / 3)
    assert top_k_agreement(reference, output, 2) == 1
    assert top_k_accuracy(output, [[0], [0, 2], [0]]) == pytest.approx(2 / 3)
    assert top_k_accuracy(output, [[0], [2], [1]], 2) == 1
    assert top_k_accuracy(output, [[], [], []]) == 0
    with pytest.raises(ValueError, match="shorter"):
        top_k_accuracy(output, [[0]])


def test_recall() -> None:
    queries = np.array([[1.0, 0], [0, 1], [1, 1]])
    documents = np.array([[10.0, 1], [0, 5], [0, 1]])
    assert recall_at_1(queries, documents) == pytest.approx(2 / 3)
    assert recall_at_1(queries, queries * 100) == 1
