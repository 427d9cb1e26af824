"""One format per unit under budgets: a mixed-integer linear program, solved exactly (HiGHS through scipy).

The terms between two units are products of two choices; each becomes a continuous variable that is bounded
from below by both (McCormick 1976), which is exact as its coefficient is never negative.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from edgeq.stages.mix.problem import FLOAT, Link, Problem, Totals, total

__all__ = ["cheapest", "solve"]

_NODES = 20_000
"""Branches that the solver looks at before it takes the best found; not a time, so that the answer stays the same."""

_TIE = 1e-4
"""Weight of the quantity that is not minimized: of two equal choices, the better one in it."""


def solve(
    problem: Problem,
    *,
    minimize: Literal["noise", "cost", "price"],
    max_noise: float = math.inf,
    max_cost: float = math.inf,
    max_size: float = math.inf,
    fixed: Mapping[int, int] | None = None,
) -> tuple[int, ...] | None:
    """The index of one option for each unit, or None where nothing keeps to the budgets.

    ``price`` is the cost with what the bytes are worth (``Problem.byte_price``). ``fixed`` sets some units. Where
    two choices have the same value, the one with less of the other quantity (noise, or else what is minimized
    beside it: the price) is taken, as far as a ten-thousandth of its range tells them apart.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    program = _Program(problem)
    noise, cost, size = program.noise, program.cost, program.size
    price = cost + problem.byte_price * size
    goal, other = (noise, price) if minimize == "noise" else (price if minimize == "price" else cost, noise)
    rows, limits = list(program.rows), list(program.limits)
    for values, budget in (
        (noise, max_noise),
        (cost, max_cost - problem.base_cost),
        (size, max_size - problem.base_size),
    ):
        if budget < math.inf:
            rows.append({index: value for index, value in enumerate(_scaled(values)) if value})
            limits.append(budget / _largest(values))
    low, high = np.zeros(program.count), np.full(program.count, np.inf)
    high[: program.choices] = 1.0
    for unit, option in (fixed or {}).items():
        low[program.at[unit] + option] = 1.0
    at = [(number, index) for number, row in enumerate(rows) for index in row]
    entries = [value for row in rows for value in row.values()]
    matrix = csr_array((entries, tuple(np.array(at, dtype=int).reshape(-1, 2).T)), shape=(len(rows), program.count))
    least = np.full(len(rows), -np.inf)
    least[: len(problem.units)] = 1.0  # exactly one option per unit
    found = milp(
        _scaled(goal) + _TIE * _scaled(other),
        integrality=np.arange(program.count) < program.choices,
        bounds=Bounds(low, high),
        constraints=[LinearConstraint(matrix, least, np.array(limits))],
        options={"node_limit": _NODES, "mip_rel_gap": 1e-5},
    )
    if found.x is None:
        return None
    ends = [*program.at[1:], program.choices]
    chosen = tuple(int(np.argmax(found.x[start:end])) for start, end in zip(program.at, ends, strict=True))
    return chosen if _within(total(problem, chosen), max_noise, max_cost, max_size) else None


def cheapest(
    problem: Problem, *, max_noise: float = math.inf, max_size: float = math.inf, rounds: int = 4
) -> tuple[int, ...] | None:
    """The choice with the least price, time times size, or None where nothing keeps to the budgets.

    A product is no linear program: its logarithm is concave, so that going to the optimum of the tangent where the
    last one was found never raises it (Yuille and Rangarajan 2003, "The concave-convex procedure", theorem 2).
    """
    best: tuple[int, ...] | None = None
    for _ in range(rounds):
        found = solve(problem, minimize="price", max_noise=max_noise, max_size=max_size)
        if found is None or (best is not None and total(problem, found).price >= total(problem, best).price):
            break
        best, values = found, total(problem, found)
        problem = replace(problem, byte_price=values.cost / max(values.size, 1.0))
    return best


def _largest(values: np.ndarray) -> float:
    """What the values are divided by, so that the solver's absolute tolerances mean the same for all."""
    return float(values.max(initial=0.0)) or 1.0


def _scaled(values: np.ndarray) -> np.ndarray:
    return values / _largest(values)


