"""Prove a profile: send a small model for each of its promises through the stages, and run it on the real provider."""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec

from edgeq.checks.cases import CASES_VERSION, Case, block_cases, capability_cases
from edgeq.checks.lint import lint
from edgeq.checks.record import (
    CapabilityRecord,
    Record,
    Result,
    TargetRecord,
    fingerprint,
    load_record,
    save_record,
)
from edgeq.errors import EdgeqError
from edgeq.graph import save_model
from edgeq.pipeline.emit import Emitted, emit, left_float
from edgeq.pipeline.verdict import closeness, judge, verdict_of
from edgeq.progress import Progress, Silent
from edgeq.sandbox import Sandbox, Task, find_sandbox
from edgeq.stages.run.kernels import label_nodes
from edgeq.target import CPU_PROVIDER, Capability, TargetProfile

__all__ = ["check_target", "check_targets"]

_CHUNK = 24


def check_targets(
    profiles: Sequence[TargetProfile],
    *,
    ops: Sequence[str] = (),
    record: Path | None = None,
    changed: bool = False,
    complete: bool = False,
    progress: Progress,
) -> list[TargetRecord]:
    """Check each profile; with ``record``, a file, each result is kept as soon as it is there.

    With ``changed`` only what has another fingerprint than in the record is run, and what was not verified.
    ``complete`` says that ``profiles`` are all there are: the record forgets any other.

    Targets of one provider in one sandbox share results: what has the same fingerprint is run once.
    """
    kept = Record() if record is None else load_record(record)
    if kept.cases != CASES_VERSION:
        kept = Record()
    if complete:
        names = {profile.name for profile in profiles}
        kept = msgspec.structs.replace(kept, targets={k: v for k, v in kept.targets.items() if k in names})
    found: list[TargetRecord] = []
    for profile in profiles:
        before = [*kept.targets.values(), *found] if changed else found
        found.append(check_target(profile, ops=ops, progress=progress, before=before))
        if record is not None:
            kept = msgspec.structs.replace(kept, targets={**kept.targets, profile.name: found[-1]})
            save_record(record, kept)
    return found


def check_target(
    profile: TargetProfile,
    *,
    ops: Sequence[str] = (),
    progress: Progress | None = None,
    before: Sequence[TargetRecord] = (),
) -> TargetRecord:
    """Check every promise of ``profile`` (with ``ops``: of these operators only, no blocks).

    Nothing raises: what goes wrong with a case is its result. ``before`` are records of the same
    ``ops`` made a moment ago, whose results count where the fingerprint is the same.
    """
    progress = progress or Silent()
    groups = _groups(profile, frozenset(ops))
    made = {
        c.fingerprint: (c, record)
        for record in before
        for c in record.capabilities
        if all(result.verdict != "not verified" for result in c.results)
    }
    reused = {
        print_: made[print_] for capability, _, _ in groups if (print_ := fingerprint(profile, capability)) in made
    }
    cases = [
        case for capability, _, group in groups if fingerprint(profile, capability) not in reused for case in group
    ]
    sandbox = None if profile.verification.sandbox is None else find_sandbox(profile.verification.sandbox)
    missing = None if sandbox is None else sandbox.missing()
    progress.start(f"check {profile.name}", len(cases))
    try:
        if sandbox is None:
            results = [_by_rules(case, progress) for case in cases]
            version = ""
        elif missing is not None:
            why = f"{sandbox.name}: {missing}"
            results = [verdict_of(case, verdict="not verified", proof="none", reason=why) for case in cases]
            version = ""
        else:
            results, version = _in_sandbox(cases, sandbox, profile, progress)
    finally:
        progress.finish()
    version = max([version, *(record.version for _, record in reused.values())], key=len)
    taken = iter(results)
    return TargetRecord(
        target=profile.name,
        provider=profile.provider.name,
        sandbox=profile.verification.sandbox,
        version=version,
        checked=dt.datetime.now(dt.UTC).date().isoformat(),
        capabilities=tuple(
            CapabilityRecord(
                fingerprint=print_,
                kind="block" if capability is None else capability.kind,
                ops=named,
                results=reused[print_][0].results if print_ in reused else tuple(next(taken) for _ in group),
            )
            for capability, named, group in groups
            for print_ in (fingerprint(profile, capability),)
        ),
    )


