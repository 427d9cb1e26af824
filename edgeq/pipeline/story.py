"""The story on one page: export, prepare, calibrate, choose, insert, tune, judge, package, run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgeq.bundle import read_bundle
from edgeq.embedding import EmbedOptions
from edgeq.errors import ContractError, GateError
from edgeq.gates import failing
from edgeq.output import atomic_folder, check_free
from edgeq.pipeline.choosing import best_attempt
from edgeq.pipeline.embedding import check_projects, embed
from edgeq.pipeline.job import Job
from edgeq.pipeline.publish import publish
from edgeq.pipeline.second import second_graph
from edgeq.progress import Progress
from edgeq.report import Finding, Report
from edgeq.request import Exported, Limits, broken_contract, closed_gates
from edgeq.sandbox.place import parse_place
from edgeq.stages.package import write_report
from edgeq.stages.run.validate import validate
from edgeq.target import Gate
from edgeq.trust import check_providers

__all__ = ["export", "validate_bundle"]


def export(
    job: Job,
    *,
    output: str | os.PathLike[str] | None,
    limits: Limits,
    overwrite: bool,
    platforms: tuple[str, ...] = (),
) -> Exported:
    """Try the job's precisions, cheapest first, until one meets the limits; write the best there is.

    ``platforms`` are the app builds to make a project for, too (see ``edgeq.embed``).

    Raises:
        ContractError: none met them; the best is left in ``<output>.not-met``.
        GateError: it does not pass one of the job's gates; it is left there, too.
        OutputError: ``output`` exists or cannot be written.
    """
    job.check()
    path = Path(output) if output is not None else Path(f"{job.source.name}-{job.target.name}")
    check_free(path, overwrite=overwrite)
    check_projects(path, platforms)
    not_met = path.with_name(f"{path.name}.not-met")
    if limits != Limits() or job.gates:
        check_free(not_met, overwrite=True)
    best, rejected = best_attempt(job, limits)
    second = second_graph(job, limits)
    met = best.verdict.met and (second is None or second.met)
    if not met:
        path, overwrite = not_met, True
    closed: tuple[Finding, ...] = ()
    with atomic_folder(path, overwrite=overwrite, instead=lambda: not_met if closed else None) as folder:
        report = publish(job, folder, best, rejected, second)
        closed = failing(report, job.gates)
    path = not_met if closed else path
    exported = Exported(read_bundle(path), report)
    if not met:
        raise ContractError(*broken_contract(report, path), exported)
    if closed:
        raise GateError(*closed_gates(report, closed, path), report, exported)
    projects = (embed(path, name, None, EmbedOptions(), trust_provider=True) for name in platforms)
    return replace(exported, embedded=tuple(projects))


def validate_bundle(
    path: str | os.PathLike[str],
    *,
    reference: str | os.PathLike[str] | None,
    threads: int,
    tolerance_db: float,
    places: Sequence[str] = (),
    progress: Progress | None = None,
    report_folder: str | os.PathLike[str] | None,
    gates: frozenset[Gate] = frozenset(),
    trust_provider: bool = False,
) -> Report:
    """Run a bundle on this machine; see ``edgeq.run``.

    Raises:
        GateError: a graph of it does not pass one of ``gates``; the report is written before.
    """
    where = [parse_place(place) for place in places]
    for place in where:
        place.require()
    bundle = read_bundle(path)
    if not trust_provider:
        check_providers(bundle)
    verification = bundle.manifest.verification
    report = validate(
        bundle,
        reference=reference,
        threads=threads,
        tolerance_db=tolerance_db,
        latency=verification is None or verification.latency_here,
        memory=verification is None or verification.accuracy == "provider",
        gates=gates,
        places=where,
        progress=progress,
    )
    if report_folder is not None:
        Path(report_folder).mkdir(parents=True, exist_ok=True)
        write_report(Path(report_folder), report, bundle.manifest)
    if closed := failing(report, gates):
        raise GateError(*closed_gates(report, closed, bundle.path), report)
    return report
