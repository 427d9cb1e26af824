"""What a check found: accepted, placed as planned, and the right numbers, or why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeq.checks.cases import Case
from edgeq.checks.record import Proof, Result, Verdict
from edgeq.metrics import sqnr_db
from edgeq.pipeline.emit import Emitted
from edgeq.qtypes import NodeForecast
from edgeq.report import bounded_db
from edgeq.sandbox import Outcome, Task
from edgeq.stages.run.kernels import PLUMBING, labelled, read_kernels
from edgeq.stages.run.refusals import read_refusals

__all__ = ["LEAST_DB", "LEAST_FLOAT_DB", "closeness", "judge", "verdict_of"]

LEAST_DB: dict[int | None, float] = {8: 30.0, 16: 50.0, None: 35.0}
"""Least SQNR against the specification's arithmetic, by bits of the activations.

8 bits: noise that fills its range as normal data does (7 standard deviations) has ``20 log10(256 / 7)`` = 31 dB
if every value is one step off, and kernels differ at exact ties only. 16 bits: one step would be 79 dB;
kernels round inside (Pow and Sqrt of the HTP: 64 dB), and 50 dB is well above what 8 bits can give. None: weights
alone are integers; kernels that round activations to 8 bits in blocks (MatMulNBits at accuracy level 4) are
off by 3e-3 to 1e-2, which is 40 to 50 dB.
"""

LEAST_FLOAT_DB = 35.0
"""Least SQNR of an operator in floats: 11 bits of a float16 are ``6.02 * 11`` = 66 dB per rounding.

