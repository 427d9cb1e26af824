"""AdaRound's variable, regularizer and schedule, beside the equations of the paper and a direct implementation."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgeq.stages.refine.learn.rounding import (  # noqa: E402
    GAMMA,
    ZETA,
    SoftRounding,
    beta_at,
    rectified_sigmoid,
    regularizer,
)


def test_the_rectified_sigmoid_reaches_both_ends() -> None:
    v = torch.tensor([-10.0, -3.0, 0.0, 3.0, 10.0])
    direct = np.clip(1 / (1 + np.exp(-v.numpy())) * 1.2 - 0.1, 0, 1)
    np.testing.assert_allclose(rectified_sigmoid(v).numpy(), direct, atol=1e-6)
    assert rectified_sigmoid(v)[0] == 0
    assert rectified_sigmoid(v)[-1] == 1


def test_the_regularizer_vanishes_where_all_is_decided() -> None:
    assert float(regularizer(torch.tensor([0.0, 1.0]), 20.0)) == 0
    assert float(regularizer(torch.tensor([0.5]), 2.0)) == 1
    share = torch.tensor([0.4], requires_grad=True)
    regularizer(share, 2.0).backward()
    assert share.grad is not None
    assert float(share.grad) > 0  # minimizing moves it down, to 0


def test_beta_falls_after_the_warm_up() -> None:
    assert beta_at(0.19) is None
    steps = [beta_at(t) for t in np.linspace(0.2, 1.0, 9)]
    assert steps[0] == pytest.approx(20)
    assert steps[-1] == pytest.approx(2)
    assert all(a > b for a, b in pairwise(steps))  # type: ignore[operator]


def test_rounding_starts_at_the_float_weight() -> None:
    weight = torch.tensor([[0.31, -0.27, 0.05, -0.44]])
    rounding = SoftRounding(weight, torch.tensor([[0.1]]), -8, 7)
    np.testing.assert_allclose(rounding().detach().numpy(), weight.numpy(), atol=2e-3)
    np.testing.assert_allclose(rounding(hard=True).detach().numpy(), [[0.3, -0.3, 0.1, -0.4]], atol=1e-6)


def test_levels_stay_within_the_type() -> None:
    rounding = SoftRounding(torch.tensor([5.0, -5.0]), torch.tensor(0.1), -8, 7)
    np.testing.assert_allclose(rounding(hard=True).detach().numpy(), [0.7, -0.8], atol=1e-6)


def test_a_start_two_levels_away_is_where_it_begins() -> None:
    weight, scale = torch.tensor([0.32, 0.32, 0.32]), torch.tensor(0.1)
    rounding = SoftRounding(weight, scale, -8, 7, start=torch.tensor([0.5, 0.1, 0.4]))
    np.testing.assert_allclose(rounding(hard=True).detach().numpy(), [0.5, 0.1, 0.4], atol=1e-6)
    np.testing.assert_allclose(rounding.floor.numpy(), [4, 1, 3])  # the other choice lies towards 0.32


def test_one_layer_agrees_with_a_direct_implementation() -> None:
    """Equations 21 to 25 written down for a matrix with hand-derived gradients and Adam, against the module."""
    random = np.random.default_rng(0)
    w = random.standard_normal((5, 12)).astype(np.float32)
    x = (random.standard_normal((64, 3)) @ random.standard_normal((3, 12)) + 0.3).astype(np.float32)
    s = np.abs(w).max(axis=1, keepdims=True) / 3
    rate, steps, pressure = 0.05, 150, 1.0
    direct = _direct_adaround(w.astype(np.float64), x.astype(np.float64), s.astype(np.float64), rate, steps, pressure)

    rounding = SoftRounding(torch.from_numpy(w), torch.from_numpy(s), -4, 3)
    optimizer = torch.optim.Adam([rounding.variable], lr=rate)
    data = torch.from_numpy(x)
    for step in range(steps):
        loss = (data @ (rounding() - torch.from_numpy(w)).T).square().mean()
        beta = beta_at(step / steps)
        if beta is not None:
            loss = loss + pressure * regularizer(rounding.share(), beta)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = np.round(rounding(hard=True).detach().numpy() / s)
    assert np.mean(found == direct) > 0.95  # float32 beside float64: one rounding may tip over
    nearest = np.clip(np.round(w / s), -4, 3)
    errors = [float(np.square(x @ (levels * s - w).T).mean()) for levels in (found, nearest)]
    assert errors[0] < 0.6 * errors[1]


def _direct_adaround(
    w: np.ndarray, x: np.ndarray, s: np.ndarray, rate: float, steps: int, pressure: float
) -> np.ndarray:
    floor = np.floor(w / s)
    share = np.clip(w / s - floor, 0.01, 0.99)
    v = -np.log((ZETA - GAMMA) / (share - GAMMA) - 1)
    first, second = np.zeros_like(v), np.zeros_like(v)
    for step in range(steps):
        sigmoid = 1 / (1 + np.exp(-v))
        h = np.clip(sigmoid * 1.2 - 0.1, 0, 1)
        slope = np.where((sigmoid * 1.2 - 0.1 >= 0) & (sigmoid * 1.2 - 0.1 <= 1), 1.2 * sigmoid * (1 - sigmoid), 0)
        level = floor + h
        inside = (level >= -4) & (level <= 3)
        difference = x @ (s * np.clip(level, -4, 3) - w).T
        gradient = 2 / difference.size * (difference.T @ x) * s * inside * slope
        done = (step / steps - 0.2) / 0.8
        if done >= 0:
            beta = 2 + 9 * (1 + np.cos(np.pi * done))
            d = 2 * h - 1
            gradient += pressure * -beta * np.abs(d) ** (beta - 1) * np.sign(d) * 2 / v.size * slope
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        v -= rate * (first / (1 - 0.9 ** (step + 1))) / (np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-8)
    h = np.clip(1.2 / (1 + np.exp(-v)) - 0.1, 0, 1)
    return np.clip(floor + (h >= 0.5), -4, 3)
