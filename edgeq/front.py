"""What a mix of formats was chosen from: the sensitivity of each group of nodes, and the points of the Pareto front."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["Front", "FrontPoint", "Method", "Sensitivity", "in_db"]


Method = Literal["measured", "taylor"]
"""How effects were found: each place quantized alone and run, or from gradients (``edgeq.torch_graph``)."""


def in_db(noise: float) -> float | None:
    """Noise over signal power as SQNR in dB; None where there is no noise at all."""
    import math

    return round(-10 * math.log10(noise), 3) if noise > 0 else None


class Sensitivity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One group of nodes that change format together, and what quantizing it alone does to the outputs.

    ``nodes`` are its nodes, ``ops`` their operators with a count, ``formats`` what the target offers, cheapest
    first. ``noise`` is the power of the error that the group in ``format`` adds, over that of the outputs'
    signal: its weights and the tensors that it computes (or reads from the model's inputs); ``share`` is its
    part (0 to 1) of the sum over all groups, ``db`` the SQNR of the outputs if nothing else were quantized (None:
    no error), ``divergence`` the Kullback-Leibler divergence of a classifier's answers then, in nats.
    """

    group: str
    nodes: tuple[str, ...]
    ops: dict[str, int]
    format: str
    formats: tuple[str, ...]
    noise: float
    share: float
    db: float | None
    divergence: float | None = None


class FrontPoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One choice of formats: what was predicted of it, what was measured, and why it was not taken (None: it was).

    ``formats`` counts groups by format; ``changed`` holds the nodes whose format is not the precision's.
    ``predicted_db`` is None without any error, and where only speed was looked at; ``predicted_ms`` is in ms of this
    machine if ``Front.measured``, else in units that only compare; sizes are of the model file. What else is None was
    not measured. ``speedup`` is over the float model, by CPU time.
    """

    number: int
    formats: dict[str, int]
    changed: dict[str, str]
    predicted_db: float | None
    predicted_ms: float
    predicted_bytes: int
    sqnr_db: float | None = None
    drop: float | None = None
    latency_ms: float | None = None
    speedup: float | None = None
    size_bytes: int | None = None
    why: str | None = None
    taken: bool = False

    @property
    def time(self) -> str:
        """What was measured of its time, in words; empty if nothing was."""
        if self.latency_ms is None:
            return ""
        part = "" if self.speedup is None else f", {1 / self.speedup:.2f} of float"
        return f"{self.latency_ms:.2f} ms{part}"


class Front(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The points between the precision as it is and the most exact mix, fastest first.

    ``measured`` says whether times come from this machine or from an estimate; ``sensitivity`` is sorted by noise,
    empty where only speed was looked at. ``method`` says how that noise was found.
    """

    precision: str
    measured: bool
    points: tuple[FrontPoint, ...]
    sensitivity: tuple[Sensitivity, ...] = ()
    method: Method = "measured"
