"""What was found when two models were compared: the nouns of ``edgeq compare``, as JSON.

``None`` is "n/a". Model A is the one to compare with, B the one that is judged.
"""

from __future__ import annotations

from collections.abc import Set

import msgspec

from edgeq.comparison import Difference, Measure
from edgeq.device_report import DeviceInfo, DeviceLatency, DeviceState
from edgeq.errors import ContractError
from edgeq.node_times import NodeTime
from edgeq.report import Metric, decode, encode

__all__ = ["COMPARE_REPORT_SCHEMA", "CompareReport", "ComparedDevice", "ComparedModel"]

COMPARE_REPORT_SCHEMA = 1


class ComparedModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of the two. ``model_bytes`` counts the model file with its external data.

    ``metrics`` are those of the report that lies in the bundle; ``target`` is empty for a bare ONNX file.
    """

    name: str
    target: str
    precision: str
    provider: str
    model_bytes: int
    metrics: tuple[Metric, ...] = ()
    primary: str | None = None


class ComparedDevice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Both on one device; ``error`` and ``remedy`` are given where they could not be run.

    ``differences`` holds one for each measure that the device tells, ``decided_by`` the measure that counts
    and why it does. ``metrics_a`` and ``metrics_b`` are against the float model's answers to the
    same samples, ``agreement`` is B's answers against A's. ``nodes_a`` and ``nodes_b`` are from one session.
    """

    device: DeviceInfo
    runtime: str = ""
    threads: int = 1
    core_mask: str | None = None
    a: DeviceLatency | None = None
    b: DeviceLatency | None = None
    differences: tuple[Difference, ...] = ()
    decided_by: Measure | None = None
    why: str = ""
    metrics_a: tuple[Metric, ...] = ()
    metrics_b: tuple[Metric, ...] = ()
    agreement: tuple[Metric, ...] = ()
    nodes_a: tuple[NodeTime, ...] = ()
    nodes_b: tuple[NodeTime, ...] = ()
    before: DeviceState = DeviceState()
    after: DeviceState = DeviceState()
    notes: tuple[str, ...] = ()
    error: str | None = None
    remedy: str | None = None
    exit_code: int = 0

    @property
    def difference(self) -> Difference | None:
        """The one that counts."""
        return next((found for found in self.differences if found.measure == self.decided_by), None)


class CompareReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Two models on one or several devices."""

    schema: int = COMPARE_REPORT_SCHEMA
    edgeq: str
    a: ComparedModel
    b: ComparedModel
    results: tuple[ComparedDevice, ...]

    def exit_code(self, fail_if: Set[str]) -> int:
        """0, or 7 if a verdict is among ``fail_if`` (``slower``, ``cannot-tell``), or that of a device's error."""
        errors = [result.exit_code for result in self.results if result.error is not None]
        if errors:
            return max(errors)
        found = [result.difference for result in self.results]
        verdicts = {one.verdict.replace(" ", "-") if one is not None else "cannot-tell" for one in found}
        return ContractError.exit_code if verdicts & fail_if else 0

    def to_json(self) -> bytes:
        """UTF-8 JSON with sorted keys."""
        return encode(self)

    @classmethod
    def from_json(cls, text: bytes, *, where: str | None = None) -> CompareReport:
        """Raises ConfigError for anything but a report of this schema."""
        return decode(text, cls, COMPARE_REPORT_SCHEMA, "comparison", where)
