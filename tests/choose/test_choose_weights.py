"""Scales of weights: the search never loses to the largest magnitude, and gives the shape that ONNX wants."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgeq.affine import SCALE_FLOOR, fake_quantize, quantize
from edgeq.qtypes import Granularity, IntType, PerAxis, PerBlock, PerTensor, TensorSpec
from edgeq.stages.choose import weights as room
from edgeq.stages.choose.weights import weight_qparams

GRANULARITIES: list[Granularity] = [PerTensor(), PerAxis(0), PerAxis(1), PerBlock(0, 16), PerBlock(1, 32)]


def draw(kind: str, shape: tuple[int, ...] = (50, 40)) -> np.ndarray:
    rng = np.random.default_rng(3)
    x = {
        "normal": rng.standard_normal(shape),
        "laplace": rng.laplace(size=shape),
        "uniform": rng.uniform(-1, 1, shape),
        "outliers": np.where(rng.random(shape) < 0.01, 20.0, 1.0) * rng.standard_normal(shape),
        "channels": rng.standard_normal(shape) * 10.0 ** rng.uniform(-6, 3, (shape[0], *[1] * (len(shape) - 1))),
        "sparse": rng.standard_normal(shape) * (rng.random(shape) < 0.05),
    }[kind]
    return x.astype(np.float32)


def error(x: np.ndarray, qparams) -> float:
    return float(np.square(x.astype(np.float64) - fake_quantize(x, qparams)).sum())


@pytest.mark.parametrize("dtype", ["int2", "int4", "uint4", "int8", "uint8", "int16"])
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("kind", ["normal", "laplace", "uniform", "outliers", "channels", "sparse"])
def test_clipping_never_loses(kind: str, granularity: Granularity, dtype: str) -> None:
    x, spec = draw(kind), TensorSpec(IntType.parse(dtype), True, granularity)
    plain, searched = weight_qparams(x, spec, clip=False), weight_qparams(x, spec)
    assert searched.scale.shape == plain.scale.shape
    assert error(x, searched) <= error(x, plain) * (1 + 1e-6)
    assert (searched.scale <= plain.scale).all()


@pytest.mark.parametrize(("dtype", "gain"), [("int4", 0.95), ("int2", 0.6)])
def test_clipping_gains_at_few_bits(dtype: str, gain: float) -> None:
    x, spec = draw("normal", (16, 512)), TensorSpec(IntType.parse(dtype), True, PerAxis(0))
    assert error(x, weight_qparams(x, spec)) < gain * error(x, weight_qparams(x, spec, clip=False))


def test_close_to_the_best_scale_of_all() -> None:
    """An exhaustive search over 2,000 scales finds hardly anything better."""
    for dtype in ("int2", "int4", "int8"):
        x, spec = draw("laplace", (1, 400)), TensorSpec(IntType.parse(dtype), True)
        found = weight_qparams(x, spec)
        top = np.abs(x).max() / max(spec.dtype.qmax, 1)
        best = min(
            error(x, type(found)(np.asarray(top * f, np.float32), found.zero_point, spec))
            for f in np.linspace(0.02, 1, 2000)
        )
        assert error(x, found) <= best * 1.03


@pytest.mark.parametrize("dtype", ["int4", "int8"])
@pytest.mark.parametrize("kind", ["normal", "laplace", "outliers", "channels"])
def test_the_best_power_of_two_of_all(kind: str, dtype: str) -> None:
    x, spec = draw(kind), TensorSpec(IntType.parse(dtype), True, PerAxis(0), power_of_two=True)
    found = weight_qparams(x, spec)
    assert (np.frexp(found.scale)[0] == 0.5).all()
    for row in range(0, len(x), 7):
        one = replace(spec, granularity=PerTensor())
        errors = [
            error(x[row], type(found)(np.asarray(2.0**e, np.float32), found.zero_point[0], one)) for e in range(-30, 8)
        ]
        own = type(found)(found.scale[row], found.zero_point[row], one)
        assert error(x[row], own) <= min(errors) * (1 + 1e-6)


@pytest.mark.parametrize("clip", [True, False])
def test_a_reduced_range_stays_within_7_bits(clip: bool) -> None:
    x, spec = draw("outliers"), TensorSpec(IntType(8, True), True, PerAxis(0), reduced=True)
    found = weight_qparams(x, spec, clip=clip)
    integers = quantize(x, found)
    assert integers.min() >= -64
    assert integers.max() <= 63
    if not clip:
        assert np.abs(integers).max() == 63
    full = weight_qparams(x, replace(spec, reduced=False), clip=clip)
    assert 3 < error(x, found) / error(x, full) < 5  # one bit: four times the squared error


@pytest.mark.parametrize(
    ("granularity", "shape", "scale"),
    [
        (PerTensor(), (6, 4, 3, 3), ()),
        (PerAxis(0), (6, 4, 3, 3), (6,)),
        (PerAxis(1), (6, 4, 3, 3), (4,)),
        (PerBlock(0, 16), (40, 5), (3, 5)),
        (PerBlock(1, 16), (5, 40), (5, 3)),
        (PerBlock(1, 4), (2, 9, 3), (2, 3, 3)),
    ],
    ids=str,
)
@pytest.mark.parametrize("clip", [True, False])
def test_shapes(granularity: Granularity, shape: tuple[int, ...], scale: tuple[int, ...], clip: bool) -> None:
    qparams = weight_qparams(draw("normal", shape), TensorSpec(IntType(8, True), True, granularity), clip=clip)
    assert qparams.scale.shape == qparams.zero_point.shape == scale
    assert not qparams.zero_point.astype(int).any()


def test_largest_magnitude_without_clipping() -> None:
    x = np.array([[1, -127, 3], [0.5, 2, -254]], np.float32)
    qparams = weight_qparams(x, TensorSpec(IntType(8, True), True, PerAxis(0)), clip=False)
    assert qparams.scale.tolist() == [1, 2]
    unsigned = weight_qparams(x, TensorSpec(IntType(8, False), True, PerAxis(0)), clip=False)
    assert (unsigned.scale.tolist(), unsigned.zero_point.tolist()) == ([1, 2], [128, 128])


def test_a_ragged_block_is_judged_by_its_own_values() -> None:
    x = np.concatenate([np.full((16, 1), 127.0), np.full((3, 1), 1.27)]).astype(np.float32)
    qparams = weight_qparams(x, TensorSpec(IntType(8, True), True, PerBlock(0, 16)))
    assert qparams.scale.ravel() == pytest.approx([1, 0.01], rel=1e-6)
    assert fake_quantize(x, qparams) == pytest.approx(x, rel=1e-6)


def test_dead_channels_borrow_the_largest_scale() -> None:
    """The smallest possible one is no harm to arithmetic, but Qualcomm's older chips get it wrong."""
    x = draw("normal")
    x[3] = 0
    x[7] = 1e-20
    qparams = weight_qparams(x, TensorSpec(IntType(8, True), True, PerAxis(0)))
    assert qparams.scale[3] == qparams.scale[7] == qparams.scale.max()
    assert not fake_quantize(x, qparams)[[3, 7]].any()


def test_a_dead_weight_gets_the_floor() -> None:
    x = np.zeros((4, 8), np.float32)
    for granularity in (PerTensor(), PerAxis(0), PerBlock(1, 8)):
        assert (weight_qparams(x, TensorSpec(IntType(8, True), True, granularity)).scale == SCALE_FLOOR).all()


def test_rows_searched_in_chunks_give_the_same_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    x, spec = draw("laplace"), TensorSpec(IntType(4, True), True, PerAxis(0))
    whole = weight_qparams(x, spec).scale
    monkeypatch.setattr(room, "_CHUNK", 100)
    assert np.array_equal(weight_qparams(x, spec).scale, whole)


def test_weights_are_symmetric() -> None:
    with pytest.raises(ValueError, match="weights are quantized symmetrically"):
        weight_qparams(draw("normal"), TensorSpec(IntType(8, True), False))
