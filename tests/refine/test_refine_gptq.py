"""GPTQ against its textbook form and against all roundings there are; layers on the grid; real layers."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from rounding_cases import best_of_all, covering, nearest, problem, spec
from small_models import parse, weights

from edgeq.affine import fake_quantize, quantize
from edgeq.pairs import multiplied_rows
from edgeq.qtypes import IntType, PerAxis, PerBlock, PerTensor, QParams, TensorSpec
from edgeq.stages.choose.weights import weight_qparams
from edgeq.stages.refine.rounding import gptq, observe, quadratic, round_layer, weight_matrix
from edgeq.stages.refine.rounding.limits import Limits
from edgeq.stages.refine.rounding.quadratic import output_error

SHAPES = {"dense": (1, 6, 40), "grouped": (3, 4, 18), "depthwise": (8, 1, 9), "over a block": (1, 3, 150)}


def textbook(target: np.ndarray, gram: np.ndarray, scale: np.ndarray, form: TensorSpec) -> np.ndarray:
    """Equations 2 and 3 of the paper for one group, with the inverse updated after each column."""
    order = np.argsort(-np.diagonal(gram), kind="stable")
    left, weights_left, levels = list(order), target.copy(), np.zeros_like(target)
    inverse = np.linalg.inv(gram)
    for column in order:
        level = np.clip(np.rint(weights_left[:, column] / scale[:, 0]), form.qmin, form.qmax)
        error = (weights_left[:, column] - level * scale[:, 0]) / inverse[column, column]
        levels[:, column] = level
        left.remove(column)
        weights_left[:, left] -= error[:, None] * inverse[column, left]
        inverse = inverse - np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return levels


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_levels_are_those_of_the_textbook(shape: str, bits: int) -> None:
    found, form = problem(*SHAPES[shape]), spec(bits)
    scale = covering(found, form)
    expected = np.stack([textbook(found.target[g], found.gram[g], scale[g], form) for g in range(len(scale))])
    np.testing.assert_array_equal(gptq(found, scale, form), expected)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_error_is_below_that_of_rounding_to_nearest(shape: str, bits: int) -> None:
    found, form = problem(*SHAPES[shape]), spec(bits)
    scale = covering(found, form)
    plain = found.cost(nearest(found, scale, form) * scale).sum()
    assert found.cost(gptq(found, scale, form) * scale).sum() < 0.8 * plain


def test_it_comes_near_the_best_of_all_roundings() -> None:
    form = spec(2)
    shares = []
    for seed in range(5):
        found = problem(4, 3, 6, seed=seed)
        scale = covering(found, form) * 0.6
        least, cost = best_of_all(found, scale, form), found.cost(gptq(found, scale, form) * scale)
        plain = found.cost(nearest(found, scale, form) * scale)
        assert (cost >= least * (1 - 1e-9)).all()
        shares.append([cost.sum() / least.sum(), plain.sum() / least.sum()])
    reached, plainly = np.mean(shares, axis=0)
    assert reached < 1.7 < plainly


@pytest.mark.parametrize(
    "form", [spec(8), spec(8, reduced=True), spec(4), spec(2), TensorSpec(IntType(8, False), True)]
)
def test_levels_stay_within_the_type(form: TensorSpec) -> None:
    found = problem(2, 4, 30)
    scale = covering(found, form) * 0.2  # most weights are clipped
    levels = gptq(found, scale, form)
    assert levels.min() == form.qmin - form.middle
    assert levels.max() == form.qmax - form.middle


LAYERS = {
    "Conv": ("Conv<pads=[1,1,1,1], group=2>(x, w)", (1, 8, 9, 9), (6, 4, 3, 3), PerAxis(0)),
    "depthwise": ("Conv<pads=[1,1,1,1], group=8>(x, w)", (1, 8, 9, 9), (8, 1, 3, 3), PerAxis(0)),
    "ConvTranspose": ("ConvTranspose<group=2>(x, w)", (1, 8, 5, 5), (8, 3, 2, 2), PerAxis(1)),
    "per tensor": ("Conv(x, w)", (1, 8, 9, 9), (6, 8, 3, 3), PerTensor()),
    "MatMul": ("MatMul(x, w)", (3, 40, 70), (70, 5), PerAxis(1)),
    "MatMul in blocks": ("MatMul(x, w)", (3, 40, 70), (70, 5), PerBlock(0, 32)),
    "Gemm": ("Gemm(x, w)", (90, 32), (32, 5), PerAxis(1)),
    "Gemm, transposed": ("Gemm<transB=1>(x, w)", (90, 32), (5, 32), PerAxis(0)),
    "Gemm in blocks": ("Gemm<transB=1>(x, w)", (90, 32), (5, 32), PerBlock(1, 16)),
}


def layer(case: str, bits: int, **more: bool):
    text, data, shape, granularity = LAYERS[case]
    weight = weights(*shape, seed=1)
    node = next(iter(parse(f"g (float[{','.join(map(str, data))}] x) => (float y) {{ y = {text} }}", w=weight).graph))
    rng, seen = np.random.default_rng(0), None
    mixed = rng.standard_normal((data[-1], data[-1]))
    for _ in range(4):
        x = (rng.standard_normal(data) @ mixed).astype(np.float32) + np.float32(1)
        seen = observe(node, x, x + np.float32(0.1) * rng.standard_normal(data).astype(np.float32), seen)
    assert seen is not None
    return node, weight, weight_qparams(weight, spec(bits, granularity, **more)), seen


@pytest.mark.parametrize(("case", "bits", "scales"), product(LAYERS, (8, 4, 2), (False, True)))
def test_the_stored_integers_are_the_rounded_ones(case: str, bits: int, scales: bool) -> None:
    """``quantize`` finds the levels again, and dequantizing them gives the weight that was rounded."""
    node, weight, qparams, seen = layer(case, bits)
    for method in ("gptq", "comq", "gptq+comq"):
        found = round_layer(node, weight, qparams, seen, method=method, scales=scales, damping=0.01)  # type: ignore[arg-type]
        assert found.weight.dtype == np.float32
        assert found.weight.shape == weight.shape
        assert found.qparams.scale.shape == qparams.scale.shape
        np.testing.assert_array_equal(fake_quantize(found.weight, found.qparams), found.weight)
        levels = quantize(found.weight, found.qparams).astype(int)
        assert levels.min() >= qparams.spec.qmin
        assert levels.max() <= qparams.spec.qmax
        assert found.after < found.before
        if not scales:
            np.testing.assert_array_equal(found.qparams.scale, qparams.scale)
        problem_here = quadratic(weight_matrix(node, weight), seen)
        assert problem_here.cost(weight_matrix(node, found.weight)).sum() == pytest.approx(found.after, rel=1e-4)


@pytest.mark.parametrize(("case", "bits"), product(("Conv", "depthwise", "MatMul", "MatMul in blocks"), (8, 4, 2)))
def test_the_error_of_the_outputs_on_other_samples(case: str, bits: int) -> None:
    """It falls where inputs depend on each other, as in the rows of MatMul here, and rounding matters.

    Elsewhere there is little to be gained (the inputs' own noise is most of the error at 8 bits, and the inputs
    of the kernels hardly depend on each other): there it must not rise by more than a hundredth.
    """
    node, weight, qparams, seen = layer(case, bits)
    found = round_layer(node, weight, qparams, seen)
    rng, data, floats, others = np.random.default_rng(7), LAYERS[case][1], None, None
    mixed = np.random.default_rng(0).standard_normal((data[-1], data[-1]))
    for _ in range(20):
        x = (rng.standard_normal(data) @ mixed).astype(np.float32) + np.float32(1)
        floats = observe(node, x, x, floats)
        others = observe(node, x, x + np.float32(0.1) * rng.standard_normal(data).astype(np.float32), others)
    assert floats is not None
    assert others is not None
    matrix = weight_matrix(node, weight).astype(np.float64)
    covariance = floats.gram - floats.mean_f[:, :, None] * floats.mean_f[:, None, :]
    power = ((matrix @ covariance) * matrix).sum()
    plain, rounded = (
        power + output_error(matrix, weight_matrix(node, w).astype(np.float64), others).sum()
        for w in (fake_quantize(weight, qparams), found.weight)
    )
    assert rounded < (0.9 if case.startswith("MatMul") and bits < 8 else 1.01) * plain


def test_a_layer_whose_bias_stays_is_fitted_with_its_means() -> None:
    node, weight, qparams, seen = layer("MatMul", 4)
    found = round_layer(node, weight, qparams, seen, bias=False, damping=0.01)
    assert found.shift is None
    centered = round_layer(node, weight, qparams, seen, damping=0.01)
    matrix = weight_matrix(node, weight).astype(np.float64)
    errors = [
        output_error(matrix, weight_matrix(node, w.weight).astype(np.float64), seen, centered=False).sum()
        for w in (found, centered)
    ]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("case", ["Conv", "MatMul", "Gemm, transposed", "per tensor"])
def test_pairs_of_weights_keep_to_the_limit_of_the_kernel(case: str) -> None:
    node, weight, qparams, seen = layer(case, 8)
    weight = np.sign(weight) * (np.abs(weight) + 0.3 * np.abs(weight).max())  # free rounding would break the limit
    qparams = weight_qparams(weight, qparams.spec, clip=False)
    free = round_layer(node, weight, qparams, seen, damping=0.01)
    held = np.clip(fake_quantize(weight, qparams), -63 * qparams.scale.min(), 63 * qparams.scale.min())
    held = fake_quantize(held, qparams)
    kept = round_layer(node, weight, qparams, seen, damping=0.01, held=held, pair_limit=128)
    assert kept.after < kept.before
    largest = []
    for found in (free, kept):
        rows = multiplied_rows(node, quantize(found.weight, found.qparams).astype(int))
        assert rows is not None
        one, other = rows[:, : rows.shape[1] // 2 * 2 : 2], rows[:, 1::2]
        largest.append(np.abs((one + other)[np.sign(one) == np.sign(other)]).max())
    assert largest[0] > 128 >= largest[1]


def test_a_depthwise_convolution_has_no_pairs() -> None:
    node, weight, qparams, _ = layer("depthwise", 8)
    assert Limits.in_pairs(node, weight, qparams.spec, 128) == Limits.of(qparams.spec)


DEAD = ["no sample moves", "zero inputs", "equal inputs", "fewer rows than columns", "zero weights", "one sample"]


@pytest.mark.parametrize("case", DEAD)
@pytest.mark.parametrize("bits", [8, 2])
def test_what_the_samples_do_not_tell_does_no_harm(case: str, bits: int) -> None:
    node, weight, qparams, _ = layer("Gemm", bits)
    rng, seen = np.random.default_rng(0), None
    for _ in range(1 if case == "one sample" else 4):
        x = rng.standard_normal((3 if case == "fewer rows than columns" else 50, 32)).astype(np.float32)
        if case == "no sample moves":
            x[:] = 0.7
        elif case == "zero inputs":
            x[:, 3:20] = 0
        elif case == "equal inputs":
            x[:, 3:20] = x[:, :1]
        seen = observe(node, x, x, seen)
    assert seen is not None
    if case == "zero weights":
        weight = weight.copy()
        weight[:, 2] = 0
        qparams = weight_qparams(weight, qparams.spec)
    for damping, scales in product((None, 0.01), (False, True)):
        found = round_layer(node, weight, qparams, seen, damping=damping, scales=scales)
        assert np.isfinite(found.weight).all()
        assert found.shift is not None
        assert np.isfinite(found.shift).all()
        assert found.after <= found.before
        np.testing.assert_array_equal(fake_quantize(found.weight, found.qparams), found.weight)
        if case == "zero weights":
            assert (found.weight[:, 2] == 0).all()
        if case == "zero inputs" and damping is not None and not scales:
            np.testing.assert_array_equal(found.weight[3:20], fake_quantize(weight, qparams)[3:20])


def test_where_samples_are_few_the_damping_grows() -> None:
    """40 rows for 64 inputs: with little damping the rounding fits what those happen to be.

    What is chosen is chosen on 40 rows, too, and may lose a little; not what a fixed damping loses.
    """
    rng = np.random.default_rng(0)

    def inputs(count: int) -> tuple[np.ndarray, np.ndarray]:
        x = rng.standard_normal((count, 64)).astype(np.float32)
        return x, x + np.float32(0.2) * rng.standard_normal(x.shape).astype(np.float32)

    weight = weights(64, 16)
    node = next(iter(parse("g (float[10,64] x) => (float y) { y = MatMul(x, w) }", w=weight).graph))
    qparams = weight_qparams(weight, spec(4, PerAxis(1)))
    seen = None
    for _ in range(4):
        seen = observe(node, *inputs(10), seen)
    judged = observe(node, *inputs(5000), rows=5000)
    assert seen is not None
    matrix = weight_matrix(node, weight).astype(np.float64)

    def lost(rounded: np.ndarray) -> float:
        """How much more the outputs err than with rounding to nearest."""
        errors = [
            output_error(matrix, weight_matrix(node, w).astype(np.float64), judged).sum()
            for w in (rounded, fake_quantize(weight, qparams))
        ]
        return float(errors[0] - errors[1])

    fixed = lost(round_layer(node, weight, qparams, seen, damping=0.01).weight)
    chosen = round_layer(node, weight, qparams, seen)
    assert fixed > 0
    assert lost(chosen.weight) < 0.2 * fixed
    assert chosen.shift is not None


def test_blocks_along_the_outputs_and_asymmetric_weights_are_refused() -> None:
    node, weight, qparams, seen = layer("MatMul", 4)
    across = weight_qparams(weight, replace(qparams.spec, granularity=PerBlock(1, 16)))
    with pytest.raises(ValueError, match="not its inputs"):
        round_layer(node, weight, across, seen)
    moved = QParams(qparams.scale, (qparams.zero_point.astype(int) + 1).astype(qparams.zero_point.dtype), qparams.spec)
    with pytest.raises(ValueError, match="symmetric"):
        round_layer(node, weight, moved, seen)