def _groups(profile: TargetProfile, ops: frozenset[str]) -> list[tuple[Capability | None, tuple[str, ...], list[Case]]]:
    """The cases by capability, then the blocks (capability None)."""
    groups: list[tuple[Capability | None, tuple[str, ...], list[Case]]] = []
    for capability in profile.capability:
        cases = [case for case in capability_cases(profile, capability) if not ops or case.op in ops]
        if cases:
            groups.append((capability, capability.ops, cases))
    if not ops:
        blocks = list(block_cases(profile))
        groups.append((None, tuple(dict.fromkeys(case.op for case in blocks)), blocks))
    return groups


def _try(case: Case) -> Emitted | Result:
    """The emitted case, or the result that it cannot be: a stage failed, or leaves the operator float."""
    try:
        emitted = emit(case)
    except EdgeqError as error:
        return verdict_of(case, verdict="does not hold", proof="none", reason=f"edgeq cannot make it: {error.what}")
    except Exception as error:  # a defect of a stage is a result, too: the other cases still count
        words = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return verdict_of(case, verdict="does not hold", proof="none", reason=f"edgeq fails to make it: {words}")
    left = left_float(emitted)
    return emitted if left is None else verdict_of(case, verdict="does not hold", proof="none", reason=left)


def _by_rules(case: Case, progress: Progress) -> Result:
    """Nothing runs this target here: the model must at least obey what its profile says."""
    emitted = _try(case)
    progress.advance()
    if isinstance(emitted, Result):
        return emitted
    broken = [violation for violation in lint(emitted.model, case.profile) if violation.severity == "error"]
    if broken:
        words = "; ".join(f"{v.rule}: {v.text}" for v in broken[:3])
        return verdict_of(case, verdict="does not hold", proof="rules", reason=words)
    return verdict_of(case, verdict="rules only", proof="rules", float_db=closeness(emitted.exact, emitted.expected))


def _in_sandbox(
    cases: Sequence[Case], sandbox: Sandbox, profile: TargetProfile, progress: Progress
) -> tuple[list[Result], str]:
    """Emit here, run there: two processes at a time, so that neither waits for the other."""
    size = _CHUNK if sandbox.quick else 4 * _CHUNK
    versions: list[str] = []
    with tempfile.TemporaryDirectory(prefix="edgeq-") as folder, ThreadPoolExecutor(2) as pool:
        waiting: list[Future[list[Result]]] = []
        try:
            for start in range(0, len(cases), size):
                made = [_try(case) for case in cases[start : start + size]]
                place = Path(folder) / str(start)
                place.mkdir()
                waiting.append(pool.submit(_run_chunk, made, sandbox, profile, place, versions.append, progress))
            results = [result for future in waiting for result in future.result()]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C waits for two chunks at most, not for all
            raise
    return results, max(versions, key=len, default="")


def _run_chunk(
    made: Sequence[Emitted | Result],
    sandbox: Sandbox,
    profile: TargetProfile,
    folder: Path,
    version: Callable[[str], None],
    progress: Progress,
) -> list[Result]:
    emitted = [item for item in made if isinstance(item, Emitted)]
    tasks = []
    for index, item in enumerate(emitted):
        path = folder / f"{index}.onnx"
        save_model(label_nodes(item.model), path)
        reads = folder / f"{index}.optimized.onnx" if profile.provider.name == CPU_PROVIDER else None
        # What falls to the CPU is to be seen, with a reason, not to fail.
        session = {k: v for k, v in profile.provider.session.items() if k != "session.disable_cpu_ep_fallback"}
        provider = msgspec.structs.replace(profile.provider, session=session)
        tasks.append(Task(path, provider, item.feeds, reads))
    judged: list[Result] = []
    try:
        outcomes = sandbox.run(tasks, arguments=profile.verification.arguments) if tasks else []
        for item, task, outcome in zip(emitted, tasks, outcomes, strict=True):
            version(outcome.version)
            judged.append(judge(item, task, outcome))
    except EdgeqError as error:  # the sandbox itself, not a model
        why = f"{sandbox.name}: {error.what}"
        judged = [verdict_of(item.case, verdict="not verified", proof="none", reason=why) for item in emitted]
    progress.advance(len(made))
    taken = iter(judged)
    return [next(taken) if isinstance(item, Emitted) else item for item in made]
