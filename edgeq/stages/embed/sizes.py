"""What a model adds to an app: measured where it can be, "n/a" with the reason where it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeq.embedding import SizeRow
from edgeq.stages.embed.project import GraphFiles, ProjectFile, Request

__all__ = ["RuntimeSize", "megabytes", "operator_files", "size_rows"]

_LARGER = 1.05


@dataclass(frozen=True)
class RuntimeSize:
    """One build of ONNX Runtime, such as that for one processor, which ``place`` names.

    ``bytes`` as installed and ``packed`` as delivered; None where it could not be measured, and ``note`` says why.
    ``beside`` names what comes with it and was not measured.
    """

    package: str
    place: str
    bytes: int | None
    packed: int | None
    note: str
    beside: tuple[str, ...] = ()


def size_rows(
    request: Request, runtimes: Sequence[RuntimeSize], *, packing: str = "compressed", reduced: str | None = None
) -> tuple[SizeRow, ...]:
    """Models with what they save, the runtimes, and what each of these makes together with the models.

    ``packing`` names in words what a platform's packages do, which is to deflate. ``reduced`` is what a build of
    ONNX Runtime with only the model's operators needs; None where there is none.
    """
    rows = [_model(graph, packing) for graph in request.graphs]
    models = sum(graph.bytes for graph in request.graphs)
    packed = sum(graph.deflated for graph in request.graphs)
    for runtime in runtimes:
        known = "" if runtime.packed is None else f"{megabytes(runtime.packed)} {packing}; "
        part = ", ".join(filter(None, (runtime.package, runtime.place)))
        rows.append(SizeRow(part=part, bytes=runtime.bytes, note=known + runtime.note))
        rows += [SizeRow(part=one, bytes=None, note="not measured") for one in runtime.beside]
        if runtime.bytes is not None and runtime.packed is not None:
            note = f"{megabytes(packed + runtime.packed)} {packing}" + (
                ", without what is n/a" if runtime.beside else ""
            )
            part = ", ".join(filter(None, ("together", runtime.place)))
            rows.append(SizeRow(part=part, bytes=models + runtime.bytes, note=note))
    if reduced:
        note = f"a build of ONNX Runtime with only the operators in size/: needs {reduced}"
        rows.append(SizeRow(part="reduced runtime", bytes=None, note=note))
    return tuple(rows)


def _model(graph: GraphFiles, packing: str) -> SizeRow:
    note = f"{megabytes(graph.deflated)} {packing}"
    if graph.entry.size is not None:
        note += f"; {megabytes(graph.bytes - graph.entry.size.float_bytes)} against the float model's file"
    if graph.bytes > _LARGER * graph.onnx_bytes:
        # Such as weights of float kernels, which the onnx format holds in 16 bits.
        note += f"; {megabytes(graph.onnx_bytes)} in the onnx format, whose weights are not yet what kernels read"
    return SizeRow(part=f"model, {graph.entry.precision} for {graph.entry.target}", bytes=graph.bytes, note=note)


def operator_files(operators: str | None) -> tuple[ProjectFile, ...]:
    """What a reduced build has to contain, if there can be one."""
    file = "size/required_operators_and_types.config"
    return () if operators is None else (ProjectFile(file, operators.encode()),)


def megabytes(count: int) -> str:
    """Such as ``"4.46 MB"``."""
    return f"{count / 1e6:.2f} MB"
