"""One graph of a bundle, run again: how close its outputs come, here and on its provider, and where its nodes run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeq.bundle import GraphEntry
from edgeq.gates import strict, unchecked
from edgeq.progress import Progress
from edgeq.report import Clause, GraphReport, Metric, ProviderCheck
from edgeq.runtime import Optimization, unavailable
from edgeq.sandbox.place import Place
from edgeq.stages.run.accuracy import metric_drop
from edgeq.stages.run.closeness import Likeness, closeness_metrics, compare_outputs
from edgeq.stages.run.on_provider import Samples, check_findings, placement_of, run_everywhere
from edgeq.stages.run.placement import Placement
from edgeq.stages.run.predict import predictor
from edgeq.target import Gate, Provider

__all__ = ["Judged", "judge_graph"]


@dataclass(frozen=True)
class Judged:
    """What was measured of one graph.

    ``provider`` is the graph's own if it ran in this process, else None. ``strict`` holds the options of
    those clauses that fail the validation if they are not met.
    """

    entry: GraphEntry
    provider: Provider | None
    metrics: tuple[Metric, ...]
    clauses: tuple[Clause, ...]
    strict: frozenset[str]
    checks: tuple[ProviderCheck, ...]
    placement: Placement
    notes: tuple[str, ...]

    def report(self) -> GraphReport:
        """As the report of a second graph."""
        return GraphReport(
            target=self.entry.target,
            precision=self.entry.precision,
            provider=self.entry.provider.name,
            metrics=self.metrics,
            primary=self.metrics[0].name,
            drop=metric_drop(self.metrics[0]),
            size=self.entry.size,
            kinds=dict(Counter(node.kind for node in self.placement.nodes)),
            checks=self.checks,
            findings=(*check_findings(self.checks), *self.placement.findings),
            notes=self.notes,
        )


def judge_graph(
    model: Path,
    entry: GraphEntry,
    samples: Samples,
    places: Sequence[Place],
    tolerance_db: float,
    threads: int,
    progress: Progress | None,
    gates: frozenset[Gate] = frozenset(),
) -> Judged:
    """Run one graph with the kernels that its recorded figures were made with, then on its provider.

    Raises:
        ValidationError: an output has another shape than the reference.
        ModelError: the model does not load or run.
    """
    absent = unavailable(entry.provider)
    provider = None if absent else entry.provider
    by_specification = entry.verification is not None and entry.verification.accuracy == "specification"
    kernels = None if by_specification else provider
    notes = []
    where, source = "", samples.text
    if kernels is None:
        source += ", by the specification's arithmetic"
        if absent and not by_specification:
            where = " on the CPU"
            notes.append(f"{entry.model} ran on the CPU instead of {entry.provider.name}: {absent.what}.")
    optimization: Optimization = "none" if kernels is None else "all"
    with predictor(model, provider=kernels, optimization=optimization, threads=threads) as predict:
        answers = [predict(batch) for batch in samples.inputs]
    closeness = compare_outputs(samples.inputs, samples.references, answers, samples.boxes)
    ran = run_everywhere(model, entry.provider, entry.verification, samples, places, progress=progress)
    clauses = _clauses(entry, closeness, where, tolerance_db)
    binding = {clause.option for clause in clauses} if not where else set()
    for one in ran:
        found = _clauses(entry, one.closeness, f" on {one.check.place}", tolerance_db)
        binding |= {clause.option for clause in found}
        clauses += found
    expected, own = {node.node: node for node in entry.forecast}, strict(entry.gates, gates)
    here = provider is not None
    placement = placement_of(model, entry.provider, ran, here=here, expected=expected, gates=own, threads=threads)
    return Judged(
        entry,
        provider,
        tuple(closeness_metrics(closeness, where=where, source=source)),
        tuple(clauses),
        frozenset(binding),
        tuple(one.check for one in ran),
        placement or Placement((), tuple(unchecked(gates, ()))),
        tuple(notes),
    )


def _clauses(entry: GraphEntry, found: Mapping[str, Likeness], where: str, tolerance_db: float) -> list[Clause]:
    """What the manifest promises of each output, and what was found."""
    graph = "" if entry.model == "model.onnx" else f" of the fallback ({entry.target})"
    return [
        Clause(
            option=f"{one.noun} of {name}{graph}{where}",
            asked=one.asked(recorded, tolerance_db),
            measured=one.value,
            unit=one.unit,
            met=one.value >= one.asked(recorded, tolerance_db),
        )
        for name, recorded in sorted(entry.recorded.items())
        if (one := found.get(name)) is not None
    ]
