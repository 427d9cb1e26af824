"""What is learned and how fast: the defaults by the width of the weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["Settings", "default_settings"]


@dataclass(frozen=True)
class Settings:
    """How one part is learned.

    ``iterations`` steps of Adam on ``batch`` samples each. The rates are relative: of the rounding variable, of the
    logarithm of scales, and of biases in units of what rounding the channel's weights changes in its output.
    ``pressure`` weighs the regularizer that drives shares to 0 or 1, in units of the error at the start and averaged
    over the weights of a layer; with too little of it, scales fit weights that the last step rounds away (measured:
    10 dB of a block of 4-bit weights). It is left out for the share ``warm_up`` of the iterations. ``stay`` (0 .. 1)
    moves the shares at the start from the float weight (0) to the nearest grid point (1): only what the data insists
    on is then rounded the other way. ``drop`` is QDrop's probability. ``window`` is the side, in cells of the
    smallest map, of the pieces that are looked at in one iteration, 0 for whole maps.
    """

    iterations: int
    batch: int = 8
    drop: float = 0.0
    rounding: bool = True
    activation_scales: bool = True
    weight_scales: bool = True
    biases: bool = True
    rounding_rate: float = 5e-2
    scale_rate: float = 3e-3
    bias_rate: float = 3e-2
    pressure: float = 30.0
    warm_up: float = 0.2
    stay: float = 0.5
    window: int = 14


def default_settings(bits: int, *, iterations: int | None = None) -> Settings:
    """Settings for weights of ``bits``, the width of most of them; ``iterations`` replaces the number of steps."""
    found = _EIGHT if bits >= 8 else _FEWER
    return found if iterations is None else replace(found, iterations=iterations)


_EIGHT = Settings(200, rounding_rate=0.01, scale_rate=1e-3, bias_rate=1e-2, pressure=100.0, stay=0.9)
"""With 8 bits the signal of a single rounding drowns in the noise of a few hundred batches: all but the clear cases
stay as they are. Scales and biases bring the most."""

_FEWER = Settings(250, rounding_rate=0.01, scale_rate=1e-3, bias_rate=1e-2, pressure=30.0, stay=0.9)
"""Small steps from where other methods have come to. A step of Adam is as long as its rate, however small the gradient:
from an optimum that GPTQ and searched ranges have found, steps of 0.05 for roundings and 0.003 for scales only lead
away (measured on the first block of EfficientNet-Lite0, W4A8, of 23.7 dB on check samples: to 25.4 with these)."""
