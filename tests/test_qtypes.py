"""The nouns refuse what makes no sense, where they are built."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from edgeq.qtypes import (
    Decision,
    Histogram,
    IntType,
    PerAxis,
    PerBlock,
    PerTensor,
    QParams,
    QuantPlan,
    Scheme,
    TensorSpec,
    TensorStats,
)

INT8 = TensorSpec(IntType(8, True), True)


@pytest.mark.parametrize(
    ("name", "qmin", "qmax", "itemsize"),
    [
        ("int2", -2, 1, 1),
        ("uint2", 0, 3, 1),
        ("int4", -8, 7, 1),
        ("uint4", 0, 15, 1),
        ("int8", -128, 127, 1),
        ("uint8", 0, 255, 1),
        ("int16", -32768, 32767, 2),
        ("uint16", 0, 65535, 2),
        ("int32", -(2**31), 2**31 - 1, 4),
    ],
)
def test_integer_types(name: str, qmin: int, qmax: int, itemsize: int) -> None:
    kind = IntType.parse(name)
    assert (kind.name, kind.qmin, kind.qmax, kind.dtype.itemsize) == (name, qmin, qmax, itemsize)
    assert np.dtype(kind.dtype).name == name


@pytest.mark.parametrize("name", ["int3", "uint32", "float32", "INT8", "", "int"])
def test_unknown_integer_types(name: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown integer type '{name}'; known: int2, uint2, .*int32"):
        IntType.parse(name)


def test_integer_type_of_impossible_width() -> None:
    with pytest.raises(ValueError, match="no unsigned integer type of 32 bits"):
        IntType(32, False)
    with pytest.raises(ValueError, match="no signed integer type of 7 bits"):
        IntType(7, True)


def test_block_size() -> None:
    with pytest.raises(ValueError, match="block size must be at least 1, got 0"):
        PerBlock(0, 0)


@pytest.mark.parametrize(
    ("scale", "zero", "granularity", "message"),
    [
        (np.float64(1), np.int8(0), PerTensor(), "scale must be float32, got float64"),
        (np.ones(2, np.float32), np.zeros(3, np.int8), PerAxis(0), r"scale \(2,\) and zero point \(3,\) differ"),
        (np.float32(1), np.uint8(0), PerTensor(), "zero point must be int8, got uint8"),
        (np.ones(1, np.float32), np.zeros(1, np.int8), PerTensor(), r"must have shape \(\), got \(1,\)"),
        (np.ones((1, 1), np.float32), np.zeros((1, 1), np.int8), PerAxis(0), "must have one dimension"),
        (np.float32(0), np.int8(0), PerTensor(), "positive finite number"),
        (np.float32(-1), np.int8(0), PerTensor(), "positive finite number"),
        (np.float32("inf"), np.int8(0), PerTensor(), "positive finite number"),
        (np.array([1, np.nan], np.float32), np.zeros(2, np.int8), PerAxis(0), "positive finite number"),
    ],
)
def test_bad_parameters(scale, zero, granularity, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QParams(np.asarray(scale), np.asarray(zero), TensorSpec(IntType(8, True), True, granularity))


def test_real_range() -> None:
    uint8 = TensorSpec(IntType(8, False), False)
    assert QParams(np.array(0.5, np.float32), np.array(55, np.uint8), uint8).real_range == (-27.5, 100.0)
    per_axis = TensorSpec(IntType(8, True), True, PerAxis(0))
    both = QParams(np.array([1, 2], np.float32), np.zeros(2, np.int8), per_axis)
    assert both.real_range == (-256, 254)


@pytest.mark.parametrize(
    ("name", "expected", "weight_only"),
    [
        ("w8a8", Scheme(8, 8), False),
        ("w8a16", Scheme(8, 16), False),
        ("w4a8", Scheme(4, 8), False),
        ("w4", Scheme(4, None, 32), True),
        ("w8", Scheme(8, None, 32), True),
        ("w2_b64", Scheme(2, None, 64), True),
        ("w4a8_b32", Scheme(4, 8, 32), False),
    ],
)
def test_schemes(name: str, expected: Scheme, weight_only: bool) -> None:
    scheme = Scheme.parse(name)
    assert scheme == expected
    assert scheme.weight_only is weight_only
    assert Scheme.parse(scheme.name) == scheme


@pytest.mark.parametrize(
    "name", ["int8", "w3a8", "w8a5", "w8a8_dynamic_b32", "w8_dynamic", "a8", "w8a8 ", "W8A8", "w4_b", "w8a8_32", ""]
)
def test_unknown_schemes_name_the_grammar(name: str) -> None:
    with pytest.raises(ValueError, match=r"unknown precision .*: write w<bits>a<bits> such as w8a8"):
        Scheme.parse(name)


@pytest.mark.parametrize("block", ["8", "0", "48", "100"])
def test_block_of_a_scheme_is_a_power_of_two(block: str) -> None:
    with pytest.raises(ValueError, match=f"power of two of at least 16, got {block}"):
        Scheme.parse(f"w4_b{block}")


def test_a_decision_has_parameters_or_a_reason() -> None:
    qparams = QParams(np.array(1, np.float32), np.array(0, np.int8), INT8)
    with pytest.raises(ValueError, match="x: a decision has either qparams or a skip reason"):
        Decision("x", "activation", (), "rule")
    with pytest.raises(ValueError, match="either"):
        Decision("x", "activation", (), "rule", qparams, "and a reason")
    taken = Decision("x", "activation", (), "rule", qparams)
    left = Decision("y", "activation", (), "rule", skip_reason="too large")
    plan = QuantPlan("android", Scheme(8, 8), (taken, left))
    assert list(plan) == [taken, left]
    assert (plan.quantized, plan.skipped) == ((taken,), (left,))


def test_histogram_centers() -> None:
    assert Histogram(np.ones(3, np.int64), 0.5, -1).centers.tolist() == [-0.25, 0.25, 0.75]


@pytest.mark.parametrize(("lo", "hi"), [(1.0, 0.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_statistics_have_finite_ordered_extrema(lo: float, hi: float) -> None:
    with pytest.raises(ValueError, match="extrema must be finite and ordered"):
        TensorStats(lo, hi, lo, hi, 1, 1, Histogram(np.ones(1, np.int64), 1.0, 0))


def test_nouns_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Scheme(8, 8).weight_bits = 4  # type: ignore[misc]