Accelerators compute float32 in float16, too, and approximate functions (the HTP: Softmax 58 dB, Softplus 41,
LSTM 38); less than this is worse than 8 bits.
"""

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)

_BLOCK_DB = 10.0
"""What a block may lose beyond a single operator: the noise of ten operators, ``10 log10(10)``."""

_SAVED_DB: dict[int, float] = {8: 15.0, 4: 8.0, 2: 0.0}
"""Least SQNR against the float model by bits of the weights; less means that the form itself is wrong."""


def verdict_of(
    case: Case,
    *,
    verdict: Verdict,
    proof: Proof,
    reason: str | None = None,
    db: float | None = None,
    float_db: float | None = None,
) -> Result:
    return Result(
        op=case.op,
        type=case.type,
        form=case.form,
        verdict=verdict,
        proof=proof,
        db=db,
        float_db=float_db,
        reason=reason,
    )


def judge(emitted: Emitted, task: Task, outcome: Outcome) -> Result:
    """Accepted, placed as planned, and the right numbers: all three, or it does not hold."""
    case = emitted.case
    if outcome.status in ("refused", "crashed"):
        words = " ".join((outcome.reason or "it gave no reason").split())[:300]
        return verdict_of(case, verdict="does not hold", proof="numbers", reason=f"{outcome.status}: {words}")
    displaced = _displaced(emitted, task, outcome)
    if outcome.status == "built":
        verdict: Verdict = "holds" if displaced is None else "does not hold"
        return verdict_of(case, verdict=verdict, proof="build", reason=displaced)
    if wrong := _other_shape(emitted, outcome):
        return verdict_of(case, verdict="does not hold", proof="numbers", reason=wrong)
    db = closeness(emitted.expected, outcome.outputs)
    float_db = closeness(emitted.exact, outcome.outputs)
    reason = displaced or _too_far(case, db, float_db)
    verdict = "holds" if reason is None else "does not hold"
    return verdict_of(case, verdict=verdict, proof="numbers", reason=reason, db=db, float_db=float_db)


def _other_shape(emitted: Emitted, outcome: Outcome) -> str | None:
    """Which output has another number of elements than it should, in words; None if all are right."""
    for right, found in zip(emitted.expected, outcome.outputs, strict=True):
        for name, value in right.items():
            if name not in found or found[name].size != value.size:
                shape = list(found[name].shape) if name in found else "missing"
                return f"the provider computes something else: output {name!r} is {shape}, not {list(value.shape)}"
    return None


def _too_far(case: Case, db: float, float_db: float) -> str | None:
    """What is wrong with the numbers, in words; None if nothing is."""
    spare = _BLOCK_DB if case.kind == "block" else 0.0
    floating = case.scheme is None or case.scheme.floating
    least = LEAST_FLOAT_DB if floating or case.kind == "float" else LEAST_DB[case.bits]
    if db < least - spare:
        return f"the provider computes something else: {db:.0f} dB from the specification, at least {least - spare:.0f}"
    kept = least if case.scheme is None or floating else _SAVED_DB[case.scheme.weight_bits]
    if float_db < kept - spare:
        return f"little is left of the float model: {float_db:.0f} dB, at least {kept - spare:.0f}"
    return None


def closeness(right: Sequence[Mapping[str, np.ndarray]], found: Sequence[Mapping[str, np.ndarray]]) -> float:
    """SQNR over all feeds, of the worst output, in dB within ``LIMIT_DB``; 0.1 dB is as fine as it is worth."""
    worst = min(
        sqnr_db(
            np.concatenate([feed[name].ravel().astype(np.float64) for feed in right]),
            np.concatenate([feed[name].ravel().astype(np.float64) for feed in found]),
        )
        for name in right[0]
    )
    return round(bounded_db(worst), 1)


def _displaced(emitted: Emitted, task: Task, outcome: Outcome) -> str | None:
    """Which node did not run where and as what it was planned, and why; None if all did."""
    provider = emitted.case.provider
    if task.optimized is not None and task.optimized.exists():
        return _wrong_kernel(emitted, task.optimized)
    if outcome.assigned is None:
        return None
    nodes = list(emitted.model.graph)
    where = {index: name for node, name in outcome.assigned.items() if (index := labelled(node)) is not None}
    for index, node in enumerate(nodes):
        place, forecast = where.get(index), _forecast(emitted, node)
        expected = forecast.provider if forecast is not None and emitted.case.kind != "float" else provider
        if node.op_type in PLUMBING or place in (None, expected) or not _in_question(emitted, node):
            continue
        return f"{node.op_type} runs on {place}: {_refusal(task, index)}"
    computes = any(node.op_type not in PLUMBING for node in nodes)
    return f"{provider} took no node" if where and computes and provider not in where.values() else None


def _in_question(emitted: Emitted, node: ir.Node) -> bool:
    """Whether it matters where ``node`` runs: in a float case the operator itself, else whatever computes floats."""
    if emitted.case.kind == "float":
        return node.op_type == emitted.case.op
    types = [value.dtype for value in node.inputs if value is not None]
    return any(dtype is None or dtype in _FLOATS for dtype in types)


def _forecast(emitted: Emitted, node: ir.Node) -> NodeForecast | None:
    return None if emitted.plan is None else emitted.plan.nodes.get(str(node.name))


def _refusal(task: Task, index: int) -> str:
    """The words of a provider that says why in its log."""
    if task.provider.registration != "plugin":
        return "the provider left it to the CPU without a reason"
    refusals = read_refusals(task.model, task.provider)
    return refusals.nodes.get(index) or refusals.whole or "refused by the provider, which gave no reason"


def _wrong_kernel(emitted: Emitted, optimized: Path) -> str | None:
    """On the CPU provider: a node that was promised integers and got a float kernel."""
    if emitted.plan is None:
        return None
    kernels = read_kernels(emitted.model, optimized)
    for index, node in enumerate(emitted.model.graph):
        kernel = kernels.by_node.get(index)
        forecast = _forecast(emitted, node)
        promised = forecast is not None and forecast.kind in ("integer", "moves data")
        if kernel is not None and promised and kernel.kind == "float":
            return f"{node.op_type} runs in float, as {kernel.op_type}"
    return None
