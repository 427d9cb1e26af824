"""What was checked of a profile, with what and with which result: kept as JSON, compared by fingerprints."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from edgeq.checks.cases import CASES_VERSION
from edgeq.errors import ConfigError
from edgeq.target import Capability, TargetProfile

__all__ = [
    "CapabilityRecord",
    "Proof",
    "Record",
    "Result",
    "TargetRecord",
    "Verdict",
    "fingerprint",
    "load_record",
    "save_record",
    "summary",
]

Verdict = Literal["holds", "does not hold", "not verified", "rules only"]
"""``rules only``: nothing runs this target on a PC, and the model obeys the rules of its profile."""

Proof = Literal["numbers", "build", "rules", "none"]
"""What the verdict rests on: the provider's results, its compiler's consent, the documented rules, or nothing."""


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of all tables."""


class Result(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One case: ``op`` in ``type`` and ``form``; in JSON a list of these fields, without defaults at its end.

    ``db`` is the SQNR of the provider's outputs against the arithmetic of the ONNX specification,
    ``float_db`` against the float model. ``reason`` is why it does not hold (the provider's own words
    where it has any) or was not verified.
    """

    op: str
    type: str
    form: str = ""
    db: float | None = None
    float_db: float | None = None
    verdict: Verdict = "holds"
    proof: Proof = "numbers"
    reason: str | None = None

    @property
    def name(self) -> str:
        return " ".join(part for part in (self.op, self.type, self.form) if part)


class CapabilityRecord(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """All cases of one capability; ``fingerprint`` says of which content (see ``fingerprint``)."""

    fingerprint: str
    kind: str
    ops: tuple[str, ...]
    results: tuple[Result, ...]


class TargetRecord(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One target. ``version`` names package and version of what ran it, ``checked`` is a day (YYYY-MM-DD)."""

    target: str
    provider: str
    sandbox: str | None = None
    version: str = ""
    checked: str
    capabilities: tuple[CapabilityRecord, ...]

    @property
    def results(self) -> tuple[Result, ...]:
        return tuple(result for capability in self.capabilities for result in capability.results)


class Record(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """All targets, by name."""

    cases: int = CASES_VERSION
    targets: dict[str, TargetRecord] = {}


def fingerprint(profile: TargetProfile, capability: Capability | None = None) -> str:
    """16 hex digits over all that decides how models of ``capability`` look and run (None: blocks, of all of it).

    Words for people (``source``, ``summary``, ``note``) are left out, as they change no result; so are keys
    that have their default, so that a new key changes nothing for those who do not use it.
    """
    parts = {
        "cases": CASES_VERSION,
        "capability": [_content(c) for c in profile.capability if capability is None or c == capability],
        "provider": {key: getattr(profile.provider, key) for key in _PROVIDER},
        **{key: _content(getattr(profile, key)) for key in _TABLES},
        "absorbs": profile.absorbs,
        "fixed": [_content(one) for one in profile.fixed],
        "sandbox": [profile.verification.sandbox, profile.verification.arguments],
        "precisions": [] if capability else profile.precisions,
    }
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()[:16]


_PROVIDER = ("name", "options", "session")
"""What runs it here is the sandbox, not the package that the app brings."""

_TABLES = ("graph", "floats", "activations", "weights", "bias")
_WORDS = frozenset({"source", "only"})


def _content(table: msgspec.Struct) -> dict[str, object]:
    """The keys of a table that say something other than their default."""
    return {
        field.name: value
        for field in msgspec.structs.fields(table)
        if field.name not in _WORDS and (value := getattr(table, field.name)) != _default(field)
    }


def _default(field: msgspec.structs.FieldInfo) -> object:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def summary(results: Iterable[Result]) -> str:
    """``"61 of 63 hold, 2 do not"``, and how many were not verified or checked by rules only."""
    counts = Counter(result.verdict for result in results)
    judged = counts["holds"] + counts["does not hold"]
    parts = []
    if judged:
        parts.append(f"{counts['holds']} of {judged} hold")
    if counts["does not hold"]:
        parts.append(f"{counts['does not hold']} {'does' if counts['does not hold'] == 1 else 'do'} not")
    if counts["not verified"]:
        parts.append(f"{counts['not verified']} not verified")
    if counts["rules only"]:
        parts.append(f"{counts['rules only']} by rules only")
    return ", ".join(parts) or "nothing to check"


def load_record(path: str | os.PathLike[str]) -> Record:
    """The results that were recorded; an empty record if there is no file.

    Raises:
        ConfigError: the file is no record.
    """
    file = Path(path)
    if not file.exists():
        return Record()
    try:
        return msgspec.json.decode(file.read_bytes(), type=Record)
    except msgspec.DecodeError as error:
        raise ConfigError(
            f"the recorded results are not readable: {error}",
            where=str(file),
            remedy="remove the file and check again",
        ) from None


def save_record(path: str | os.PathLike[str], record: Record) -> None:
    """Write the record by the targets' names, one line per case: two checks can then be compared line by line."""
    targets = [_target_text(name, record.targets[name]) for name in sorted(record.targets)]
    text = f'{{"cases": {record.cases}, "targets": {{\n' + ",\n".join(targets) + "\n}}\n"
    Path(path).write_text(text, encoding="utf-8")


def _target_text(name: str, target: TargetRecord) -> str:
    capabilities = []
    for capability in target.capabilities:
        results = ",\n".join(f"   {_result_text(result)}" for result in capability.results)
        head = msgspec.structs.replace(capability, results=())
        capabilities.append(f"  {_open_list(head, 'results')}\n{results}]}}")
    whole = msgspec.structs.replace(target, capabilities=())
    return f" {_json(name)}: {_open_list(whole, 'capabilities')}\n" + ",\n".join(capabilities) + "]}"


def _result_text(result: Result) -> str:
    values = list(msgspec.structs.astuple(result))
    defaults = [field.default for field in msgspec.structs.fields(Result)]
    while values and values[-1] == defaults[len(values) - 1]:
        values.pop()
    return _json(values)


def _open_list(head: msgspec.Struct, key: str) -> str:
    """The JSON of ``head``, whose last field ``key`` is an empty list, up to that list's bracket."""
    text = _json(head)
    assert text.endswith(f'"{key}":[]}}')
    return text[:-2]


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
