"""The integer arithmetic against numbers worked out by hand, against ONNX Runtime's kernels, and by its properties."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeq.affine import SCALE_FLOOR, blocks, dequantize, expand, fake_quantize, quantize, range_to_qparams
from edgeq.qtypes import Granularity, IntType, PerAxis, PerBlock, PerTensor, QParams, TensorSpec

ALL_TYPES = [IntType.parse(n) for n in ("int2", "uint2", "int4", "uint4", "int8", "uint8", "int16", "uint16")]


def params(scale: object, zero: object, dtype: str, granularity: Granularity | None = None) -> QParams:
    kind = IntType.parse(dtype)
    spec = TensorSpec(kind, False, granularity or PerTensor())
    return QParams(np.array(scale, np.float32), np.array(zero, np.float64).astype(kind.dtype), spec)


# -- golden: worked out by hand


@pytest.mark.parametrize(
    ("dtype", "scale", "zero", "real", "integers", "back"),
    [
        # Ties go to even: 0.5 -> 0, 1.5 -> 2, 2.5 -> 2, -0.5 -> 0, -1.5 -> -2.
        ("int8", 1.0, 0, [0.5, 1.5, 2.5, -0.5, -1.5], [0, 2, 2, 0, -2], [0, 2, 2, 0, -2]),
        # The zero point is added after rounding: 0.5 -> 0 -> 3, not round(3.5) = 4.
        ("uint8", 1.0, 3, [0.5, -4.0, 252.0, 253.0], [3, 0, 255, 255], [0, -3, 252, 252]),
        ("int4", 0.5, 0, [-9.0, -4.0, -0.75, 3.5, 9.0], [-8, -8, -2, 7, 7], [-4, -4, -1, 3.5, 3.5]),
        ("uint4", 0.25, 8, [-9.0, -2.0, 0.0, 1.75, 9.0], [0, 0, 8, 15, 15], [-2, -2, 0, 1.75, 1.75]),
        ("int2", 2.0, 0, [-9.0, -3.0, 1.0, 3.0, 9.0], [-2, -2, 0, 1, 1], [-4, -4, 0, 2, 2]),
        ("uint2", 1.0, 1, [-2.0, 0.0, 1.0, 2.0, 7.0], [0, 1, 2, 3, 3], [-1, 0, 1, 2, 2]),
        ("int16", 0.25, -1, [0.0, 0.25, 1e6, -1e6], [-1, 0, 32767, -32768], [0, 0.25, 8192, -8191.75]),
        ("uint16", 0.5, 32768, [0.0, -16384.0, 1e9], [32768, 0, 65535], [0, -16384, 16383.5]),
    ],
)
def test_known_integers(dtype, scale, zero, real, integers, back) -> None:
    qparams = params(scale, zero, dtype)
    q = quantize(np.array(real, np.float32), qparams)
    assert q.dtype == IntType.parse(dtype).dtype
    assert q.astype(np.int64).tolist() == integers
    restored = dequantize(q, qparams)
    assert restored.dtype == np.float32
    assert restored.tolist() == back


def test_per_axis_uses_one_scale_per_index_of_the_axis() -> None:
    x = np.array([[1.0, 1.0, 1.0], [-2.0, 4.0, 1.0]], np.float32)
    columns = params([1.0, 2.0, 0.5], [0, 1, -1], "int8", PerAxis(1))
    assert quantize(x, columns).tolist() == [[1, 1, 1], [-2, 3, 1]]  # 1/2 rounds to 0, plus 1
    rows = params([1.0, 4.0], [0, 0], "int8", PerAxis(0))
    assert quantize(x, rows).tolist() == [[1, 1, 1], [0, 1, 0]]  # -2/4 = -0.5 ties to even


def test_per_block_with_a_ragged_last_block() -> None:
    x = np.array([[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]], np.float32)
    qparams = params([[1, 2], [1, 4], [3, 5]], [[0, 0], [1, 1], [0, 0]], "int8", PerBlock(0, 2))
    # Rows 0-1 use scales 1 and 2, rows 2-3 scales 1 and 4 with zero point 1, row 4 scales 3 and 5.
    assert quantize(x, qparams).tolist() == [[1, 1], [3, 2], [6, 3], [8, 3], [3, 2]]
    assert dequantize(quantize(x, qparams), qparams).tolist() == [[1, 2], [3, 4], [5, 8], [7, 8], [9, 10]]


def test_expand_shapes() -> None:
    shape = (2, 5, 3)
    axis = TensorSpec(IntType(8, True), True, PerAxis(1))
    assert expand(np.ones(5), axis, shape).shape == (1, 5, 1)
    block = TensorSpec(IntType(8, True), True, PerBlock(1, 2))
    repeated = expand(np.arange(18).reshape(2, 3, 3), block, shape)
    assert repeated.shape == shape
    assert repeated[0, :, 0].tolist() == [0, 0, 3, 3, 6]


def test_blocks_moves_elements_to_a_new_last_axis_and_pads_with_zeros() -> None:
    x = np.arange(10, dtype=np.float32).reshape(5, 2) + 1
    split = blocks(x, PerBlock(0, 2))
    assert split.shape == (3, 2, 2)
    assert split[:, 0].tolist() == [[1, 3], [5, 7], [9, 0]]
    other = blocks(x.T, PerBlock(1, 2))
    assert np.array_equal(other, np.moveaxis(split, 1, 0))


# -- oracle: ONNX Runtime's QuantizeLinear-21 and DequantizeLinear-21


def ort_kernels(x: np.ndarray, qparams: QParams) -> tuple[np.ndarray, np.ndarray]:
    """Integers (as int32) and what DequantizeLinear makes of them."""
    from edgeq.runtime import open_session, session_options

    granularity, attributes = qparams.spec.granularity, {}
    if isinstance(granularity, PerAxis):
        attributes = {"axis": granularity.axis}
    elif isinstance(granularity, PerBlock):
        attributes = {"axis": granularity.axis, "block_size": granularity.size}
    proto = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
                helper.make_node("Cast", ["q"], ["i"], to=TensorProto.INT32),
                helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
            ],
            "oracle",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
            [
                helper.make_tensor_value_info("i", TensorProto.INT32, x.shape),
                helper.make_tensor_value_info("y", TensorProto.FLOAT, x.shape),
            ],
            [numpy_helper.from_array(qparams.scale, "s"), numpy_helper.from_array(qparams.zero_point, "z")],
        ),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    import onnx_ir as ir

    with open_session(ir.from_proto(proto), session_options(threads=1, optimization="none")) as session:
        integers, restored = session.run(["i", "y"], {"x": x})
    return integers, restored


def awkward(rng: np.random.Generator, scale: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Exact ties, values just beside them, saturating values, tiny values and signed zeros."""
    levels = rng.integers(-300, 300, shape) + rng.choice([0.0, 0.5, 0.25], shape)
    x = (levels.astype(np.float32) * scale).astype(np.float32)
    step = rng.choice([-1, 0, 1], shape)
    x = np.where(step == 0, x, np.nextafter(x, np.where(step > 0, np.inf, -np.inf).astype(np.float32)))
    x = np.where(rng.random(shape) < 0.05, rng.choice([1e8, -1e8, 1e-30, -0.0], shape), x)
    return x.astype(np.float32)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int4", "uint4"])
