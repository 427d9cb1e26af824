"""Numbers for people."""

from __future__ import annotations

import math

__all__ = ["number"]


def number(value: float | None, unit: str = "") -> str:
    """Three significant digits, ``n/a`` for None: 0.0123, 4.57, 1240, 97.3 %."""
    if value is None:
        return "n/a"
    if value == 0:
        text = "0"
    elif abs(value) >= 1000:
        text = f"{value:.0f}"
    else:
        digits = max(0, 2 - math.floor(math.log10(abs(value))))
        text = f"{value:.{min(digits, 6)}f}"
        text = text.rstrip("0").rstrip(".") if digits > 2 else text
    return f"{text}\N{NO-BREAK SPACE}{unit}" if unit else text
