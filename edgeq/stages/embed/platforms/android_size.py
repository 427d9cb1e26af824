"""What a model adds to an Android app: measured where it can be, "n/a" where it cannot."""

from __future__ import annotations

from collections.abc import Sequence

from edgeq.embedding import SizeRow
from edgeq.stages.embed.platforms.android_graphs import GraphView
from edgeq.stages.embed.platforms.android_runtime import RUNTIME, RUNTIME_BYTES

__all__ = ["PLAY_BASE_BYTES", "size_rows"]

PLAY_BASE_BYTES = 150_000_000
"""Models above it go to an asset pack. Google Play's limit for a base module was 150 MB and is 200 MB, compressed."""


def size_rows(graphs: Sequence[GraphView], abis: Sequence[str]) -> tuple[SizeRow, ...]:
    """Models, the runtime per processor, plugins, sums, and what the float model would add."""
    rows = []
    for graph in graphs:
        size = graph.entry.size
        saved = "" if size is None else f"; {_mb(graph.bytes - size.float_bytes)} against the float model's file"
        part = f"model, {graph.entry.precision} for {graph.entry.target}"
        rows.append(SizeRow(part=part, bytes=graph.bytes, note=f"{_mb(graph.deflated)} compressed{saved}"))
    models = sum(graph.bytes for graph in graphs)
    downloads = sum(graph.deflated for graph in graphs)
    extra = graphs[0].provider.dependencies
    for abi in abis:
        raw, deflated = RUNTIME_BYTES[abi]
        note = f"{_mb(deflated)} compressed; measured on the AAR"
        rows.append(SizeRow(part=f"onnxruntime-android {RUNTIME}, {abi}", bytes=raw, note=note))
        rows += [SizeRow(part=f"{one.module} {one.version}", bytes=None, note="not to be had here") for one in extra]
        note = f"{_mb(downloads + deflated)} compressed" + (", without what is n/a" if extra else "")
        rows.append(SizeRow(part=f"together, {abi}", bytes=models + raw, note=note))
    if any(graph.operators for graph in graphs):
        note = "a build of ONNX Runtime with only the operators in size/: needs the NDK"
        rows.append(SizeRow(part="reduced runtime", bytes=None, note=note))
    return tuple(rows)


def _mb(count: int) -> str:
    return f"{count / 1e6:.2f} MB"