@pytest.mark.parametrize("granularity", [PerTensor(), PerAxis(0), PerAxis(1), PerBlock(0, 4), PerBlock(1, 16)], ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_bit_for_bit_as_onnx_runtime(dtype: str, granularity: Granularity, seed: int) -> None:
    rng, shape, kind = np.random.default_rng(seed), (22, 37), IntType.parse(dtype)
    if isinstance(granularity, PerTensor):
        size: tuple[int, ...] = ()
    elif isinstance(granularity, PerAxis):
        size = (shape[granularity.axis],)
    else:
        size = tuple(-(-n // granularity.size) if i == granularity.axis else n for i, n in enumerate(shape))
    scale = np.asarray(rng.choice([0.1, 0.25, 1 / 3, 0.007, 1.7e-5], size) * rng.uniform(0.5, 2, size), np.float32)
    zero = np.asarray(rng.integers(kind.qmin, kind.qmax + 1, size)).astype(np.float64)
    qparams = params(scale, zero, dtype, granularity)
    x = awkward(rng, expand(scale, qparams.spec, shape), shape)
    integers, restored = ort_kernels(x, qparams)
    ours = quantize(x, qparams)
    np.testing.assert_array_equal(ours.astype(np.int32), integers)
    np.testing.assert_array_equal(dequantize(ours, qparams), restored)


# -- properties

SYMMETRIES = [True, False]


@pytest.mark.parametrize(
    ("kind", "symmetric"), list(itertools.product(ALL_TYPES, SYMMETRIES)), ids=lambda v: getattr(v, "name", str(v))
)
@pytest.mark.parametrize("granularity", [PerTensor(), PerAxis(1), PerBlock(0, 8)], ids=str)
def test_error_is_at_most_half_a_step_and_zero_is_exact(
    kind: IntType, symmetric: bool, granularity: Granularity
) -> None:
    rng = np.random.default_rng(kind.bits * 2 + symmetric)
    spec = TensorSpec(kind, symmetric, granularity)
    for _ in range(10):
        x = (rng.standard_normal((21, 6)) * 10 ** rng.uniform(-4, 4) + rng.uniform(-3, 3)).astype(np.float32)
        x[rng.random(x.shape) < 0.1] = 0
        if isinstance(granularity, PerTensor):
            lo, hi = x.min(), x.max()
        elif isinstance(granularity, PerAxis):
            lo, hi = x.min(axis=0), x.max(axis=0)
        else:
            lo, hi = blocks(x, granularity).min(axis=-1), blocks(x, granularity).max(axis=-1)
        qparams = range_to_qparams(lo, hi, spec)
        scale = expand(qparams.scale, spec, x.shape).astype(np.float64)
        zero = expand(qparams.zero_point.astype(np.float64), spec, x.shape)
        first, last = (kind.qmin - zero) * scale, (kind.qmax - zero) * scale
        inside = (x >= first) & (x <= last)
        error = np.abs(x.astype(np.float64) - fake_quantize(x, qparams))
        slack = 1 + 4e-7 * 2.0**kind.bits  # x / scale is rounded to float32, too
        assert (error <= scale / 2 * slack)[inside].all()
        # Rounding the zero point may move the range by half a step, never more.
        assert (error <= scale * slack).all()
        assert (fake_quantize(np.zeros_like(x), qparams) == 0).all()
        assert not np.signbit(qparams.scale).any()
        assert np.array_equal(fake_quantize(x, qparams), fake_quantize(fake_quantize(x, qparams), qparams))


def test_quantize_is_monotonic() -> None:
    x = np.sort(np.random.default_rng(0).standard_normal(5000)).astype(np.float32)
    for kind in ALL_TYPES:
        q = quantize(x, range_to_qparams(-2.0, 1.0, TensorSpec(kind, False))).astype(np.int64)
        assert (np.diff(q) >= 0).all()


@pytest.mark.parametrize("kind", ALL_TYPES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("symmetric", SYMMETRIES)
def test_a_reduced_type_uses_half_of_the_levels_around_its_middle(kind: IntType, symmetric: bool) -> None:
    if kind.bits == 2:
        return
    spec = TensorSpec(kind, symmetric, reduced=True)
    x = np.linspace(-3, 5, 999, dtype=np.float32)
    used = quantize(x, range_to_qparams(-3.0, 5.0, spec)).astype(np.int64) - spec.middle
    assert used.min() >= -(2 ** (kind.bits - 2))
    assert used.max() == 2 ** (kind.bits - 2) - 1
    beyond = quantize(np.float32([-1e9, 1e9]), range_to_qparams(-3.0, 5.0, spec)).astype(np.int64) - spec.middle
    assert beyond.tolist() == [-(2 ** (kind.bits - 2)), 2 ** (kind.bits - 2) - 1]


@pytest.mark.parametrize("symmetric", SYMMETRIES)
def test_the_least_power_of_two_that_covers_the_range(symmetric: bool) -> None:
    spec = TensorSpec(IntType(8, True), symmetric, power_of_two=True)
    for lo, hi in [(-1.0, 0.9), (-1e-30, 0), (-300.0, 2.0), (0.0, 6.0), (-127 / 1024, 0.0)]:
        qparams, free = range_to_qparams(lo, hi, spec), range_to_qparams(lo, hi, TensorSpec(spec.dtype, symmetric))
        mantissa, _ = np.frexp(qparams.scale)
        assert mantissa == 0.5
        assert free.scale <= qparams.scale < 2 * free.scale
    assert float(range_to_qparams(0.0, np.float32(6.35), TensorSpec(IntType(8, True), True, power_of_two=True)).scale) \
        == 1 / 16  # fmt: skip
    exact = range_to_qparams(-127 / 1024, 0.0, TensorSpec(IntType(8, True), True, power_of_two=True))
    assert float(exact.scale) == 1 / 1024


# -- range_to_qparams


@pytest.mark.parametrize(
    ("dtype", "symmetric", "lo", "hi", "scale", "zero"),
    [
        ("uint8", False, 0.0, 255.0, 1.0, 0),
        ("int8", False, 0.0, 255.0, 1.0, -128),
        ("uint8", False, -127.5, 127.5, 1.0, 128),  # 127.5 ties to even
        ("uint8", False, 51.0, 255.0, 1.0, 0),  # zero is always inside
        ("uint8", False, -255.0, -51.0, 1.0, 255),
        ("int8", True, -1.0, 127.0, 1.0, 0),  # [-127, 127]: -128 is not used
        ("int8", True, -254.0, 0.0, 2.0, 0),
        ("uint8", True, -127.0, 5.0, 1.0, 128),
        ("int4", True, -7.0, 3.0, 1.0, 0),
        ("int2", True, -3.0, 1.0, 3.0, 0),
        ("uint16", False, 0.0, 65535.0, 1.0, 0),
    ],
)
def test_known_ranges(dtype, symmetric, lo, hi, scale, zero) -> None:
    qparams = range_to_qparams(lo, hi, TensorSpec(IntType.parse(dtype), symmetric))
    assert (float(qparams.scale), int(qparams.zero_point)) == (scale, zero)


def test_a_dead_range_gets_the_smallest_useful_scale() -> None:
    for symmetric in SYMMETRIES:
        qparams = range_to_qparams(0.0, 0.0, TensorSpec(IntType(8, False), symmetric))
        assert qparams.scale == SCALE_FLOOR
        assert fake_quantize(np.zeros(3, np.float32), qparams).tolist() == [0, 0, 0]
    mixed = range_to_qparams(
        np.array([0.0, -1.0]), np.array([0.0, 1.0]), TensorSpec(IntType(8, True), True, PerAxis(0))
    )
    assert mixed.scale[0] == SCALE_FLOOR
    assert mixed.scale[1] == np.float32(1 / 127)


def test_small_integer_types_are_stored_as_ml_dtypes() -> None:
    q = quantize(np.array([-1.0, 1.0], np.float32), params(1.0, 0, "int4"))
    assert q.dtype == ml_dtypes.int4
    assert q.nbytes == 2  # packed on saving only
