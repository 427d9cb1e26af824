"""Mixed precision: a front of choices between a precision and floats or wider integers, tried where it matters.

A study says what each choice is predicted to cost and to lose. The cheapest points of the front that are
predicted to do are carried out and judged like any precision; where none does, the groups that are worth most per
time are promoted until one does or none is left.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

from edgeq import __version__
from edgeq.errors import ConfigError
from edgeq.formats import NodeFormat, Scheme
from edgeq.front import Front, FrontPoint, in_db
from edgeq.graph import fingerprint
from edgeq.output import atomic_file
from edgeq.pipeline.study import Study, study
from edgeq.request import Limits, output_sqnr_db
from edgeq.stages.mix import Totals, cheapest, solve, total
from edgeq.stages.run.latency import Timing, compare_latency

if TYPE_CHECKING:
    from pathlib import Path

    from edgeq.pipeline.job import Job
    from edgeq.pipeline.judge import Attempt, Verdict

__all__ = ["can_mix", "faster_mix", "mix", "pick", "sensitivity_of"]

Formats = Mapping[str, NodeFormat]
Carry = Callable[["Job", Scheme, Limits, Formats], "Attempt"]
"""Carries a precision with other formats for some nodes out, and judges it."""

STEPS_DB = (1.5, 3.0, 4.5, 6.0, 9.0, 12.0, 15.0, 18.0)
"""By how much less noise each point of the front is asked for than the precision itself has."""

REPAIR_DB = (1.0, 2.0, 4.0, 8.0, 16.0)
"""By how much less noise than the best so far has is asked for, one after another, where no point of the front does."""

SPARE_DB = 1.0
"""How much more noise than predicted to be enough a point may have that is tried with more effort."""

HARDLY = 1.1
"""A mix that is made for speed may take so many times the time of the fastest one, if it is smaller."""

WORTH = 0.95
"""A mix that is made for speed must take at most this part of the time."""


def can_mix(job: Job, scheme: Scheme) -> bool:
    """Whether there is anything to choose: nobody asked for this very precision, and its ranges are known before."""
    return job.precision is None and scheme.static_bits is not None and job.target.floats.type == "float32"


def mix(
    job: Job, start: Attempt, limits: Limits, carry: Carry, *, gain_db: float = 0.0, rival: Verdict | None = None
) -> Attempt:
    """The cheapest mix that keeps the limits, or the best there is; ``start`` itself if nothing is better.

    ``start`` is the precision as it is, at effort 0, to which the job's own effort adds ``gain_db``. Points are
    looked for at effort 0; what is found there is carried out at the job's own effort, after a cheaper one which may
    do then. What does not promise to be cheaper than ``rival``, which keeps the limits, is not tried. What comes
    back tells of all points in its ``front``.
    """
    quick = job.at_effort(0)
    found = _study(quick, start, limits)
    points = _points(found, limits, output_sqnr_db(start.evaluation))
    search = _Search(quick, start, limits, carry, found, points, rival)
    search.run()
    if quick is not job:
        search.with_effort(job, gain_db)
    best = search.best()
    front = search.front(best)
    _keep(job, start.scheme, limits, front)
    return best.with_front(front)


def faster_mix(job: Job, base: Attempt, limits: Limits, carry: Carry) -> Attempt:
    """``base``, or a mix of its integers with floats that this machine computes faster, and no less exactly.

    Where floats alone are fastest, it is the smallest mix that takes hardly longer.
    """
    found = _study(job, base, limits, effects=False)
    chosen = _fast_and_small(found)
    if chosen is None or total(found.problem, chosen).cost > WORTH * total(found.problem, found.base).cost:
        return base
    mixed = carry(job, base.scheme, limits, found.formats(chosen))
    timing = Timing(seconds=min(job.seconds, 1.0), min_runs=10)
    inputs, provider = base.evaluation.sample_inputs[0], job.target.provider
    ratio = compare_latency(mixed.model, base.model, inputs, provider=provider, timing=timing).cpu_speedup
    taken = ratio is not None and ratio * WORTH >= 1 and mixed.verdict.rank <= base.verdict.rank
    points = [found.base, chosen]
    search = _Search(job, base, limits, carry, found, points)
    search.done[1] = mixed
    if not taken:
        search.whys[1] = f"predicted to be faster, but is not: {ratio:.2f} times the speed of {base.scheme.name}"
    best = mixed if taken else base
    return best.with_front(search.front(best))


def pick(job: Job, limits: Limits, carry: Carry) -> Attempt:
    """Point ``limits.pick`` of the front of the job's first precision, as the cache has it; else it is made first.

    Raises:
        ConfigError: the precision cannot be mixed, or the front has no such point.
    """
    assert limits.pick is not None
    scheme = job.schemes[0]
    if not can_mix(job, scheme):
        raise ConfigError(
            f"--pick {limits.pick}: {scheme.name} on {job.target.name} has no mixes to pick from",
            remedy="leave out --pick and --precision",
        )
    front = _kept(job, scheme, limits)
    if front is None:
        quick = job.at_effort(0)
        made = carry(quick, scheme, limits, {})
        found = _study(quick, made, limits)
        choices = _points(found, limits, output_sqnr_db(made.evaluation))
        front = _Search(quick, made, limits, carry, found, choices).front(made)
        _keep(job, scheme, limits, front)
    point = next((p for p in front.points if p.number == limits.pick), None)
    if point is None:
        raise ConfigError(
            f"--pick {limits.pick}: the front has the points 0 to {len(front.points) - 1}",
            remedy="look at the Pareto front in the report",
        )
    formats = {name: NodeFormat.parse(own) for name, own in point.changed.items()}
    taken = carry(job, scheme, limits, formats)
    why = f"point {point.number} was asked for"
    points = [
        _measured(p, taken, None) if p is point else msgspec.structs.replace(p, taken=False, why=why)
        for p in front.points
    ]
    return taken.with_front(msgspec.structs.replace(front, points=tuple(points)))


def sensitivity_of(job: Job) -> Front:
    """The ranking of all groups in the job's first precision that has activations in integers, and its front.

    Groups are ranked as effort 0 quantizes them: what is tried later changes their errors, hardly their order. Where
    torch runs the graph, Taylor scores rank them; else each is quantized alone and measured.

    Raises:
        ConfigError: it has none.
    """
    scheme = next((one for one in job.schemes if one.static_bits is not None), None)
    if scheme is None:
        raise ConfigError(
            f"{job.schemes[0].name} leaves activations float: there is nothing to rank",
            remedy="name a precision such as --precision w8a8",
        )
    inputs = next(iter(job.feeds[0])) if job.feeds[0] is not None else job.source.example_inputs
    job = job.at_effort(0)
    found = study(job, scheme, job.quantize(scheme), gradients=True, inputs=inputs)
    points = [_point(found, n, chosen) for n, chosen in enumerate(_points(found, Limits()))]
    return Front(
        precision=scheme.name,
        measured=found.measured,
        points=tuple(points),
        sensitivity=found.sensitivity,
        method=found.method,
    )


def _fast_and_small(found: Study) -> tuple[int, ...] | None:
    """The smallest choice that is predicted to take hardly longer than the fastest; None where that is all float."""
    problem, before = found.problem, total(found.problem, found.base)
    fastest = solve(problem, minimize="cost")
    if fastest is None:
        return None
    least = total(problem, fastest)
    for share in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        size = before.size + share * (least.size - before.size)
        chosen = solve(problem, minimize="cost", max_size=size) if least.size > before.size else None
        if chosen is not None and total(problem, chosen).cost <= HARDLY * least.cost and not _empty(found, chosen):
            return chosen
    return None if _empty(found, fastest) else fastest


def _study(job: Job, base: Attempt, limits: Limits, *, effects: bool = True) -> Study:
    size = limits.max_size_bytes
    narrow = size is not None and base.verdict.size.quantized_bytes > size
    return study(job, base.scheme, base.inner, effects=effects, narrow=narrow, inputs=job.sample)


def _points(found: Study, limits: Limits, reached_db: float | None = None) -> list[tuple[int, ...]]:
    """Choices between the precision as it is and the most exact one, cheapest first; none is beaten by another."""
    problem, before = found.problem, total(found.problem, found.base)
    size = float(limits.max_size_bytes) if limits.max_size_bytes is not None else math.inf
    least = solve(problem, minimize="noise", max_size=size)
    chosen = [found.base, cheapest(problem, max_noise=before.noise, max_size=size), least]
    budgets = [before.noise * 10 ** (-step / 10) for step in STEPS_DB]
    if limits.min_sqnr_db is not None and reached_db is not None:  # half a dB more than what is missing
        budgets.append(before.noise * 10 ** (-(limits.min_sqnr_db - reached_db + 0.5) / 10))
    for budget in budgets:
        if least is None or budget < total(problem, least).noise:
            continue
        chosen.append(cheapest(problem, max_noise=budget, max_size=size))
    if size < math.inf and before.size > size:  # too large as it is: what is lost on the way down is a choice, too
        rougher = (before.noise * factor for factor in (2.0, 8.0))
        chosen += [cheapest(problem, max_noise=noise, max_size=size) for noise in rougher]
    values = {one: total(problem, one) for one in chosen if one is not None and not _empty(found, one)}
    return [
        one
        for one in sorted(values, key=lambda one: (values[one].price, values[one].noise, one))
        if one == found.base or not any(_beats(values[other], values[one]) for other in values)
    ]


def _empty(found: Study, chosen: Sequence[int]) -> bool:
    """Whether nothing would be quantized."""
    return all(unit.options[i].name == "float" for unit, i in zip(found.problem.units, chosen, strict=True))


def _beats(one: Totals, other: Totals) -> bool:
    """Whether ``one`` is at least as good in everything, and better in something."""
    pairs = ((one.noise, other.noise), (one.cost, other.cost), (one.size, other.size))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


@dataclass
class _Search:
    """Carries points out, cheapest first by halves, and keeps what was found of each."""

    job: Job
    base: Attempt
    limits: Limits
    carry: Carry
    found: Study
    points: list[tuple[int, ...]]
    rival: Verdict | None = None
    done: dict[int, Attempt] = field(default_factory=dict)
    whys: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.done[self.points.index(self.found.base)] = self.base

    def run(self) -> Attempt:
        """The cheapest point that keeps the limits, as losses fall along the front; else what promotions give."""
        order = [n for n in range(len(self.points)) if self._worth_trying(n)]
        low, high = 0, len(order)
        at = self._predicted(order)
        while low < high:
            if self._try(order[at]).verdict.acceptable:
                high = at
            else:
                low = at + 1
            at = (low + high) // 2
        if high == len(order):
            self._promote()
        return self.best()

    def best(self) -> Attempt:
        """The cheapest that keeps the limits, or what comes closest."""
        return min(self.done.values(), key=lambda one: (one.verdict.rank[:2], self._cost(one), one.verdict.rank))

    def with_effort(self, job: Job, gain_db: float) -> None:
        """Carry out at the effort of ``job`` what was found with less: first a cheaper point, which may do then, too.

        That is the cheapest whose noise would be as low with a gain of ``gain_db``. An attempt with less effort stays
        where it is better.
        """
        chosen = next(number for number, one in self.done.items() if one is self.best())
        asked = self._cheaper(chosen, gain_db) if self.done[chosen].verdict.acceptable else []
        for number in (*asked, chosen):
            if self.points[number] == self.found.base:
                continue
            made = self.carry(job, self.base.scheme, self.limits, self.found.formats(self.points[number]))
            held = self.done.get(number)
            if held is None or made.verdict.rank <= held.verdict.rank:
                self.done[number] = made
            if made.verdict.acceptable:
                return

    def _cheaper(self, chosen: int, gain_db: float) -> list[int]:
        """The point to try before ``chosen``: the cheapest that a gain brings to its noise, else the next cheaper."""
        values = {number: total(self.found.problem, point) for number, point in enumerate(self.points)}
        worth = [n for n in values if values[n].price < values[chosen].price and self._worth_trying(n)]
        worth = sorted((n for n in worth if self.points[n] != self.found.base), key=lambda n: values[n].price)
        enough = values[chosen].noise * 10 ** ((gain_db + SPARE_DB) / 10)
        return [n for n in worth if values[n].noise <= enough][:1] or worth[-1:]

    def _cost(self, one: Attempt) -> float:
        """Of what is acceptable, the cheapest wins, in time and bytes."""
        if not one.verdict.acceptable:
            return 0.0
        number = next(number for number, other in self.done.items() if other is one)
        return total(self.found.problem, self.points[number]).price

    def _worth_trying(self, number: int) -> bool:
        """Whether what is predicted leaves hope for the limits on size and time."""
        values, before = (total(self.found.problem, one) for one in (self.points[number], self.found.base))
        size, latency = self.limits.max_size_bytes, self.limits.max_latency_ms
        if size is not None and values.size > size * 1.02:
            self.whys[number] = "predicted to be larger than --max-size"
        if values.price > self._most * before.price and self.points[number] != self.found.base:
            assert self.rival is not None
            self.whys[number] = f"predicted to cost more time and bytes than {self.rival.precision}, which does"
        measured = self.base.verdict.latency_ms
        if latency is not None and measured is not None and measured * values.cost / before.cost > latency * 1.15:
            self.whys[number] = "predicted to be slower than --max-latency"
        return number not in self.whys

    @cached_property
    def _most(self) -> float:
        """How many times the price of the precision as it is a point may have, so that it is cheaper than the rival."""
        if self.rival is None:
            return math.inf
        one, other, problem = self.rival, self.base.verdict, self.found.problem
        if one.speedup is not None and other.speedup is not None:
            return one.price / other.price
        own = one.scheme.format
        whole = problem.uniform((own.name, NodeFormat(None, own.static_bits).name, "float"))
        return total(problem, whole).price / total(problem, self.found.base).price

    def _predicted(self, order: Sequence[int]) -> int:
        """Where to begin: the first point that is predicted to reach --min-sqnr, or the middle."""
        asked, reached = self.limits.min_sqnr_db, output_sqnr_db(self.base.evaluation)
        if asked is None or reached is None:
            return len(order) // 2
        before = total(self.found.problem, self.found.base).noise
        gains = [10 * math.log10(before / max(total(self.found.problem, self.points[n]).noise, 1e-12)) for n in order]
        reaching = [at for at, gain in enumerate(gains) if reached + gain >= asked]
        return reaching[0] if reaching else max(len(order) - 1, 0)

    def _try(self, number: int) -> Attempt:
        if number not in self.done:
            formats = self.found.formats(self.points[number])
            self.done[number] = self.carry(self.job, self.base.scheme, self.limits, formats)
        return self.done[number]

    def _promote(self) -> None:
        """Ask for less and less noise than the best so far has, so that the groups worth most per time give way."""
        problem = self.found.problem
        start = min(self.done, key=lambda number: (self.done[number].verdict.rank, number))
        noise = total(problem, self.points[start]).noise
        size = float(self.limits.max_size_bytes) if self.limits.max_size_bytes is not None else math.inf
        for step in REPAIR_DB:
            chosen = cheapest(problem, max_noise=noise * 10 ** (-step / 10), max_size=size)
            if chosen is None or _empty(self.found, chosen):
                return
            if chosen in self.points:
                number = self.points.index(chosen)
            else:
                number = len(self.points)
                self.points.append(chosen)
            if self._worth_trying(number) and self._try(number).verdict.acceptable:
                return

    def front(self, best: Attempt) -> Front:
        """All points, those that promotions made at the end."""
        points = []
        for number, chosen in enumerate(self.points):
            point = _point(self.found, number, chosen)
            attempt = self.done.get(number)
            why = self.whys.get(number)
            if why is None and attempt is not best:
                why = self._why(attempt)
            points.append(_measured(point, attempt, why, taken=attempt is best))
        found = self.found
        return Front(
            precision=found.scheme.name, measured=found.measured, points=tuple(points), sensitivity=found.sensitivity
        )

    def _why(self, attempt: Attempt | None) -> str:
        if attempt is None:
            return "not tried: a cheaper point does, or dearer ones do not"
        if not attempt.verdict.acceptable:
            return f"does not keep the limits: {attempt.verdict.lost}"
        return "a cheaper one does as well"


def _point(found: Study, number: int, chosen: tuple[int, ...]) -> FrontPoint:
    values = total(found.problem, chosen)
    units = zip(found.problem.units, found.groups, chosen, strict=True)
    counts = Counter(unit.options[i].name for unit, group, i in units if group.head in found.integer)
    return FrontPoint(
        number=number,
        formats=dict(sorted(counts.items())),
        changed={name: own.name for name, own in found.formats(chosen).items()},
        predicted_db=in_db(values.noise),
        predicted_ms=round(values.cost, 4),
        predicted_bytes=round(values.size),
    )


def _measured(point: FrontPoint, attempt: Attempt | None, why: str | None, *, taken: bool = True) -> FrontPoint:
    """The point with what was found of it."""
    if attempt is None:
        return msgspec.structs.replace(point, why=why)
    verdict = attempt.verdict
    return msgspec.structs.replace(
        point,
        sqnr_db=output_sqnr_db(verdict.evaluation),
        drop=verdict.evaluation.drop,
        latency_ms=verdict.latency_ms,
        speedup=verdict.speedup,
        size_bytes=verdict.size.quantized_bytes,
        why=None if taken else why,
        taken=taken,
    )


# -- fronts in the cache, so that another point can be taken without starting over


def _file(job: Job, scheme: Scheme, limits: Limits) -> Path | None:
    """Where the front of this job is kept: under everything that decides it but the limits on accuracy and time."""
    feed = job.feeds[0]
    parts = {
        "edgeq": __version__,
        "model": fingerprint(job.prepared.model),
        "target": job.target.name,
        "scheme": scheme.name,
        "feed": None if feed is None else feed.fingerprint,
        "effort": job.effort,
        "how": [job.range_method, job.bias_correction, job.smoothing],
        "max_size": limits.max_size_bytes,
    }
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    return None if job.cache is None else job.cache / f"front-{key}.json"


def _keep(job: Job, scheme: Scheme, limits: Limits, front: Front) -> None:
    path = _file(job, scheme, limits)
    if path is not None:
        with atomic_file(path) as work:
            work.write_bytes(msgspec.json.encode(front))


def _kept(job: Job, scheme: Scheme, limits: Limits) -> Front | None:
    path = _file(job, scheme, limits)
    try:
        return None if path is None else msgspec.json.decode(path.read_bytes(), type=Front)
    except (OSError, msgspec.DecodeError):
        return None
