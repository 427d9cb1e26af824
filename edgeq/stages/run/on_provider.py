"""What the real provider says of a packaged model: it is run in the provider's sandbox on the bundle's samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgeq import graph
from edgeq.errors import ProviderError
from edgeq.interface import BoxesOutput
from edgeq.metrics import top_k_agreement
from edgeq.progress import Progress, Silent
from edgeq.report import LIMIT_DB, Finding, Metric, ProviderCheck
from edgeq.sandbox import Outcome, Task
from edgeq.sandbox.place import Place
from edgeq.stages.run.closeness import Closeness, Likeness, closeness_metrics, compare_outputs
from edgeq.stages.run.kernels import PLUMBING
from edgeq.stages.run.placement import Placement, assigned_placement, read_placement
from edgeq.stages.run.predict import predictor

if TYPE_CHECKING:
    from edgeq.qtypes import NodeForecast
    from edgeq.target import Gates, Provider, Verification

__all__ = [
    "Ran",
    "Samples",
    "check_findings",
    "own_place",
    "placement_of",
    "places_for",
    "run_everywhere",
    "run_on",
    "run_on_own",
]

Arrays = Mapping[str, np.ndarray]

_TIMEOUT_S = 900.0

_BEHIND_DB = 10.0
"""Kernels that round otherwise stay within this of one another; those that are wrong do not."""

_AN = {"dB": "an", "%": "a"}

_WRONG_DB = 20.0
"""Below this, a tenth of each output's magnitude is error."""


@dataclass(frozen=True)
class Samples:
    """Batches by input name, the float model's answers, and this machine's, where it ran the package itself.

    ``task`` is the model's, ``text`` says in words what the batches are. ``judged_db`` is the SQNR of each
    output by which the package was judged, in the arithmetic of the specification, say. ``boxes`` names outputs
    that are boxes.
    """

    inputs: Sequence[Arrays]
    references: Sequence[Arrays]
    host: Sequence[Arrays] | None = None
    task: str | None = None
    text: str = ""
    judged_db: Mapping[str, float] = field(default_factory=dict)
    boxes: BoxesOutput | None = None


@dataclass(frozen=True)
class Ran:
    """The check as it stands in the report, how close each output came, and which provider took which node.

    ``closeness`` is empty where nothing was computed, ``assigned`` None where it is not told.
    """

    check: ProviderCheck
    closeness: Mapping[str, Likeness] = field(default_factory=dict)
    assigned: Mapping[str, str] | None = None

    @property
    def failed(self) -> bool:
        return self.check.status in ("refused", "crashed")


def own_place(verification: Verification | None) -> Place | None:
    """Where the profile says that its packages can be run on a PC."""
    if verification is None or verification.sandbox is None:
        return None
    return Place(verification.sandbox, verification.arguments)


def places_for(verifications: Sequence[Verification | None], asked: Sequence[Place]) -> list[list[Place]]:
    """Which of the places that were asked for concern which graph.

    A place belongs to the graphs whose profile names its sandbox, as the arm64 of a fallback does; to the
    first graph if none does.
    """
    names = [verification.sandbox if verification else None for verification in verifications]
    return [
        [place for place in asked if place.sandbox == name or (index == 0 and place.sandbox not in names)]
        for index, name in enumerate(names)
    ]


def run_on(place: Place, model: Path, provider: Provider, samples: Samples, *, progress: Progress | None = None) -> Ran:
    """Run ``model`` on ``provider`` in a sandbox and compare with the float model and with this machine.

    Raises:
        ConfigError: there is no such sandbox.
        ValidationError: an output has another shape there.
    """
    sandbox = place.find()
    why = sandbox.missing()
    if why is not None:
        return Ran(_absent(place, provider, why))
    progress = progress or Silent()
    progress.start(f"running on {place}", None)
    try:
        feeds = tuple(samples.inputs) if sandbox.gives == "numbers" else ()
        task = Task(Path(model), provider, feeds)
        (outcome,) = sandbox.run([task], arguments=place.arguments or None, timeout_s=_TIMEOUT_S)
    finally:
        progress.finish()
    return _judged(place, model, provider, outcome, samples)


