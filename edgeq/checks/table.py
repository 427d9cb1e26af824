"""The compatibility page: target by operator by type, verified how and with which version. Markdown from a record."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edgeq.checks.cases import block_cases, capability_cases
from edgeq.checks.lint import RULES
from edgeq.checks.record import Record, Result, TargetRecord, Verdict, fingerprint, summary
from edgeq.target import TargetProfile

__all__ = ["compatibility_page", "unrecorded"]

_HEADER = """\
# Compatibility

<!-- Written by docs/generate_compatibility.py from docs/compatibility.json: run `make compatibility`. -->

What each target was seen to do, not what its documents say. For every capability of every profile, edgeq made models
of one operator (and some blocks of several), quantized them as an export would, and ran them on the real provider,
emulator or compiler that the table names. A case **holds** if the provider takes it, runs it as planned, and its
numbers are those of the ONNX specification: at least 30 dB with 8-bit activations (one step), 50 with 16 bits, 35 for
weights alone and for floats, and 10 dB less for a block. Where nothing runs a target on a PC, its models were checked
by the documented **rules only** (they stand at the end). `edgeq targets check NAME` repeats it;
[adding a target](adding_a_target.md) says more.
"""

_MARKS: dict[Verdict, str] = {"holds": "{}", "rules only": "({})", "not verified": "{}?", "does not hold": "~~{}~~"}


def unrecorded(record: Record, profiles: Iterable[TargetProfile]) -> list[str]:
    """What was changed or added since it was checked: a target's name, and of what no result is recorded."""
    missing = []
    for profile in profiles:
        found = record.targets.get(profile.name)
        known = {capability.fingerprint for capability in found.capabilities} if found else set()
        missing += [
            f"{profile.name}: {capability.kind} {', '.join(capability.ops)}"
            for capability in profile.capability
            if fingerprint(profile, capability) not in known and any(capability_cases(profile, capability))
        ]
        if fingerprint(profile) not in known and any(block_cases(profile)):
            missing.append(f"{profile.name}: blocks")
    return missing


def compatibility_page(record: Record) -> str:
    """The whole page."""
    targets = [record.targets[name] for name in sorted(record.targets)]
    shown = [target for target in targets if "@" not in target.target]
    parts = [_HEADER, _targets(targets), _failures(targets), _matrix(shown)]
    parts += [_target(target) for target in shown]
    return "\n".join([*parts, _rules()])


def _rules() -> str:
    rows = [(f"`{rule.name}`", rule.severity, _escape(rule.text)) for rule in RULES]
    text = "## The rules\n\nWhat `edgeq targets check NAME --model FILE` reads in any quantized model or bundle:\n\n"
    return text + _table(("rule", "if broken", "what must be"), rows)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [_row(*head), "|" + "---|" * len(head), *(_row(*row) for row in rows)]
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _proof(target: TargetRecord) -> str:
    """How far the verdicts of a target reach, in words."""
    proofs = {result.proof for result in target.results}
    if "numbers" in proofs:
        return "run, numbers compared"
    if "build" in proofs:
        return "compiled, not run"
    return "rules only" if "rules" in proofs else "not verified"


def _targets(targets: Sequence[TargetRecord]) -> str:
    rows = [
        (f"`{t.target}`", t.provider, _proof(t), _escape(t.version) or "-", summary(t.results), t.checked)
        for t in targets
    ]
    return "## Targets\n\n" + _table(("target", "provider", "verified how", "with", "cases", "on"), rows)


def _failures(targets: Sequence[TargetRecord]) -> str:
    """Every case that does not hold, the same one of several variants on one line."""
    where: dict[tuple[str, str], list[str]] = {}
    for target in targets:
        for result in target.results:
            if result.verdict == "does not hold":
                where.setdefault((result.name, result.reason or ""), []).append(f"`{target.target}`")
    if not where:
        return "Nothing that was run fails to hold.\n"
    rows = [(name, ", ".join(dict.fromkeys(names)), _escape(reason)) for (name, reason), names in where.items()]
    return "## What does not hold\n\n" + _table(("case", "on", "why"), rows)


def _matrix(targets: Sequence[TargetRecord]) -> str:
    """Operators by targets; in the cells the types, marked by the worst verdict of their forms."""
    cells: dict[str, dict[str, dict[str, list[Result]]]] = {}
    for target in targets:
        for capability in target.capabilities:
            if capability.kind == "block":
                continue
            for result in capability.results:
                by_target = cells.setdefault(result.op, {}).setdefault(target.target, {})
                by_target.setdefault(_short(result.type), []).append(result)
    names = [target.target for target in targets]
    rows = [
        (f"{op}", *(" ".join(_mark(kind, found) for kind, found in cells[op].get(name, {}).items()) for name in names))
        for op in sorted(cells)
    ]
    text = """\
## Operators

`a8` are 8-bit activations, `w4a16` 4-bit weights beside 16-bit activations, `w4` 4-bit weights alone, `f16` and `f32`
floats; `(a8)` was checked by rules only, `a8?` could not be checked, ~~`a8`~~ does not hold in at least one form. An
empty cell: the profile promises nothing, and the operator stays float.

"""
    return text + _table(("operator", *(f"`{name}`" for name in names)), rows)


def _short(kind: str) -> str:
    return {"float32": "f32", "float16": "f16"}.get(kind, kind.partition("_b")[0])


def _mark(kind: str, results: Sequence[Result]) -> str:
    verdicts = {result.verdict for result in results}
    order: tuple[Verdict, ...] = ("does not hold", "not verified", "rules only", "holds")
    return _MARKS[next(verdict for verdict in order if verdict in verdicts)].format(kind)


def _target(target: TargetRecord) -> str:
    """One target: operators and blocks by type, with the worst SQNR of all forms."""
    rows = []
    for capability in target.capabilities:
        groups: dict[tuple[str, str], list[Result]] = {}
        for result in capability.results:
            groups.setdefault((result.op, result.type), []).append(result)
        for (op, kind), results in groups.items():
            verdicts = ", ".join(dict.fromkeys(result.verdict for result in results))
            near, far = _least(results, "db"), _least(results, "float_db")
            rows.append((op, capability.kind, kind, str(len(results)), verdicts, near, far))
    how = f"{target.provider}, {_proof(target)}" + (f", with {target.version}" if target.version else "")
    head = ("operator or block", "kind", "type", "forms", "verdict", "to the specification", "to the float model")
    return f"## {target.target}\n\n{_escape(how)}. {summary(target.results).capitalize()}.\n\n" + _table(head, rows)


def _least(results: Sequence[Result], key: str) -> str:
    found = [value for result in results if (value := getattr(result, key)) is not None]
    return "-" if not found else "identical" if min(found) >= 200 else f"{min(found):.0f} dB"
