"""The report: everything that was measured of one package. ``None`` is "n/a": not measured, never a guess.

Units are in the field names (``_ms``, ``_mb``, ``_db``, ``_bytes``). Decibels end at
``LIMIT_DB``: JSON knows no infinity, and 200 dB is beyond what float32 can tell from identical.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

from edgeq.errors import ConfigError
from edgeq.front import Front
from edgeq.node_times import NodeTime
from edgeq.qtypes import Decision, Kind, PerAxis, PerTensor, Trial
from edgeq.source import Parity
from edgeq.target import Gate

__all__ = [
    "LIMIT_DB",
    "REPORT_SCHEMA",
    "Clause",
    "Contract",
    "Finding",
    "GraphReport",
    "Latency",
    "LatencyComparison",
    "Machine",
    "Memory",
    "Metric",
    "NodePlacement",
    "PlanRow",
    "ProviderCheck",
    "Report",
    "Size",
    "TensorError",
    "bounded_db",
    "decode",
    "encode",
    "plan_row",
]

REPORT_SCHEMA = 1
LIMIT_DB = 200.0


def bounded_db(value: float) -> float:
    """``value`` within ``[-LIMIT_DB, LIMIT_DB]``: identical tensors have an SQNR of ``LIMIT_DB`` in a report."""
    return max(-LIMIT_DB, min(LIMIT_DB, float(value)))


class Metric(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One figure of accuracy; higher is better.

    ``float_value`` is the float model's own figure, or None where the float model is the
    reference (agreement, SQNR). ``unit`` is ``"%"``, ``"dB"`` or ``""``. ``source`` says in words
    on what it was measured, such as ``"20 held-out pictures"``.
    """

    name: str
    value: float
    float_value: float | None = None
    unit: Literal["%", "dB", ""] = ""
    samples: int
    source: str


