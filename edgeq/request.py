"""What a user asks for, and what comes back: the arguments and results of ``edgeq.export``."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgeq.box_metrics import AGREEMENT
from edgeq.bundle import Bundle
from edgeq.embedding import Embedded
from edgeq.errors import CalibrationError, ConfigError
from edgeq.qtypes import QuantPlan, Scheme
from edgeq.report import Clause, Contract, Finding, Metric, NodePlacement, Report, Size
from edgeq.target import TargetProfile

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "Data",
    "Exported",
    "Limits",
    "box_agreement",
    "broken_contract",
    "closed_gates",
    "library_versions",
    "output_sqnr_db",
    "parse_bytes",
    "parse_percent",
    "parse_scheme",
    "parse_shapes",
    "planned_placement",
    "shortfall",
]


class Evaluation(Protocol):
    """The part of ``edgeq.stages.run.accuracy.Evaluation`` that a contract looks at."""

    @property
    def metrics(self) -> tuple[Metric, ...]: ...

    @property
    def drop(self) -> float: ...


@dataclass(frozen=True)
class Data:
    """Data to calibrate with and to measure accuracy on.

    ``calibration`` and ``evaluation`` are whatever ``edgeq.stages.calibrate.load_feed`` takes: a folder of
    pictures, ``.npy``/``.npz``, ``.jsonl``, a recipe, or anything iterable. Without ``evaluation``
    a part of the calibration data is held out. ``labels`` (a file, see ``docs/accuracy.md``)
    belong to ``evaluation``; ``pairs`` is a ``.jsonl`` file with ``query`` and ``document``;
    ``metric`` is the user's own, ``path/to/metric.py:function``.
    """

    calibration: Any = None
    evaluation: Any = None
    labels: str | os.PathLike[str] | None = None
    pairs: str | os.PathLike[str] | None = None
    metric: str | None = None
    count: int | None = None
    seed: int | None = None

    def check(self) -> None:
        """Raise CalibrationError or ConfigError for files that are missing: before the work, not after it."""
        for option, file in (("--labels", self.labels), ("--pairs", self.pairs)):
            if file is not None and not Path(file).exists():
                raise CalibrationError(f"{option} names no file or folder", where=str(file), remedy="check the path")
        if self.metric is not None and not Path(self.metric.rpartition(":")[0]).is_file():
            raise ConfigError(f"no metric at {self.metric!r}", remedy="write it as path/to/metric.py:function")


@dataclass(frozen=True)
class Limits:
    """The contract: what the package may lose and weigh at most; None means no limit.

    ``max_drop`` is in percentage points of the primary metric, ``min_sqnr_db`` in dB,
    ``max_size_bytes`` is for the model file with its external data, ``max_latency_ms`` for the median of one
    inference on this machine, on one thread. ``pick`` is no limit: it takes this point of the Pareto front.
    """

    max_drop: float | None = None
    min_sqnr_db: float | None = None
    max_size_bytes: int | None = None
    max_latency_ms: float | None = None
    pick: int | None = None

    @property
    def contract(self) -> bool:
        """Whether anything is limited."""
        return any(
            one is not None for one in (self.max_drop, self.min_sqnr_db, self.max_size_bytes, self.max_latency_ms)
        )

    def check(self, target: TargetProfile, *, measure: bool) -> None:
        """Raise ConfigError for a limit that cannot be judged: before the work, not after it."""
        if self.max_latency_ms is None:
            return
        what = f"--max-latency {self.max_latency_ms:g} cannot be judged for {target.name}"
        if not measure:
            raise ConfigError(f"{what}: --no-measure leaves latency out", remedy="leave out one of the two")
        if not target.verification.latency_here:
            machines = ", ".join(target.verification.machines) or "none that edgeq runs on"
            raise ConfigError(
                f"{what}: its latency is n/a here (machines that tell of it: {machines})",
                remedy="leave out --max-latency, and measure the package on the device",
            )

    def judge(self, evaluation: Evaluation, size: Size, latency_ms: float | None = None) -> Contract | None:
        """The contract with what was measured, or None if nothing was asked."""
        # What is written is what is judged: 0.5 asked and 0.5 measured is met, whatever the last bit says.
        drop, size_bytes = round(evaluation.drop, 4), size.quantized_bytes
        sqnr_db = output_sqnr_db(evaluation)
        clauses = []
        if self.max_drop is not None:
            met = drop <= self.max_drop
            clauses.append(_clause("--max-drop", self.max_drop, drop, "points", met))
        if self.min_sqnr_db is not None:
            met = sqnr_db is not None and sqnr_db >= self.min_sqnr_db
            clauses.append(_clause("--min-sqnr", self.min_sqnr_db, sqnr_db, "dB", met))
        if self.max_size_bytes is not None:
            met = size_bytes <= self.max_size_bytes
            clauses.append(_clause("--max-size", self.max_size_bytes, size_bytes, "bytes", met))
        if self.max_latency_ms is not None:
            met = latency_ms is not None and latency_ms <= self.max_latency_ms
            clauses.append(_clause("--max-latency", self.max_latency_ms, latency_ms, "ms", met))
        return Contract(clauses=tuple(clauses), met=all(c.met for c in clauses)) if clauses else None


@dataclass(frozen=True)
class Exported:
    """What ``edgeq.export`` returns: the bundle on disk, the report of what was measured, and projects made of it."""

    bundle: Bundle
    report: Report
    embedded: tuple[Embedded, ...] = ()

    @property
    def path(self) -> Path:
        return self.bundle.path


def output_sqnr_db(evaluation: Evaluation) -> float | None:
    """The SQNR of the pooled embeddings where there are some, else of the worst output; None if not measured."""
    return next((metric.value for metric in evaluation.metrics if metric.unit == "dB"), None)


def box_agreement(evaluation: Evaluation) -> float | None:
    """The share of a detector's boxes, in percent, that are the float model's; None if it gives none."""
    return next((metric.value for metric in evaluation.metrics if metric.name == AGREEMENT), None)


def broken_contract(report: Report, path: Path) -> tuple[str, str, str]:
    """What, where and remedy of a contract that was not met."""
    assert report.contract is not None
    missed = [
        f"{c.option} {_in_words(c.asked, c.unit)}: the best found has {_in_words(c.measured, c.unit)}, "
        f"{_in_words(None if c.measured is None else abs(c.measured - c.asked), c.unit)} off"
        for c in report.contract.clauses
        if not c.met
    ]
    what = f"the contract is not met with {report.precision} on {report.target}: {'; '.join(missed)}"
    if report.primary:
        what += f" (primary metric: {report.primary})"
    remedy = "look at the report for the layers that lose most; relax the limit, or give more calibration data"
    return what, f"the best result is in {path}", remedy


def closed_gates(report: Report, found: Sequence[Finding], path: Path) -> tuple[str, str, str]:
    """What, where and remedy of gates that a build was told to fail on."""
    said = [f"{f.gate}: {f.text.rstrip('.')} ({', '.join(f.nodes[:5])}{', ...' * (len(f.nodes) > 5)})" for f in found]
    what = f"{report.name} on {report.target} does not pass {len(found)} of its gates: {'; '.join(said)}"
    remedies = dict.fromkeys(f.remedy for f in found if f.remedy)
    return what, str(path), "; ".join(remedies) or "see the report"


def shortfall(contract: Contract | None) -> float:
    """By how much the limits are missed, each in parts of what was asked, added up; 0.0 where none is missed.

    A limit of 0 has no parts: it counts in its own unit. What was not measured is missed by infinity.
    """
    missed = [clause for clause in contract.clauses if not clause.met] if contract is not None else []
    parts = (
        float("inf") if c.measured is None or math.isnan(c.measured) else abs(c.measured - c.asked) / abs(c.asked or 1)
        for c in missed
    )
    return sum(parts, 0.0)


def _in_words(value: float | None, unit: str) -> str:
    return "nothing measured" if value is None else f"{value:.4g} {unit}" if unit != "bytes" else f"{value:,.0f} bytes"


def planned_placement(model: ir.Model, plan: QuantPlan) -> tuple[NodePlacement, ...]:
    """The placement that the profile promises, for providers that are not available here."""
    return tuple(
        NodePlacement(
            node=str(node.name),
            op_type=node.op_type,
            provider=plan.nodes[str(node.name)].provider,
            runs_as="not run here",
            kind=plan.nodes[str(node.name)].kind,
            why=plan.nodes[str(node.name)].why,
        )
        for node in model.graph
    )


def library_versions() -> dict[str, str]:
    """The versions that decide what bytes come out."""
    import importlib.metadata

    names = ("onnx", "onnx-ir", "onnxruntime", "numpy")
    return {name: importlib.metadata.version(name) for name in names}


def parse_scheme(name: str, target: TargetProfile) -> Scheme:
    """The scheme of a precision; raises ConfigError for one that has no meaning on ``target``."""
    try:
        scheme = Scheme.parse(name)
    except ValueError as error:
        raise ConfigError(str(error), remedy=f"{target.name} suggests: {', '.join(target.precisions)}") from None
    if scheme.block is not None and not scheme.weight_only and not _has_blocks(scheme, target):
        # ONNX Runtime 1.32 fuses them into an integer product that fails while running.
        raise ConfigError(
            f"{target.name} has no integer kernels for weights in blocks, which {name!r} asks for",
            remedy=f"leave out the block size; {target.name} suggests: {', '.join(target.precisions)}",
        )
    if scheme.dynamic and not _has_ranged(scheme, target):
        raise ConfigError(
            f"{target.name} has no {scheme.weight_bits}-bit kernels that find the range of activations at run time, "
            f"which {name!r} asks for",
            remedy=f"{target.name} suggests: {', '.join(target.precisions)}",
        )
    if scheme.floating and target.floats.type != "float16":
        raise ConfigError(
            f"{target.name} computes floats in {target.floats.type}, and {name!r} asks for float16",
            remedy=f"{target.name} suggests: {', '.join(target.precisions)}",
        )
    bits = scheme.activation_bits
    if not scheme.floating and str(scheme.weight_bits) not in target.weights.types:
        raise ConfigError(
            f"{target.name} has no {scheme.weight_bits}-bit weights, which {name!r} asks for",
            remedy=f"{target.name} suggests: {', '.join(target.precisions)}",
        )
    if bits is not None and str(bits) not in target.activations.types:
        raise ConfigError(
            f"{target.name} has no {bits}-bit activations, which {name!r} asks for",
            remedy=f"{target.name} suggests: {', '.join(target.precisions)}",
        )
    return scheme


def _has_ranged(scheme: Scheme, target: TargetProfile) -> bool:
    """Whether the target multiplies by activations of that width whose range is found at run time."""
    return any(
        scheme.weight_bits in c.weight_bits and scheme.activation_bits in c.activation_bits
        for c in target.capability
        if c.kind == "dynamic"
    )


def _has_blocks(scheme: Scheme, target: TargetProfile) -> bool:
    """Whether the target multiplies integers with weights in such blocks."""
    return any(
        scheme.block in c.blocks and scheme.weight_bits in c.weight_bits and scheme.activation_bits in c.activation_bits
        for c in target.capability
        if c.kind == "compute"
    )


def _clause(option: str, asked: float, measured: float | None, unit: str, met: bool) -> Clause:
    return Clause(option=option, asked=asked, measured=measured, unit=unit, met=met)


def parse_bytes(text: str) -> int:
    """``"5MB"`` -> 5000000, ``"5MiB"`` -> 5242880, ``"123"`` -> 123.

    Raises:
        ConfigError: not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKMG]?)(i?)[bB]?\s*", text)
    if not match:
        raise ConfigError(f"{text!r} is not a size", remedy="write bytes, or a number with kB, MB, GB or MiB")
    number, prefix, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kMG".index(prefix.replace("K", "k") or " "))


def parse_percent(text: str) -> float:
    """``"5%"`` -> 0.05.

    Raises:
        ConfigError: not a percentage, or a negative one.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text)
    if not match:
        raise ConfigError(f"{text!r} is not a percentage", remedy="write it with its sign, such as 5%")
    return float(match.group(1)) / 100


def parse_shapes(items: tuple[str, ...]) -> dict[str, int]:
    """``("batch=1", "input_ids:1=128")`` -> sizes by name of a dimension or by input and axis.

    Raises:
        ConfigError: an item has another form, or a size below 1.
    """
    sizes: dict[str, int] = {}
    for item in items:
        name, _, size = item.rpartition("=")
        if not name or not size.isdecimal() or int(size) < 1:
            raise ConfigError(f"{item!r} fixes no dimension", remedy="write NAME=SIZE, such as --fix sequence=128")
        sizes[name] = int(size)
    return sizes