def run_everywhere(
    model: Path,
    provider: Provider,
    verification: Verification | None,
    samples: Samples,
    places: Sequence[Place] = (),
    *,
    progress: Progress | None = None,
) -> list[Ran]:
    """The profile's own sandbox as ``run_on_own`` does, unless it is among the places that were asked for; then these.

    Where this machine has the target's kernels, their outputs are compared with those of the places.
    """
    own = own_place(verification)
    found: list[Ran] = []
    if own is None or own.sandbox not in {place.sandbox for place in places}:
        first = run_on_own(model, provider, verification, samples, progress=progress)
        found = [first] if first is not None else []
    if places and (verification is None or verification.accuracy == "provider"):
        samples = replace(samples, host=_here(model, provider, samples.inputs))
    return [*found, *(run_on(place, model, provider, samples, progress=progress) for place in places)]


def _here(model: Path, provider: Provider, inputs: Sequence[Arrays]) -> list[Arrays] | None:
    """This machine's own outputs; None if it does not have the provider."""
    try:
        with predictor(model, provider=provider) as predict:
            return [predict(batch) for batch in inputs]
    except ProviderError:
        return None


def run_on_own(
    model: Path,
    provider: Provider,
    verification: Verification | None,
    samples: Samples,
    *,
    progress: Progress | None = None,
) -> Ran | None:
    """What is done without being asked: the profile's own sandbox is used where it is installed and quick.

    None where there is nothing to add, as the provider's own kernels run in this process.
    """
    place = own_place(verification)
    here = verification is None or verification.accuracy == "provider"
    if place is None:
        return None if here else Ran(_nowhere(provider))
    sandbox = place.find()
    if here and sandbox.quick:
        return None
    why = sandbox.missing()
    if why is not None:
        return Ran(_absent(place, provider, why))
    if not sandbox.quick:
        return Ran(_left_out(place, provider))
    return run_on(place, model, provider, samples, progress=progress)


def placement_of(
    model: Path,
    provider: Provider,
    ran: Sequence[Ran],
    *,
    here: bool,
    expected: Mapping[str, NodeForecast],
    gates: Gates,
    threads: int = 1,
) -> Placement | None:
    """Where each node runs: as the provider says in this process if it is ``here``, else in its sandbox; else None.

    The provider is not loaded into this process if it has just failed in one of its own. Another
    provider's placement would say nothing.
    """
    if here and not any(one.failed for one in ran):
        return read_placement(model, provider, expected=expected, gates=gates, threads=threads)
    told = next((one.assigned for one in ran if one.assigned is not None), None)
    return None if told is None else assigned_placement(model, provider, told, expected=expected, gates=gates)


def check_findings(checks: Sequence[ProviderCheck]) -> list[Finding]:
    """A package that its own provider refuses, or computes wrongly, is not done."""
    remedy = "look at the placement and change what it names, or take another target"
    found = [
        Finding(severity="error", text=f"{check.provider} ({check.place}): {check.text}", remedy=remedy)
        for check in checks
        if check.status in ("refused", "crashed")
    ]
    for check in checks:
        if check.behind_db is None or check.worst_db is None or check.behind_db < _BEHIND_DB:
            continue
        severity: Literal["error", "warning"] = "error" if check.worst_db < _WRONG_DB else "warning"
        text = f"{check.provider} ({check.place}) computes an SQNR of only {check.worst_db:.1f} dB, "
        text += f"{check.behind_db:.1f} dB less than the package was judged by"
        text += ": do not ship this" if severity == "error" else ""
        found.append(Finding(severity=severity, text=f"{text}.", remedy=remedy))
    return found


