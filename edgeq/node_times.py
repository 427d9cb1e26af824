"""Where the time of an inference goes, kernel by kernel: read from ONNX Runtime's profile, and summed up."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import msgspec

from edgeq.errors import ModelError

__all__ = [
    "INTEGER",
    "OWN",
    "WORK",
    "NodeTime",
    "OperatorTime",
    "Work",
    "by_operator",
    "by_work",
    "read_profile",
    "work_of",
]

Work = Literal["integer", "other", "quantize", "cast", "reorder", "copy"]
WORK: dict[Work, str] = {
    "integer": "integer kernels",
    "other": "other operators",
    "quantize": "quantize and dequantize",
    "cast": "casts",
    "reorder": "changes of layout",
    "copy": "copies between memories",
}
"""What a kernel is there for; all but the first two is overhead: of quantization, of types, of layouts, of memories."""

OWN: frozenset[Work] = frozenset({"integer", "other"})
"""The model's own work."""

INTEGER = re.compile(
    r"QLinear\w+|QGemm|QMoE|QAttention|\w*MatMulInteger\w*|DynamicQuantizeMatMul|ConvInteger"
    r"|\w+NBits|\w+BlockQuantized"
)
"""Operators of ONNX Runtime that compute with quantized numbers."""

_OVERHEAD: dict[str, Work] = {
    "QuantizeLinear": "quantize",
    "DequantizeLinear": "quantize",
    "DynamicQuantizeLinear": "quantize",
    "Cast": "cast",
    "ReorderInput": "reorder",
    "ReorderOutput": "reorder",
    "MemcpyFromHost": "copy",
    "MemcpyToHost": "copy",
}
_INSERTED = re.compile(r"Transpose(_token_\d+)?")
"""What ONNX Runtime calls a Transpose of its own, around kernels that want the channels last."""

_SUFFIX = "_kernel_time"


class NodeTime(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kernel of the graph that ran: its mean time per inference, and who ran it.

    ``node`` names the node of the model whose work it does where that can be told, else it is the name in the
    optimized graph; ``op_type`` is what ran (``QLinearConv``), ``share`` (0 to 1) its
    part of the sum over all nodes.
    """

    node: str
    op_type: str
    provider: str
    mean_us: float
    share: float


class OperatorTime(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All kernels of one operator on one provider, as ``NodeTime`` has each of them."""

    op_type: str
    provider: str
    kernels: int
    mean_us: float
    share: float


class _Arguments(msgspec.Struct, frozen=True):
    op_name: str = ""
    provider: str = ""
    node_index: str = ""


class _Event(msgspec.Struct, frozen=True):
    name: str
    ts: int
    dur: int = 0
    cat: str = ""
    tid: int = 0
    args: _Arguments = _Arguments()

    @property
    def end(self) -> int:
        return self.ts + self.dur


class _Kernel(NamedTuple):
    node: str
    op_type: str
    provider: str
    position: str


def read_profile(text: bytes, *, warmup_runs: int = 2) -> tuple[NodeTime, ...]:
    """The mean time of every kernel, in order of execution, from the JSON that a profiling session wrote.

    The first ``warmup_runs`` runs are left out. A kernel's mean is that of the middle half of its times: those in
    which something else had the processor do not count. What runs inside of another kernel (the body of a Loop)
    counts for itself only.

    Raises:
        ModelError: not such a profile, or no run is left in it.
    """
    try:
        events = msgspec.json.decode(text, type=list[_Event])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelError(
            f"the profile of the run cannot be read: {error}",
            remedy="measure again; a run that was ended early leaves half a profile",
        ) from None
    runs = sorted((event for event in events if event.name == "model_run"), key=lambda event: event.ts)
    kernels = [event for event in events if event.cat == "Node" and event.name.endswith(_SUFFIX)]
    # What contains another kernel comes before it, though both may start in the same microsecond.
    kernels.sort(key=lambda event: (event.ts, -event.dur))
    spent = [times for times in _by_run(kernels, runs)[warmup_runs:] if times]
    if not spent:
        raise ModelError(
            f"the profile holds {len(runs)} runs, of which {warmup_runs} are warm-up", remedy="let the model run longer"
        )
    means = {
        kernel: _middle_mean([times.get(kernel, 0) for times in spent])
        for kernel in dict.fromkeys(kernel for times in spent for kernel in times)
    }
    total = max(sum(means.values()), 1e-9)
    return tuple(
        NodeTime(
            node=kernel.node,
            op_type=kernel.op_type,
            provider=kernel.provider,
            mean_us=round(mean, 3),
            share=round(mean / total, 6),
        )
        for kernel, mean in means.items()
    )


def _middle_mean(values: Sequence[int]) -> float:
    """The interquartile mean: a quarter is left out at either end."""
    cut = len(values) // 4
    kept = sorted(values)[cut : len(values) - cut]
    return sum(kept) / len(kept)


def _by_run(kernels: Sequence[_Event], runs: Sequence[_Event]) -> list[dict[_Kernel, int]]:
    """Each run's own time of each kernel, in microseconds; a kernel that runs several times is summed up."""
    starts = [run.ts for run in runs]
    spent: list[dict[_Kernel, int]] = [{} for _ in runs]
    inside: dict[int, list[tuple[_Event, dict[_Kernel, int], _Kernel]]] = {}
    for event in kernels:
        number = bisect.bisect_right(starts, event.ts) - 1
        if number < 0 or event.ts > runs[number].end:
            continue
        times = spent[number]
        args = event.args
        kernel = _Kernel(event.name.removesuffix(_SUFFIX), args.op_name, args.provider, args.node_index)
        times[kernel] = times.get(kernel, 0) + event.dur
        around = inside.setdefault(event.tid, [])
        while around and around[-1][0].end <= event.ts:
            around.pop()
        if around:
            _, outer_times, outer = around[-1]
            outer_times[outer] -= event.dur
        around.append((event, times, kernel))
    return spent


def work_of(node: NodeTime) -> Work:
    """What a kernel is there for."""
    if node.op_type == "Transpose" and _INSERTED.fullmatch(node.node):
        return "reorder"
    return _OVERHEAD.get(node.op_type, "integer" if INTEGER.fullmatch(node.op_type) else "other")


def by_work(nodes: Iterable[NodeTime]) -> dict[Work, float]:
    """Microseconds per inference by what they are spent on; only what occurs."""
    spent: dict[Work, float] = {}
    for node in nodes:
        spent[work_of(node)] = spent.get(work_of(node), 0.0) + node.mean_us
    return {work: spent[work] for work in WORK if work in spent}


def by_operator(nodes: Iterable[NodeTime]) -> tuple[OperatorTime, ...]:
    """The kernels of each operator and provider taken together, the longest time first."""
    groups: dict[tuple[str, str], list[NodeTime]] = {}
    for node in nodes:
        groups.setdefault((node.op_type, node.provider), []).append(node)
    found = (
        OperatorTime(
            op_type=op_type,
            provider=provider,
            kernels=len(group),
            mean_us=round(sum(node.mean_us for node in group), 3),
            share=round(sum(node.share for node in group), 6),
        )
        for (op_type, provider), group in groups.items()
    )
    return tuple(sorted(found, key=lambda operator: (-operator.mean_us, operator.op_type)))
