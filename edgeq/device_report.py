"""What was measured on devices: the nouns of ``edgeq run --device`` and ``edgeq compare``, as JSON.

``None`` is "n/a": the device does not tell. Units are in the field names.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from edgeq.comparison import Difference
from edgeq.node_times import NodeTime
from edgeq.report import Finding, Metric, decode, encode

__all__ = [
    "DEVICE_REPORT_SCHEMA",
    "CheckState",
    "Cluster",
    "DeviceCheck",
    "DeviceInfo",
    "DeviceLatency",
    "DeviceReport",
    "DeviceResult",
    "DeviceState",
    "NodeTime",
    "SessionTimes",
]

DEVICE_REPORT_SCHEMA = 1

Kind = Literal["local", "qemu", "adb", "ssh", "browser", "htp"]


class Cluster(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Cores of one kind: how many, and their highest frequency."""

    cores: int
    max_mhz: int | None = None


class DeviceInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One device as it describes itself; ``clusters`` from the slowest cores to the fastest.

    ``emulated``: its integers are those of the real thing, its times are not. ``providers`` are the execution
    providers of ONNX Runtime that can be used there. ``remedy`` says what to do where ``problem`` is given:
    a device that is there but cannot be used (unauthorized, say).
    """

    spelling: str
    kind: Kind
    model: str | None = None
    soc: str | None = None
    abi: str | None = None
    os: str | None = None
    cores: int | None = None
    clusters: tuple[Cluster, ...] = ()
    memory_mb: float | None = None
    isa: tuple[str, ...] = ()
    emulated: bool = False
    providers: tuple[str, ...] = ()
    problem: str | None = None
    remedy: str | None = None


class DeviceState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How warm and fast a device is at a moment: frequency per core, its hottest sensor of the processor."""

    frequency_mhz: tuple[int, ...] = ()
    temperature_c: float | None = None
    throttled: bool | None = None
    battery_percent: int | None = None


class SessionTimes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The runs of one process: what a later run is compared with.

    ``wall_ms`` holds 21 quantiles of the wall time, from the fastest run to the slowest in steps of 5 %;
    ``cpu_p50_ms`` is the median of CPU time over all threads.
    """

    runs: int
    wall_ms: tuple[float, ...]
    cpu_p50_ms: float | None = None

    @property
    def p50_ms(self) -> float:
        return self.wall_ms[len(self.wall_ms) // 2]


class DeviceLatency(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Wall time of one inference after warm-up; ``per_second`` is the throughput of one such stream.

    ``cpu_p50_ms`` is CPU time over all threads. ``emulated`` times say nothing of the real device.
    ``sessions`` tells the processes apart in which it was run.
    """

    runs: int
    warmup_runs: int
    min_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    mean_ms: float
    per_second: float
    cpu_p50_ms: float | None = None
    load_ms: float | None = None
    first_ms: float | None = None
    emulated: bool = False
    sessions: tuple[SessionTimes, ...] = ()


CheckState = Literal["passed", "failed", "undecided", "error"]


class DeviceCheck(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing that was asked of a device, by the option that asks: what was found, in words.

    ``undecided``: what was measured does not tell. ``error``: it could not be judged.
    """

    name: str
    state: CheckState
    text: str


class DeviceResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One bundle on one device; ``error`` and ``remedy`` are given where it could not be run.

    ``metrics`` are as in ``Report``: first those of the bundle's samples, which are judged against its manifest,
    then those of a data set that was streamed through the device.
    ``placement`` counts the nodes that each provider took, Q/DQ among them, where the device tells.
    ``regression`` is against the baseline (A) that was given, ``checks`` are what was asked for.
    """

    device: DeviceInfo
    target: str
    precision: str
    provider: str = ""
    runtime: str = ""
    threads: int = 1
    core_mask: str | None = None
    latency: DeviceLatency | None = None
    peak_mb: float | None = None
    baseline_mb: float | None = None
    energy_mj: float | None = None
    before: DeviceState = DeviceState()
    after: DeviceState = DeviceState()
    metrics: tuple[Metric, ...] = ()
    nodes: tuple[NodeTime, ...] = ()
    placement: dict[str, int] = {}
    regression: Difference | None = None
    checks: tuple[DeviceCheck, ...] = ()
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    error: str | None = None
    remedy: str | None = None
    exit_code: int = 0

    @property
    def closeness(self) -> str:
        """In words, how close its outputs on the samples are to the float model's: the worst output's SQNR, or the
        share of boxes that agree.
        """
        judged = [metric for metric in self.metrics if metric.source == self.metrics[0].source]
        ratios = [metric.value for metric in judged if metric.unit == "dB"]
        if ratios:
            return f"{min(ratios):.2f} dB"
        return f"{judged[0].value:.1f} % of boxes" if judged and judged[0].unit == "%" else "n/a"


class DeviceReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One bundle on one or several devices."""

    schema: int = DEVICE_REPORT_SCHEMA
    edgeq: str
    name: str
    target: str
    precision: str
    results: tuple[DeviceResult, ...]

    def to_json(self) -> bytes:
        """UTF-8 JSON with sorted keys."""
        return encode(self)

    @classmethod
    def from_json(cls, text: bytes, *, where: str | None = None) -> DeviceReport:
        """Raises ConfigError for anything but a report of this schema."""
        return decode(text, cls, DEVICE_REPORT_SCHEMA, "device report", where)