def _judged(place: Place, model: Path, provider: Provider, outcome: Outcome, samples: Samples) -> Ran:
    share = _share(model, provider, outcome)
    found: Mapping[str, Likeness] = {}
    metrics: list[Metric] = []
    behind: list[tuple[float, float]] = []
    text = _in_words(outcome, provider, share)
    if outcome.status == "ran":
        source = f"{samples.text} on {provider.name}, {outcome.version}"
        found = compare_outputs(samples.inputs, samples.references, outcome.outputs, samples.boxes)
        metrics = [*_agreement(samples, outcome.outputs, place, source)]
        metrics += closeness_metrics(found, where=f" on {place}", source=source)
        behind = [
            (samples.judged_db[name] - one.sqnr_db, one.sqnr_db)
            for name, one in found.items()
            if name in samples.judged_db and isinstance(one, Closeness)
        ]
        if samples.host is not None:
            close = compare_outputs(samples.inputs, samples.host, outcome.outputs, samples.boxes)
            worst = min(close.values(), key=lambda one: one.value)
            best = worst.value >= (LIMIT_DB if worst.unit == "dB" else 100)
            alike = "are" if best else f"have {_AN[worst.unit]} {worst.noun} of {worst.value:.1f} {worst.unit} to"
            text += f"; its outputs {alike} this machine's"
            name = f"{worst.noun} to this machine's outputs on {place}"
            metrics.append(Metric(name=name, value=worst.value, unit=worst.unit, samples=worst.rows, source=source))
    return Ran(
        ProviderCheck(
            place=str(place),
            provider=provider.name,
            status=outcome.status,
            version=outcome.version,
            metrics=tuple(metrics),
            taken=share.taken,
            nodes=share.nodes,
            worst_db=round(max(behind)[1], 3) if behind else None,
            behind_db=round(max(behind)[0], 3) if behind else None,
            text=text,
        ),
        found,
        outcome.assigned if share.nodes else None,
    )


def _in_words(outcome: Outcome, provider: Provider, share: _Share) -> str:
    if outcome.status in ("refused", "crashed"):
        return f"{outcome.status}: {outcome.reason or 'without a reason'}"
    how = "compiled, not run" if outcome.status == "built" else "ran"
    if share.nodes is None:
        return f"{how}; it does not tell which nodes it took"
    count = f"all {share.nodes}" if share.taken == share.nodes else f"{share.taken} of {share.nodes}"
    left = f", and left {share.left} Q/DQ to others" if share.left else ""
    return f"{how}; {provider.name} took {count} nodes{left}"


@dataclass(frozen=True)
class _Share:
    """Which nodes the provider took, of those that were not optimized away before it was asked.

    ``left`` counts the Q/DQ of the graph that another provider took.
    """

    taken: int | None = None
    nodes: int | None = None
    left: int = 0


def _share(model: Path, provider: Provider, outcome: Outcome) -> _Share:
    if outcome.assigned is None or outcome.status not in ("ran", "built"):
        return _Share()
    plumbing = {str(node.name): node.op_type in PLUMBING for node in graph.load_model(model).graph}
    where = [by for name, by in outcome.assigned.items() if plumbing.get(name) is False]
    left = [by for name, by in outcome.assigned.items() if plumbing.get(name) and by != provider.name]
    return _Share(where.count(provider.name), len(where), len(left)) if where else _Share()


def _agreement(samples: Samples, answers: Sequence[Arrays], place: Place, source: str) -> list[Metric]:
    """For classifiers: how often the best class is the float model's."""
    if not (samples.task or "").endswith("classification"):
        return []
    name = next((n for n, a in samples.references[0].items() if a.ndim == 2 and a.shape[1] > 1), None)
    if name is None:
        return []
    reference, output = (np.concatenate([batch[name] for batch in side]) for side in (samples.references, answers))
    value = 100 * top_k_agreement(reference, output, 1)
    return [Metric(name=f"top-1 agreement on {place}", value=value, unit="%", samples=len(reference), source=source)]


def _absent(place: Place, provider: Provider, why: str) -> ProviderCheck:
    return ProviderCheck(
        place=str(place),
        provider=provider.name,
        status="absent",
        text=f"not verified on {place} here: {why}",
        remedy=None if place.find().unusable() else f"edgeq doctor --install-provider {place.sandbox}",
    )


def _left_out(place: Place, provider: Provider) -> ProviderCheck:
    return ProviderCheck(
        place=str(place),
        provider=provider.name,
        status="left out",
        text=f"not verified on {place} here, as that takes long",
        remedy=f"edgeq run BUNDLE --on {place}",
    )


def _nowhere(provider: Provider) -> ProviderCheck:
    return ProviderCheck(
        place="",
        provider=provider.name,
        status="none",
        text=f"rules only: the profile knows nothing that runs {provider.name} without the device",
        remedy="measure on the device",
    )
