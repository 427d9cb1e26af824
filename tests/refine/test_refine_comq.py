"""COMQ: never worse than its start, at rest where no single level helps, and near the best of all roundings."""

from __future__ import annotations

import numpy as np
import pytest
from rounding_cases import best_of_all, covering, nearest, problem, spec

from edgeq.qtypes import PerBlock, PerTensor
from edgeq.stages.refine.rounding import comq, gptq
from edgeq.stages.refine.rounding.limits import Limits
from edgeq.stages.refine.rounding.quadratic import Quadratic, columns

SHAPES = {"dense": (1, 6, 40), "grouped": (3, 4, 18), "depthwise": (8, 1, 9), "over a block": (1, 3, 150)}


def cost(found: Quadratic, scale: np.ndarray, levels: np.ndarray, block: int = 0) -> np.ndarray:
    form = spec(8, PerBlock(0, block)) if block else spec()
    return found.cost(levels * columns(scale, form, levels.shape[2]))


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("start", ["nearest", "gptq", "random"])
@pytest.mark.parametrize("scales", [False, True])
def test_no_channel_costs_more_than_its_start(shape: str, bits: int, start: str, scales: bool) -> None:
    found, form = problem(*SHAPES[shape]), spec(bits)
    scale = covering(found, form)
    levels = {
        "nearest": nearest(found, scale, form),
        "gptq": gptq(found, scale, form),
        "random": np.random.default_rng(0).integers(form.qmin, form.qmax + 1, found.target.shape),
    }[start]
    before = cost(found, scale, levels)
    for sweeps in (0, 1, 3):
        new_scale, new = comq(found, scale, form, start=levels, sweeps=sweeps, scales=scales)
        assert (cost(found, new_scale, new) <= before * (1 + 1e-9)).all()
        assert new.min() >= form.qmin
        assert new.max() <= form.qmax
        np.testing.assert_array_equal(new_scale.astype(np.float32), new_scale)
    if start != "gptq":
        assert cost(found, new_scale, new).sum() < 0.8 * before.sum()


@pytest.mark.parametrize("shape", SHAPES)
def test_at_rest_no_single_level_helps(shape: str) -> None:
    found, form = problem(*SHAPES[shape]), spec(4)
    scale = covering(found, form)
    _, levels = comq(found, scale, form, sweeps=200)
    least = cost(found, scale, levels)
    for column in range(levels.shape[2]):
        for move in (-1, 1):
            other = levels.copy()
            other[:, :, column] = np.clip(other[:, :, column] + move, form.qmin, form.qmax)
            assert (cost(found, scale, other) >= least * (1 - 1e-9)).all()


def test_it_comes_near_the_best_of_all_roundings() -> None:
    form, shares = spec(2), []
    for seed in range(5):
        found = problem(4, 3, 6, seed=seed)
        scale = covering(found, form) * 0.6
        least = best_of_all(found, scale, form)
        row = []
        for start in (None, gptq(found, scale, form)):
            _, levels = comq(found, scale, form, start=start)
            reached = cost(found, scale, levels)
            assert (reached >= least * (1 - 1e-9)).all()
            row.append(reached.sum() / least.sum())
        shares.append(row)
    alone, behind_gptq = np.mean(shares, axis=0)
    assert alone < 2
    assert behind_gptq < 1.4


@pytest.mark.parametrize("granularity", ["channel", "tensor", "block"])
def test_the_scale_is_the_best_for_the_levels(granularity: str) -> None:
    """Of the last block, that is: when it is set, those before it are set already."""
    found = problem(1, 5, 40)
    form = {"channel": spec(4), "tensor": spec(4, PerTensor()), "block": spec(4, PerBlock(0, 16))}[granularity]
    scale = covering(found, spec(4))
    scale = scale.max(axis=1, keepdims=True) if granularity == "tensor" else scale
    scale = np.repeat(scale, 3, axis=2) if granularity == "block" else scale
    _, levels = comq(found, scale, form, sweeps=1)  # the same sweep comes before the refit
    block = 16 if granularity == "block" else 0
    refitted, kept = comq(found, scale, form, sweeps=1, scales=True)
    np.testing.assert_array_equal(kept, levels)
    assert cost(found, refitted, levels, block).sum() < cost(found, scale, levels, block).sum()
    for factor in (0.999, 1.001):
        other = refitted.copy()
        other[:, :, -1] *= factor
        assert cost(found, other, levels, block).sum() > cost(found, refitted, levels, block).sum()


@pytest.mark.parametrize("form", [spec(4, power_of_two=True), spec(4, PerBlock(0, 16, scale_bits=4))])
def test_scales_that_are_not_free_stay(form) -> None:
    found = problem(1, 5, 32)
    scale = np.exp2(np.ceil(np.log2(covering(found, form))))
    scale = np.repeat(scale, 2, axis=2) if isinstance(form.granularity, PerBlock) else scale
    kept, _ = comq(found, scale, form, scales=True)
    np.testing.assert_array_equal(kept, scale)


def test_pairs_keep_to_their_limit_from_any_start_that_does() -> None:
    found, form = problem(2, 4, 20), spec(8)
    scale = covering(found, form)
    _, free = comq(found, scale, form)
    tight = Limits(form.qmin, form.qmax, np.arange(20) ^ 1, 60)
    assert tight.broken(free)
    _, levels = comq(found, scale, form, limits=tight)
    assert not tight.broken(levels)
    assert not tight.broken(gptq(found, scale, form, limits=tight))
