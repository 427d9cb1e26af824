"""The search of scales against the errors of outputs that are computed one by one."""

from __future__ import annotations

import numpy as np
import pytest
from rounding_cases import covering, moments, nearest, problem, spec

from edgeq.qtypes import PerBlock, PerTensor
from edgeq.stages.refine.rounding import Moments, comq, gptq, quadratic, sequential_mse
from edgeq.stages.refine.rounding.quadratic import columns


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_it_finds_the_candidate_with_the_least_error_of_outputs(bits: int) -> None:
    """The error here is measured on the rows themselves, with weights rounded one candidate after the other."""
    rng, form = np.random.default_rng(0), spec(bits)
    rows = rng.standard_normal((1, 500, 12)) @ rng.standard_normal((12, 12))
    seen = Moments.empty(1, 12)
    seen.add(rows, rows)
    matrix = rng.standard_normal((1, 5, 12))
    found = quadratic(matrix, seen, centered=False, damping=1e-9)
    start = covering(found, form)
    chosen = sequential_mse(found, start, form, candidates=30)
    largest = np.abs(matrix).max(axis=2, keepdims=True) / form.qmax
    tried = [start, *(largest * share for share in np.linspace(0.5 if bits == 8 else 0.25, 1.05, 30))]
    errors = []
    for scale in tried:
        scale = scale.astype(np.float32).astype(np.float64)
        rounded = np.clip(np.rint(matrix / scale), form.qmin, form.qmax) * scale
        errors.append(np.square((matrix - rounded) @ rows.swapaxes(1, 2)).mean(axis=2))
    rounded = nearest(found, chosen, form) * chosen
    reached = np.square((matrix - rounded) @ rows.swapaxes(1, 2)).mean(axis=2)
    np.testing.assert_allclose(reached, np.min(errors, axis=0), rtol=1e-4)


@pytest.mark.parametrize("inner", ["nearest", "comq", "gptq"])
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("granularity", ["channel", "tensor", "reduced"])
def test_it_never_costs_more_than_the_scale_it_is_given(inner: str, bits: int, granularity: str) -> None:
    found = problem(3, 4, 18)
    form = {"channel": spec(bits), "tensor": spec(bits, PerTensor()), "reduced": spec(8, reduced=True)}[granularity]
    scale = covering(found, form) * 0.9
    scale = (scale.max(keepdims=True) if granularity == "tensor" else scale).astype(np.float32).astype(np.float64)
    chosen = sequential_mse(found, scale, form, inner=inner)
    assert chosen.shape == scale.shape
    np.testing.assert_array_equal(chosen.astype(np.float32), chosen)

    def cost(at: np.ndarray) -> np.ndarray:
        levels = gptq(found, at, form) if inner == "gptq" else comq(found, at, form, sweeps=int(inner == "comq"))[1]
        each = found.cost(levels * at)
        return each.sum() if granularity == "tensor" else each

    assert (cost(chosen) <= cost(scale) * (1 + 1e-12)).all()
    if bits < 8:
        assert np.sum(cost(chosen)) < np.sum(cost(scale))


def test_what_the_rounding_can_make_good_is_judged_with_it() -> None:
    found, form = problem(1, 8, 40), spec(4)
    scale = covering(found, form)

    def reached(inner: str) -> float:
        chosen = sequential_mse(found, scale, form, inner=inner)
        return float(found.cost(gptq(found, chosen, form) * chosen).sum())

    assert reached("gptq") < reached("nearest")


def test_powers_of_two_stay_powers_of_two() -> None:
    found, form = problem(2, 4, 18), spec(4, power_of_two=True)
    scale = np.exp2(np.ceil(np.log2(covering(found, form))))
    chosen = sequential_mse(found, scale, form)
    np.testing.assert_array_equal(np.exp2(np.rint(np.log2(chosen))), chosen)
    assert (chosen <= scale).all()
    assert (chosen < scale).any()


def test_each_block_gets_a_scale_of_its_own() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((1, 5, 70)) * np.repeat([1.0, 0.1, 3.0], [32, 32, 6])
    found = quadratic(matrix, moments(1, 70))
    form = spec(4, PerBlock(0, 32))
    scale = np.repeat(covering(found, form), 3, axis=2)
    chosen = sequential_mse(found, scale, form)
    assert chosen.shape == (1, 5, 3)
    assert (chosen[:, :, 1] < chosen[:, :, 0]).all()
    assert (chosen[:, :, 0] < chosen[:, :, 2]).all()
    for at in (scale, chosen):
        levels = gptq(found, at, form)
        assert levels.min() >= form.qmin
        assert levels.max() <= form.qmax
    plain, better = (found.cost(gptq(found, at, form) * columns(at, form, 70)).sum() for at in (scale, chosen))
    assert better < plain / 2


def test_a_channel_of_zeros_keeps_a_legal_scale() -> None:
    matrix = np.random.default_rng(0).standard_normal((1, 3, 10))
    matrix[0, 1] = 0
    found, form = quadratic(matrix, moments(1, 10, noise=0.0)), spec(8)
    scale = np.maximum(covering(found, form), 2.0**-23)
    chosen = sequential_mse(found, scale, form)
    assert np.isfinite(chosen).all()
    assert (chosen > 0).all()
