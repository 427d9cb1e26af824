"""AdaRound's rounding variable: every weight learns whether it is rounded down or up.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization", arXiv 2004.10568.
"""

from __future__ import annotations

import math

import torch
from torch import nn

__all__ = ["GAMMA", "ZETA", "SoftRounding", "beta_at", "rectified_sigmoid", "regularizer"]

ZETA, GAMMA = 1.1, -0.1
"""How far the sigmoid is stretched before it is cut, so that 0 and 1 are reached (below equation 23)."""


def rectified_sigmoid(variable: torch.Tensor) -> torch.Tensor:
    """``h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1)`` (equation 23), same shape."""
    return torch.clamp(torch.sigmoid(variable) * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)


def regularizer(share: torch.Tensor, beta: float) -> torch.Tensor:
    """``1 - |2h - 1|^beta`` (equation 24), averaged: 0 where every share is 0 or 1, 1 at a half."""
    return (1.0 - (2.0 * share - 1.0).abs().pow(beta)).mean()


def beta_at(progress: float, *, start: float = 20.0, end: float = 2.0, warm_up: float = 0.2) -> float | None:
    """The exponent of the regularizer at ``progress`` (0 .. 1); None while warming up: then it is left out.

    It falls by a cosine: first only what is almost decided is pushed on, at the end everything.
    """
    if progress < warm_up:
        return None
    done = (progress - warm_up) / (1.0 - warm_up)
    return end + 0.5 * (start - end) * (1.0 + math.cos(done * math.pi))


class SoftRounding(nn.Module):
    """A weight between the two grid points around it: ``s clip(floor(W / s) + h(V), lowest, highest)`` (equation 22).

    Args:
        weight: the float weight, float32 ``[...]``.
        scale: positive, broadcasts to ``weight``.
        lowest: the least level, counted from the zero point.
        highest: the largest level.
        start: the weight on the grid to begin with, such as GPTQ's; by default each share begins where ``h``
            gives the float weight. A start that is not one of the float weight's two neighbours becomes one of the
            two choices, and the other one is next to it on the side of the float weight.
        stay: 0 .. 1, how far the shares begin from there towards the nearest grid point.
        learn_rounding: False keeps the nearest level, or the start's.
        learn_scale: one factor for each scale is learned; levels stay, so it moves all weights of a channel.
    """

    scale: torch.Tensor
    floor: torch.Tensor

    def __init__(
        self,
        weight: torch.Tensor,
        scale: torch.Tensor,
        lowest: int,
        highest: int,
        *,
        start: torch.Tensor | None = None,
        stay: float = 0.0,
        learn_rounding: bool = True,
        learn_scale: bool = False,
    ) -> None:
        super().__init__()
        self.lowest, self.highest, self.learn_rounding = lowest, highest, learn_rounding
        levels = weight / scale
        floor = torch.floor(levels)
        share = levels - floor
        if start is not None:
            floor, share = _around(levels, torch.round(start / scale))
        # Half to even, as QuantizeLinear rounds: where nothing is learned, nothing may change.
        nearest = torch.round(levels) - floor if start is None else (share > 0.5).to(share.dtype)
        if not learn_rounding:
            floor, share = floor + nearest, torch.zeros_like(share)
        self.register_buffer("scale", scale)
        self.register_buffer("floor", floor)
        self.variable = nn.Parameter(_inverse(share + (nearest - share) * stay), requires_grad=learn_rounding)
        self.log_factor = nn.Parameter(torch.zeros_like(scale), requires_grad=learn_scale)

    def share(self) -> torch.Tensor:
        """``h(V)``, in 0 .. 1."""
        return rectified_sigmoid(self.variable)

    def current_scale(self) -> torch.Tensor:
        """The scale with what was learned, in the shape it was given."""
        return self.scale * torch.exp(self.log_factor)

    def forward(self, *, hard: bool = False) -> torch.Tensor:
        """The weight, softly rounded, or as it will be stored."""
        levels = self.floor
        if self.learn_rounding:
            share = self.share()
            levels = levels + ((share >= 0.5).to(levels.dtype) if hard else share)
        return self.current_scale() * torch.clamp(levels, self.lowest, self.highest)


def _inverse(share: torch.Tensor) -> torch.Tensor:
    """The variable whose rectified sigmoid is ``share``; 0 and 1 themselves would never move again."""
    inner = (share.clamp(0.01, 0.99) - GAMMA) / (ZETA - GAMMA)
    return torch.log(inner / (1.0 - inner))


def _around(levels: torch.Tensor, start: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The lower of the two choices that hold ``start`` and lie towards ``levels``, and a share close to ``start``."""
    floor = torch.where(levels >= start, start, start - 1)
    target = (levels - floor).clamp(0.0, 1.0)
    # Half-way between the float weight and the start: on the side of the start, and free to move.
    share = 0.5 * (target + (start - floor))
    return floor, torch.where(start > floor, share.clamp(0.51, 1.0), share.clamp(0.0, 0.49))
