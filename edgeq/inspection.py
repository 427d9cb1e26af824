"""What a model or a bundle is, and what a target would make of it: structure only, nothing is run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgeq.progress import Progress
from edgeq.qtypes import NodeForecast
from edgeq.request import parse_shapes

if TYPE_CHECKING:
    from edgeq.pipeline import Job

__all__ = ["Inspection", "NodeForecast", "inspect"]


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """A summary. ``operators`` counts the prepared graph's nodes, ``source_operators`` the source's.

    ``forecast`` says how each node would run on ``target``, whose provider is ``provider``.
    """

    name: str
    origin: dict[str, str]
    task: str | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int
    parameters: int
    weight_bytes: int
    source_operators: dict[str, int]
    operators: dict[str, int]
    target: str | None = None
    precision: str | None = None
    provider: str | None = None
    forecast: tuple[NodeForecast, ...] = ()


def inspect(
    source: str,
    target: str | None,
    precision: str | None,
    task: str | None,
    fix: tuple[str, ...],
    progress: Progress,
) -> Inspection:
    """Load and prepare ``source``, and forecast how its nodes would run on ``target``.

    Raises:
        EdgeqError: as ``edgeq.export`` would for the same source and target.
    """
    from edgeq.graph import input_infos, model_size, output_infos
    from edgeq.pipeline import Job

    bundle = Path(source) / "manifest.json"
    if bundle.is_file():
        source = str(Path(source) / "model.onnx")
    job = Job(
        source, target or "linux-x64", precision=precision, task=task, fixed_dims=parse_shapes(fix), progress=progress
    )
    model = job.prepared.model
    weights = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    return Inspection(
        name=job.source.name,
        origin=dict(job.source.provenance),
        task=job.source.task,
        inputs=tuple(info.describe() for info in input_infos(model)),
        outputs=tuple(info.describe() for info in output_infos(model)),
        opset=model.opset_imports.get("", 0),
        parameters=sum(tensor.size for tensor in weights),
        weight_bytes=model_size(model),
        source_operators=_count(node.op_type for node in job.source.model.graph),
        operators=_count(node.op_type for node in model.graph),
        target=target,
        precision=job.schemes[0].name if target else None,
        provider=job.target.provider.name if target else None,
        forecast=_forecast(job) if target else (),
    )


def _forecast(job: Job) -> tuple[NodeForecast, ...]:
    scheme = job.schemes[0]
    shaped = job.shaped(scheme)
    return tuple(job.forecast(shaped, job.layout(shaped, scheme)).values())


def _count(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())