class Latency(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Wall time of one inference after warm-up, in ms; ``cpu_p50_ms`` is CPU time over all threads.

    ``load_ms`` is the time to make the session, ``first_ms`` that of the first run.
    """

    provider: str
    threads: int
    runs: int
    min_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    cpu_p50_ms: float
    load_ms: float
    first_ms: float


class LatencyComparison(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Both models in one process, one run each in turn.

    ``speedup`` is float p50 over quantized p50 in wall time; ``cpu_speedup`` the median of the
    ratios of CPU time of neighbouring runs, which a busy machine disturbs less.
    """

    quantized: Latency
    float_model: Latency | None = None
    speedup: float | None = None
    cpu_speedup: float | None = None


class NodePlacement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where and as what one node runs, as the provider itself said.

    ``runs_as`` is the kernel that runs (``QLinearConv``), ``fused_into`` the node whose kernel
    does this node's work. ``why`` is given for nodes that stay float or fall to the CPU.
    ``predicted`` and ``predicted_provider`` are what the profile alone had said, before anything was
    run (None: nothing was predicted); ``edgeq.agreement`` says when both agree.
    """

    node: str
    op_type: str
    provider: str
    runs_as: str
    kind: Kind
    fused_into: str | None = None
    why: str | None = None
    predicted: Kind | None = None
    predicted_provider: str | None = None


class TensorError(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far one tensor of the quantized model is from the float model's.

    ``depth`` is the producing node's place in the graph. ``own_share`` (0 to 1) is the part of
    the tensor's relative noise power that its inputs do not carry already: the node's own doing.
    """

    tensor: str
    node: str
    op_type: str
    depth: int
    sqnr_db: float
    own_share: float


class Memory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Peak resident memory of a process that loads and runs one model; ``baseline_mb`` is before loading."""

    peak_mb: float
    baseline_mb: float


class Size(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bytes of the model files (with external data); ``ratio`` is float over quantized."""

    quantized_bytes: int
    float_bytes: int

    @property
    def ratio(self) -> float:
        return self.float_bytes / max(self.quantized_bytes, 1)


class PlanRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One decision of the plan, for people: ``scale`` is one number or the span of many."""

    tensor: str
    role: str
    dtype: str | None = None
    granularity: str | None = None
    scale: str | None = None
    lo: float | None = None
    hi: float | None = None
    consumers: int
    rule: str
    skip_reason: str | None = None


class Clause(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing that was asked for, such as ``--max-drop 0.5``, and what was found."""

    option: str
    asked: float
    measured: float | None
    unit: str
    met: bool


class Contract(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the user asked for; ``met`` if every clause is."""

    clauses: tuple[Clause, ...]
    met: bool


class Machine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the measurements were made; holds no name of a host or user."""

    cpu: str
    architecture: str
    isa: tuple[str, ...]
    cores: int
    os: str
    python: str
    onnxruntime: str


class Finding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something the user should know, with what can be done about it.

    ``gate`` names the gate of the target's profile that it belongs to; a build can be told to fail on it.
    """

    severity: Literal["error", "warning", "info"]
    text: str
    nodes: tuple[str, ...] = ()
    remedy: str | None = None
    gate: Gate | None = None


class ProviderCheck(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a real provider, emulator or compiler made of a packaged model.

    ``place`` is where, as ``--on`` spells it (``qnn``, ``arm64:cortex-a53``; empty: there is none).
    ``status`` beside those of ``edgeq.sandbox.Outcome``: ``absent`` (not installed), ``left out`` (takes
    long and was not asked for), ``none`` (nothing runs this provider here: the profile's rules only).
    It took ``taken`` of ``nodes`` nodes, Q/DQ not counted; None where it does not tell. ``behind_db`` says
    how far the SQNR of its worst output, ``worst_db``, falls behind the figure that the package was judged
    by. ``text`` says it in words, ``version`` names package and version of what ran.
    """

    place: str
    provider: str
    status: Literal["ran", "built", "refused", "crashed", "absent", "left out", "none"]
    version: str = ""
    metrics: tuple[Metric, ...] = ()
    taken: int | None = None
    nodes: int | None = None
    worst_db: float | None = None
    behind_db: float | None = None
    text: str
    remedy: str | None = None


class GraphReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was measured of a package's second graph; ``kinds`` counts its nodes by how they run."""

    target: str
    precision: str
    provider: str
    metrics: tuple[Metric, ...] = ()
    primary: str | None = None
    drop: float | None = None
    size: Size | None = None
    kinds: dict[str, int] = {}
    checks: tuple[ProviderCheck, ...] = ()
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()


class Report(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that was measured of one package.

    ``primary`` names the metric the contract is about and ``drop`` is its loss in percentage
    points (float minus quantized; for agreements 100 minus agreement). ``blame`` is ordered
    worst first, ``placement`` and ``plan`` in graph order. ``agreement`` (0 to 1) is the share of nodes
    that run as the profile predicted, None where the provider does not tell. ``node_times`` are the kernels of
    the package and of the float model, named after the nodes whose work they do. ``trials`` are what was tried
    block by block, on calibration data. ``checks`` say what the real
    provider made of the package, ``fallback`` is about its second graph, ``notes`` say what was not
    verified.
    """

    schema: int = REPORT_SCHEMA
    edgeq: str
    name: str
    target: str
    precision: str
    task: str | None = None
    machine: Machine
    parity: Parity | None = None
    metrics: tuple[Metric, ...] = ()
    primary: str | None = None
    drop: float | None = None
    latency: LatencyComparison | None = None
    node_times: tuple[NodeTime, ...] = ()
    float_node_times: tuple[NodeTime, ...] = ()
    memory: Memory | None = None
    float_memory: Memory | None = None
    size: Size | None = None
    placement: tuple[NodePlacement, ...] = ()
    agreement: float | None = None
    blame: tuple[TensorError, ...] = ()
    plan: tuple[PlanRow, ...] = ()
    contract: Contract | None = None
    front: Front | None = None
    trials: tuple[Trial, ...] = ()
    checks: tuple[ProviderCheck, ...] = ()
    fallback: GraphReport | None = None
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> bytes:
        """UTF-8 JSON with sorted keys; the same bytes for the same report."""
        return encode(self)

    @classmethod
    def from_json(cls, text: bytes, *, where: str | None = None) -> Report:
        """Raises ConfigError for anything but a report of this schema."""
        return decode(text, cls, REPORT_SCHEMA, "report", where)

    def metric(self, name: str | None) -> Metric | None:
        """The metric of this name, or None."""
        return next((m for m in self.metrics if m.name == name), None)


def plan_row(decision: Decision) -> PlanRow:
    """One line of the plan from its decision."""
    common = {"tensor": decision.tensor, "role": decision.role, "consumers": len(decision.consumers)}
    if decision.qparams is None:
        return msgspec.convert({**common, "rule": decision.rule, "skip_reason": decision.skip_reason}, PlanRow)
    qparams = decision.qparams
    granularity = qparams.spec.granularity
    if isinstance(granularity, PerTensor):
        how = "per tensor"
    elif isinstance(granularity, PerAxis):
        how = f"per channel, axis {granularity.axis} ({qparams.scale.size})"
    else:
        how = f"blocks of {granularity.size}, axis {granularity.axis} ({qparams.scale.size})"
    low, high = float(qparams.scale.min()), float(qparams.scale.max())
    lo, hi = qparams.real_range
    return PlanRow(
        tensor=decision.tensor,
        role=decision.role,
        dtype=qparams.spec.dtype.name,
        granularity=how,
        scale=f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}",
        lo=lo,
        hi=hi,
        consumers=len(decision.consumers),
        rule=decision.rule,
    )


def encode(value: Any) -> bytes:
    """Indented UTF-8 JSON with sorted keys and a final newline; infinities become ``LIMIT_DB``."""
    builtins = _finite(msgspec.to_builtins(value, order="sorted"))
    return msgspec.json.format(msgspec.json.encode(builtins, order="sorted"), indent=2) + b"\n"


def decode(text: bytes, kind: type[Any], schema: int, noun: str, where: str | None) -> Any:
    """Parse JSON written by ``encode``.

    Raises:
        ConfigError: not JSON, another schema, an unknown or missing key, a wrong type.
    """
    try:
        table = msgspec.json.decode(text)
        found = table.get("schema") if isinstance(table, dict) else None
        if found == schema:
            return msgspec.convert(table, kind, str_keys=True)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the {noun} is not valid: {error}", where=where, remedy="make the package again with this edgeq"
        ) from None
    raise ConfigError(
        f"the {noun} has schema {found!r}, this edgeq reads schema {schema}",
        where=where,
        remedy="use the edgeq that wrote it, or make the package again",
    )


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        if math.isnan(value):
            raise ValueError("a report holds no NaN: say None for what was not measured")
        return bounded_db(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