def _within(found: Totals, noise: float, cost: float, size: float) -> bool:
    """Whether the budgets are kept, but for the solver's tolerance."""
    return all(
        value <= budget + 1e-5 * abs(budget) + 1e-12
        for value, budget in ((found.noise, noise), (found.cost, cost), (found.size, size))
    )


@dataclass
class _Program:
    """Variables and rows ``sum(coefficients * x) <= limit``; the first rows say that each unit has one option.

    The variables: one per option of every unit, then one per term between units. ``at`` is where a unit's
    options begin, ``choices`` their number; ``noise``, ``cost`` and ``size`` hold a coefficient per variable.
    """

    problem: Problem
    at: list[int] = field(default_factory=list)
    choices: int = 0
    rows: list[dict[int, float]] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)
    values: list[tuple[float, float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for unit in self.problem.units:
            self.at.append(len(self.values))
            self.values += [(option.noise, option.cost, option.size) for option in unit.options]
            self._row({self.at[-1] + offset: 1.0 for offset in range(len(unit.options))}, 1.0)
        self.choices = len(self.values)
        for first, others in self.problem.needs:
            row = self._unlike(first, 1.0)
            for other in others:
                row.update(self._unlike(other, -1.0))
            self._row(row, 0.0)
        for first, before, behind in self.problem.between:
            alone = dict.fromkeys(self._in(first, FLOAT), 1.0)
            for one in before:
                for other in behind:
                    if one != other:
                        self._row({**alone, **self._unlike(one, 1.0), **self._unlike(other, 1.0)}, 2.0)
                    else:
                        self._row({**alone, **self._unlike(one, 1.0)}, 1.0)
        for link in self.problem.links:
            self._noise_of(link)
            self._conversions_of(link)
        self.noise, self.cost, self.size = np.array(self.values, dtype=np.float64).reshape(-1, 3).T
        self.count = len(self.values)

    def _row(self, coefficients: dict[int, float], limit: float) -> None:
        self.rows.append(coefficients)
        self.limits.append(limit)

    def _unlike(self, unit: int, sign: float) -> dict[int, float]:
        """The options of a unit that are not float."""
        options = self.problem.units[unit].options
        return {self.at[unit] + offset: sign for offset, o in enumerate(options) if o.domain != FLOAT}

    def _in(self, unit: int, domain: int) -> list[int]:
        """The options of a unit that are of a domain."""
        options = self.problem.units[unit].options
        return [self.at[unit] + offset for offset, option in enumerate(options) if option.domain == domain]

    def _noise_of(self, link: Link) -> None:
        """The tensor's noise is at least what each unit that touches it brings; in parts of the largest level."""
        largest = max(link.noise.values(), default=0.0)
        touching = sorted({*link.readers, *([] if link.writer is None else [link.writer])})
        if largest <= 0 or not touching:
            return
        term = len(self.values)
        self.values.append((largest, 0.0, 0.0))
        for unit in touching:
            options = self.problem.units[unit].options
            levels = {self.at[unit] + i: link.noise.get(o.domain, 0.0) / largest for i, o in enumerate(options)}
            self._row({**{index: level for index, level in levels.items() if level > 0}, term: -1.0}, 0.0)

    def _conversions_of(self, link: Link) -> None:
        """One variable per pair of domains: it is made once, however many readers want it."""
        for (written, read), cost in sorted(link.convert.items()):
            writing = [] if link.writer is None else self._in(link.writer, written)
            if cost <= 0 or written == read or (not writing and (link.writer is not None or written != FLOAT)):
                continue
            sides = [self._in(reader, read) for reader in link.readers if reader != link.writer]
            sides = [side for side in sides if side]
            given = 0.0 if link.writer is not None else 1.0  # an input of the model is written, whatever is chosen
            asked = link.fed_out and read == FLOAT
            if not sides and not asked:
                continue
            term = len(self.values)
            self.values.append((0.0, cost, 0.0))
            writes = dict.fromkeys(writing, 1.0)
            for side in sides:
                self._row({**writes, **dict.fromkeys(side, 1.0), term: -1.0}, 1.0 - given)
            if asked:
                self._row({**writes, term: -1.0}, -given)
