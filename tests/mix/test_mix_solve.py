"""The solver against trying everything."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from edgeq.stages.mix.problem import FLOAT, Link, Option, Problem, Totals, Unit, total
from edgeq.stages.mix.solve import cheapest, solve


def random_problem(seed: int, units: int = 6) -> Problem:
    """Chains with branches, two or three options each, noises over many orders of magnitude."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(units):
        options = [
            Option("w8a8", 8, 10 ** rng.uniform(-6, -1), rng.uniform(0.1, 1), 100.0),
            Option("float", FLOAT, 0.0, rng.uniform(0.5, 3), 400.0),
        ]
        if rng.random() < 0.5:
            options.insert(1, Option("w8a16", 16, options[0].noise, rng.uniform(0.2, 2), 100.0))
        if rng.random() < 0.3:
            options.append(Option("w4", FLOAT, 10 ** rng.uniform(-4, -1), rng.uniform(0.5, 3), 50.0))
        made.append(Unit(f"u{number}", tuple(options)))
    links = [Link("in", None, (0, 1), {8: 10 ** rng.uniform(-6, -2)}, {(FLOAT, 8): 0.3, (FLOAT, 16): 0.3})]
    for number in range(units):
        readers = tuple(int(r) for r in np.unique(rng.integers(number + 1, units, 2))) if number + 1 < units else ()
        eight = 10 ** rng.uniform(-6, -1)
        costs = {(a, b): rng.uniform(0, 0.5) for a in (FLOAT, 8, 16) for b in (FLOAT, 8, 16) if a != b}
        noise = {8: eight, 16: eight / 65536}
        links.append(Link(f"t{number}", number, readers, noise, costs, fed_out=not readers or rng.random() < 0.2))
    first, second = rng.choice(range(2, units), 2, replace=False).tolist()
    needs = ((first, (first - 1,)), (second, (second - 1, second - 2)))
    between = ((2, (1, 0), (3, 4)), (units - 2, (0,), (0, units - 1)))
    return Problem(tuple(made), tuple(links), needs, between, base_cost=0.7, base_size=10.0, byte_price=0.003)


def valued(problem: Problem, found: Totals, minimize: str) -> float:
    """What is minimized: the solver's ``price`` is linear, that of ``cheapest`` the product."""
    if minimize == "price":
        return found.cost + problem.byte_price * found.size
    return found.price if minimize == "product" else float(getattr(found, minimize))


def brute_force(problem: Problem, minimize: str, noise: float, cost: float, size: float) -> float | None:
    """The least value of what keeps to the budgets."""
    best = None
    for chosen in itertools.product(*(range(len(unit.options)) for unit in problem.units)):
        domains = [unit.options[i].domain for unit, i in zip(problem.units, chosen, strict=True)]
        if any(domains[a] != FLOAT and all(domains[b] == FLOAT for b in others) for a, others in problem.needs):
            continue
        if any(
            domains[a] == FLOAT
            and any(domains[b] != FLOAT for b in before)
            and any(domains[b] != FLOAT for b in behind)
            for a, before, behind in problem.between
        ):
            continue
        found = total(problem, chosen)
        if found.noise <= noise and found.cost <= cost and found.size <= size:
            value = valued(problem, found, minimize)
            best = value if best is None else min(best, value)
    return best


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("minimize", ["noise", "cost", "price"])
def test_nothing_is_better_than_what_the_solver_finds(seed: int, minimize: str) -> None:
    problem = random_problem(seed)
    low = total(problem, problem.uniform(["w8a8"]))
    budgets = {
        "max_noise": low.noise * 0.5 if minimize != "noise" else math.inf,
        "max_cost": low.cost * 1.3 if minimize == "noise" else math.inf,
        "max_size": low.size * 2,
    }
    best = brute_force(problem, minimize, *budgets.values())
    found = solve(problem, minimize=minimize, **budgets)  # type: ignore[arg-type]
    if best is None:
        assert found is None
        return
    assert found is not None
    value = valued(problem, total(problem, found), minimize)
    span = max(valued(problem, total(problem, problem.uniform([n])), "price") for n in ("w8a8", "float"))
    # The tie-breaker may cost a ten-thousandth of the range.
    assert value == pytest.approx(best, rel=1e-3, abs=3e-4 * (low.noise if minimize == "noise" else span))


