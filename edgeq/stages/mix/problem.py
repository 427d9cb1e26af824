"""The choice of formats as numbers: what each choice adds in noise, time and bytes, and what it costs between two.

Noise is additive: quantization errors of different places are nearly uncorrelated, so that the power of the
output's error is the sum of what each place adds alone (Pandey et al. 2023, arXiv 2302.01382, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["FLOAT", "Link", "Option", "Problem", "Totals", "Unit", "total"]

FLOAT = 0
"""The domain of floats; integers of ``b`` bits have the domain ``b``."""


@dataclass(frozen=True)
class Option:
    """One format of a unit: its name, the domain of the tensors that it writes and reads, and what it adds by itself.

    ``noise`` is that of its weights (noise over signal power at the model's output), ``cost`` its time in ms,
    ``size`` the bytes of its weights.
    """

    name: str
    domain: int
    noise: float = 0.0
    cost: float = 0.0
    size: float = 0.0


@dataclass(frozen=True)
class Unit:
    """What changes format together: a group of nodes, with what may be chosen for it."""

    name: str
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Link:
    """One tensor between units: who writes it, who reads it, its noise by domain, and the cost of conversions.

    ``writer`` None is an input of the model, a float; ``fed_out`` says that the model's caller reads it, in float.
    The noise is that of the roughest domain that touches the tensor: a kernel of 16 bits that reads 8 bits
    gains nothing. ``convert`` holds the ms of turning it from one domain into another; what is missing is free.
    """

    tensor: str
    writer: int | None
    readers: tuple[int, ...]
    noise: Mapping[int, float] = field(default_factory=dict)
    convert: Mapping[tuple[int, int], float] = field(default_factory=dict)
    fed_out: bool = False


@dataclass(frozen=True)
class Problem:
    """All units and tensors, and what may not be chosen.

    ``needs``: if the first is not float, at least one of the second ones must not be, either. ``between``: if the
    first is float, what it reads and what it writes must not both be integers; the others are those that touch what
    it reads, and those that touch what it writes. ``base_cost`` and ``base_size`` are what no choice changes, in ms
    and bytes. ``byte_price`` is what a byte is worth to the solver, in ms.
    """

    units: tuple[Unit, ...]
    links: tuple[Link, ...] = ()
    needs: tuple[tuple[int, tuple[int, ...]], ...] = ()
    between: tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...] = ()
    base_cost: float = 0.0
    base_size: float = 0.0
    byte_price: float = 0.0

    def uniform(self, prefer: Sequence[str]) -> tuple[int, ...]:
        """For every unit the first of ``prefer`` that it has, else its first option."""
        chosen = []
        for unit in self.units:
            names = [option.name for option in unit.options]
            chosen.append(next((names.index(name) for name in prefer if name in names), 0))
        return tuple(chosen)


@dataclass(frozen=True)
class Totals:
    """What one choice comes to: noise over signal power, ms, and bytes."""

    noise: float
    cost: float
    size: float

    @property
    def price(self) -> float:
        """Time times size: a hundredth of the one is worth a hundredth of the other."""
        return self.cost * self.size


def total(problem: Problem, chosen: Sequence[int]) -> Totals:
    """Add everything up: ``chosen`` holds the index of one option for each unit."""
    options = [unit.options[index] for unit, index in zip(problem.units, chosen, strict=True)]
    noise = sum(option.noise for option in options)
    cost = problem.base_cost + sum(option.cost for option in options)
    for link in problem.links:
        written = FLOAT if link.writer is None else options[link.writer].domain
        read = {options[reader].domain for reader in link.readers} | ({FLOAT} if link.fed_out else set())
        noise += max((link.noise.get(domain, 0.0) for domain in read | {written}), default=0.0)
        cost += sum(link.convert.get((written, domain), 0.0) for domain in sorted(read) if domain != written)
    size = problem.base_size + sum(option.size for option in options)
    return Totals(noise, cost, size)
