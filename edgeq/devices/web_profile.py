"""The profile that onnxruntime-web prints: kernels of the processor as everywhere, and the GPU's own times."""

from __future__ import annotations

from collections import defaultdict

import msgspec

from edgeq.errors import ModelError
from edgeq.node_times import NodeTime, read_profile

__all__ = ["read_web_profile"]

_WARMUP_RUNS = 2
_GPU = "WebGpuExecutionProvider"


class _Event(msgspec.Struct, frozen=True):
    name: str
    cat: str = ""
    dur: float = 0.0


def read_web_profile(text: str) -> tuple[NodeTime, ...]:
    """The mean time of each node, the first runs left out.

    For the GPU's nodes ONNX Runtime tells two times: as ``Node`` how long the processor took to hand the work
    over, which counts for nothing here, and as ``Api`` named ``NODE&OPERATOR&PROGRAM`` how long the GPU took for
    each of its programs (timestamp queries).

    Raises:
        ModelError: not such a profile.
    """
    nodes = read_profile(text.encode(), warmup_runs=_WARMUP_RUNS)
    gpu = _gpu_times(text)
    times = [node for node in nodes if node.provider != _GPU]
    times += [NodeTime(node=n, op_type=op, provider=_GPU, mean_us=us, share=0.0) for (n, op), us in gpu.items()]
    whole = sum(node.mean_us for node in times) or 1.0
    return tuple(msgspec.structs.replace(node, share=round(node.mean_us / whole, 6)) for node in times)


def _gpu_times(text: str) -> dict[tuple[str, str], float]:
    """Microseconds per inference by node and operator."""
    try:
        events = msgspec.json.decode(text, type=list[_Event])
    except msgspec.DecodeError as error:
        raise ModelError(f"the browser's profile cannot be read: {error}", remedy="measure again") from None
    runs = sum(event.name == "model_run" for event in events)
    programs: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        node, _, rest = event.name.rpartition("&")[0].rpartition("&")
        if event.cat == "Api" and node:
            programs[node, rest].append(event.dur)
    kept = max(runs - _WARMUP_RUNS, 1)
    return {key: round(sum(all_[-len(all_) * kept // runs :]) / kept, 3) for key, all_ in programs.items()}
