"""Which precision to hand over: the first that does, or the cheapest that keeps what the user asked for.

Time and size do not depend on effort, only accuracy does. So where there are limits, all precisions are looked at
with effort 0, and effort is spent on those alone that may be taken then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec

from edgeq.errors import NothingToQuantizeError
from edgeq.front import Front
from edgeq.graph import constant_array
from edgeq.pipeline.job import Job
from edgeq.pipeline.judge import Attempt, Impossible, Verdict, attempt
from edgeq.pipeline.mixing import can_mix, faster_mix, mix, pick
from edgeq.qtypes import Scheme
from edgeq.request import Limits, output_sqnr_db

__all__ = ["best_attempt"]

_MOSTLY = 0.5
"""The least share of the weights that ranges found at run time must reach, or the precision is mostly float."""

_CHEAPER = 0.95
"""What is to be tried although something else does must have at most this part of its price: less is not sure."""

_HOPELESS = 1.1
"""What takes more than so many times --max-latency is not tried with more effort: times are measured to that."""

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

Rejected = list[Verdict | Impossible]


def best_attempt(job: Job, limits: Limits) -> tuple[Attempt, Rejected]:
    """What to hand over, or the best there is; and what the others were worth.

    Without limits it is the first precision of the job that is sound; before the first that leaves activations float,
    mixes are looked at. With limits it is the cheapest that keeps them, in time and size: a precision as it is, or a
    mix of the first with floats or wider integers. What is slower than the float model is mixed with floats where
    that is faster. Ranges found at run time are tried where most weights are in products that have them.

    Of the others only the verdicts are kept, not the models; they come in the order of the job's precisions.

    Raises:
        ConfigError: a limit cannot be judged for this target, or there is no such point to pick.
        NothingToQuantizeError: that is so in every precision.
    """
    limits.check(job.target, measure=job.measure)
    if limits.pick is not None:
        return pick(job, limits, attempt), []
    rejected: Rejected = []
    doubtful = {scheme: _mostly_float(job, scheme) for scheme in job.schemes if scheme.dynamic and not job.precision}
    rejected.extend(Impossible(scheme, why) for scheme, why in doubtful.items() if why)
    schemes = [scheme for scheme in job.schemes if not doubtful.get(scheme)]
    choose = _cheapest_keeping if limits.contract else _first_sound
    best = choose(job, limits, schemes, rejected)
    slow = best.verdict.speedup is not None and best.verdict.speedup < 1
    if slow and not best.verdict.mixed and can_mix(job, best.scheme):
        best = faster_mix(job, best, limits, attempt)
    return best, sorted(rejected, key=lambda verdict: job.schemes.index(verdict.scheme))


# -- without limits


def _first_sound(job: Job, limits: Limits, schemes: Sequence[Scheme], rejected: Rejected) -> Attempt:
    best: Attempt | None = None
    base: Verdict | None = None
    for number, scheme in enumerate(schemes):
        found = _carried(job, scheme, limits, rejected)
        if found is None:
            continue
        if base is None and can_mix(job, scheme):
            base = found.verdict
        best = _better(best, found, rejected)
        found = None  # its models go before the next ones are made
        last = all(other.static_bits is None and not other.dynamic for other in schemes[number + 1 :])
        if not best.verdict.acceptable and base is not None and last:
            best, base = _or_mixed(job, limits, best, (base, base), rejected), None
        if best.verdict.acceptable:
            break
    return _some(best, rejected)


# -- with limits


def _cheapest_keeping(job: Job, limits: Limits, schemes: Sequence[Scheme], rejected: Rejected) -> Attempt:
    """Precisions as they are, up to the first that keeps the limits, then mixes that are cheaper than that."""
    quick = job.at_effort(0) if len(schemes) > 1 else job
    looked: list[Verdict] = []
    best: Attempt | None = None
    dropped: Rejected = []
    for scheme in schemes:
        found = _carried(quick, scheme, limits, rejected)
        if found is None:
            continue
        looked.append(found.verdict)
        best = _better(best, found, dropped)
        found = None  # its models go before the next ones are made
        if best.verdict.acceptable:
            break
    best, made = _some(best, rejected), list(looked)
    if quick is not job:
        best, made = _with_effort(job, limits, best, looked)
    rejected.extend(one for one in made if one is not best.verdict)
    base = next((number for number, one in enumerate(looked) if can_mix(job, one.scheme)), None)
    if base is None or _settled(best.verdict, looked[base]):
        return best
    return _or_mixed(job, limits, best, (looked[base], made[base]), rejected)


def _with_effort(job: Job, limits: Limits, best: Attempt, looked: Sequence[Verdict]) -> tuple[Attempt, list[Verdict]]:
    """The best again, and what each is worth, with the effort of ``job`` where that may change what is taken.

    That are the one that keeps the limits, and before it those that are cheaper. Where effort makes one worse by
    what the limits are about, less stays.
    """
    keeping = looked[-1] if looked[-1].acceptable else None
    made = list(looked)
    for number, one in enumerate(looked):
        if one is not keeping and (_too_much(one) or (keeping is not None and not _cheaper(one, keeping))):
            continue
        found = attempt(job, one.scheme, limits)
        if found.verdict.rank <= one.rank:
            made[number] = found.verdict
        cheaper = keeping is not None and one is not keeping and found.verdict.acceptable
        if cheaper or found.verdict.rank <= best.verdict.rank:
            best = found
        if found.verdict.acceptable:
            break
        del found
    return best, made


def _settled(best: Verdict, base: Verdict) -> bool:
    """Whether no mix of ``base`` can be worth more than ``best``: floats and wider integers cost more than it."""
    return best.acceptable and (best.scheme == base.scheme or not _cheaper(base, best))


def _cheaper(one: Verdict, other: Verdict) -> bool:
    """Whether ``one`` costs less, as far as times tell; without them it does as it comes first in the profile, but
    ranges found at run time cost about what others do.
    """
    if one.speedup is None or other.speedup is None:
        return not other.scheme.dynamic
    return one.price < _CHEAPER * other.price


def _too_much(verdict: Verdict) -> bool:
    """Whether it breaks a limit that more effort does not help to keep."""
    clauses = verdict.contract.clauses if verdict.contract is not None else ()
    over = {c.option: c.measured / c.asked for c in clauses if not c.met and c.measured is not None and c.asked}
    return "--max-size" in over or over.get("--max-latency", 0.0) > _HOPELESS


# -- both


def _carried(job: Job, scheme: Scheme, limits: Limits, rejected: Rejected) -> Attempt | None:
    try:
        return attempt(job, scheme, limits)
    except NothingToQuantizeError as error:
        rejected.append(Impossible(scheme, error.what, error))
        return None


def _some(best: Attempt | None, rejected: Rejected) -> Attempt:
    """``best``; where nothing could be quantized, the first reason is raised."""
    if best is not None:
        return best
    raise next(one.error for one in rejected if isinstance(one, Impossible) and one.error is not None)


def _better(best: Attempt | None, found: Attempt, rejected: Rejected) -> Attempt:
    """The better of both; the other one's verdict goes to ``rejected``."""
    if best is None:
        return found
    better, worse = (found, best) if found.verdict.rank < best.verdict.rank else (best, found)
    rejected.append(worse.verdict)
    return better