def test_the_least_product_of_time_and_size_is_found_nearly_always() -> None:
    found_best = 0
    for seed in range(25):
        problem = random_problem(seed)
        noise = total(problem, problem.uniform(["w8a8"])).noise * 0.5
        best = brute_force(problem, "product", noise, math.inf, math.inf)
        found, linear = cheapest(problem, max_noise=noise), solve(problem, minimize="price", max_noise=noise)
        if best is None or found is None or linear is None:
            assert best is found is linear is None
            continue
        price = total(problem, found).price
        assert price <= total(problem, linear).price
        assert total(problem, found).noise <= noise * (1 + 1e-4)
        assert price <= best * 1.25, "a tangent may lead to a neighbour of the optimum, not away from it"
        found_best += price <= best * 1.001
    assert found_best >= 20


def test_the_totals_are_what_a_hand_adds_up() -> None:
    problem = Problem(
        (
            Unit("a", (Option("w8a8", 8, 0.01, 1.0, 10.0), Option("float", FLOAT, 0.0, 3.0, 40.0))),
            Unit("b", (Option("w8a8", 8, 0.02, 2.0, 20.0), Option("float", FLOAT, 0.0, 5.0, 80.0))),
        ),
        (
            Link("x", None, (0,), {8: 0.001}, {(FLOAT, 8): 0.5}),
            Link("t", 0, (1,), {8: 0.005}, {(8, FLOAT): 0.25, (FLOAT, 8): 0.75}),
            Link("y", 1, (), {8: 0.003}, {(8, FLOAT): 0.125}, fed_out=True),
        ),
        base_cost=1.0,
        base_size=5.0,
    )
    both = total(problem, (0, 0))
    assert (both.noise, both.cost, both.size) == pytest.approx((0.039, 1 + 3 + 0.5 + 0.125, 35.0))
    first = total(problem, (0, 1))
    # The tensor between them is still written in 8 bits: its noise stays.
    assert (first.noise, first.cost, first.size) == pytest.approx((0.016, 1 + 6 + 0.5 + 0.25, 95.0))
    assert total(problem, (1, 1)).noise == 0


def test_a_poisonous_tensor_takes_both_its_neighbours_to_floats() -> None:
    units = tuple(
        Unit(f"u{i}", (Option("w8a8", 8, 1e-5, 1.0, 1.0), Option("float", FLOAT, 0.0, 2.0, 4.0))) for i in range(6)
    )
    links = tuple(
        Link(f"t{i}", i, (i + 1,) if i < 5 else (), {8: 0.5 if i == 2 else 1e-5}, {(8, FLOAT): 0.1, (FLOAT, 8): 0.1})
        for i in range(6)
    )
    found = solve(Problem(units, links), minimize="cost", max_noise=0.01)
    assert found == (0, 0, 1, 1, 0, 0)


def test_needs_are_kept_and_units_can_be_fixed() -> None:
    units = tuple(
        Unit(f"u{i}", (Option("w8a8", 8, 0.1 * i, 1.0, 1.0), Option("float", FLOAT, 0.0, 2.0, 4.0))) for i in range(3)
    )
    assert solve(Problem(units, needs=((1, (2,)),)), minimize="cost", max_noise=0.15) == (0, 1, 1)
    assert solve(Problem(units), minimize="cost", fixed={0: 1}) == (1, 0, 0)
    assert solve(Problem(units), minimize="cost", fixed={2: 0}, max_noise=0.1) is None


def test_what_cannot_be_is_none() -> None:
    problem = random_problem(0)
    assert solve(problem, minimize="cost", max_size=1.0) is None