def _or_mixed(job: Job, limits: Limits, best: Attempt, bases: tuple[Verdict, Verdict], rejected: Rejected) -> Attempt:
    """The better of the best so far and a mix; the other one's verdict goes to ``rejected``.

    ``bases`` is what the precision to mix is worth at effort 0, and with what effort there was.
    """
    quick, (plain, base) = job.at_effort(0), bases
    held = best if best.verdict is plain and plain.effort == quick.effort else None
    start = held if held is not None else attempt(quick, plain.scheme, limits)
    before, after = (output_sqnr_db(one.evaluation) for one in (start.verdict, base))
    gain_db = 0.0 if before is None or after is None else max(after - before, 0.0)
    rival = best if best.verdict.acceptable else None
    mixed = mix(job, start, limits, attempt, gain_db=gain_db, rival=None if rival is None else rival.verdict)
    front = mixed.front
    if front is None or not mixed.verdict.mixed:
        return replace(best, front=_untaken(front, best))
    if _order(mixed.verdict, best.verdict) < _order(best.verdict, mixed.verdict):
        rejected.append(best.verdict)
        return mixed
    rejected.append(mixed.verdict)
    return replace(best, front=_untaken(front, best))


def _order(one: Verdict, other: Verdict) -> tuple[bool, float, float, float]:
    """Less is better. Of two that keep the limits it is the cheaper; without times the mix, which should be."""
    timed = one.speedup is not None and other.speedup is not None
    price = 0.0 if not one.acceptable else one.price if timed else float(not one.mixed)
    return *one.rank[:2], price, one.rank[2]


def _untaken(front: Front | None, best: Attempt) -> Front | None:
    """The front where ``best``, which is no mix, was taken: its point 'as it is' if it is the precision mixed."""
    if front is None:
        return None
    points = []
    for point in front.points:
        own = not point.changed and best.scheme.name == front.precision
        why = None if own else point.why or f"{best.precision} is better"
        points.append(msgspec.structs.replace(point, taken=own, why=why))
    return msgspec.structs.replace(front, points=tuple(points))


def _mostly_float(job: Job, scheme: Scheme) -> str | None:
    """Why ranges found at run time would leave most of the model float; None where they would not."""
    shaped = job.shaped(scheme)
    ranged = job.layout(shaped, scheme).dynamic
    sizes: dict[bool, int] = {True: 0, False: 0}
    for node in shaped.graph:
        weight = constant_array(node.inputs[1]) if node.op_type in _PRODUCTS and len(node.inputs) > 1 else None
        if weight is not None:
            sizes[str(node.name) in ranged] += weight.size
    share = sizes[True] / max(sum(sizes.values()), 1)
    why = f"only {share:.0%} of the weights are in products whose activations can be ranged at run time"
    return why if share < _MOSTLY else None
