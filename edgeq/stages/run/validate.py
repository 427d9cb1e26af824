"""Does a bundle still do what it did when it was made? Run it here and compare with its reference outputs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np

import edgeq
from edgeq.agreement import agreement
from edgeq.box_metrics import BOX_TOLERANCE
from edgeq.bundle import Bundle
from edgeq.bundle import Samples as SampleFiles
from edgeq.errors import ConfigError, ValidationError
from edgeq.machine import describe_machine
from edgeq.progress import Progress
from edgeq.report import Contract, Report
from edgeq.sandbox.place import Place
from edgeq.stages.run.accuracy import metric_drop
from edgeq.stages.run.judged import Judged, judge_graph
from edgeq.stages.run.latency import Timing, compare_latency
from edgeq.stages.run.memory import measure_memory
from edgeq.stages.run.node_timing import profile_nodes
from edgeq.stages.run.on_provider import Samples, check_findings, places_for

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgeq.target import Gate, Provider

__all__ = ["load_samples", "validate"]


def validate(
    bundle: Bundle,
    *,
    reference: ir.Model | str | os.PathLike[str] | None = None,
    threads: int = 1,
    tolerance_db: float = 3.0,
    latency: bool = True,
    memory: bool = True,
    seconds: float = 3.0,
    gates: frozenset[Gate] = frozenset(),
    places: Sequence[Place] = (),
    progress: Progress | None = None,
) -> Report:
    """Run a bundle's samples and report; ``read_bundle`` has checked its files already.

    Each graph of the bundle runs with the kernels that its figures were made with: its provider's own, or
    the specification's arithmetic. Besides, it runs in its provider's sandbox, as ``run_everywhere`` says.
    Each output must come as close to the float model's as the manifest says, less ``tolerance_db``: kernels
    of other processors round differently. Where neither the provider nor its arithmetic is to be had, the
    CPU's figures are named as such and not judged.

    Args:
        bundle: What ``read_bundle`` returned.
        reference: The float model, to compare latency and memory with.
        threads: Intra-op threads, 0 for all cores.
        tolerance_db: How far an output's SQNR may stay behind the manifest's.
        latency: Measure latency, too: it says something only on machines of the target's kind.
        memory: Measure memory, too: an emulator's says nothing of the chip's.
        seconds: How long each model runs while its latency is measured.
        gates: What counts as an error, whatever the target's profile makes of it.
        places: Sandboxes to run it in, whether they are quick or not.
        progress: Told of every step.

    Raises:
        ValidationError: an output is farther from the reference than the manifest allows, or the graph's own
            provider refuses it.
        ConfigError: a sample file is no array, or the bundle holds no samples.
        ModelError: the model does not load or run.
    """
    manifest = bundle.manifest
    inputs, outputs, samples = load_samples(bundle)
    text = f"the bundle's {samples.count} samples"
    fed = Samples(inputs, outputs, task=manifest.task, text=text, boxes=manifest.interface.boxes)
    spread = places_for([entry.verification for entry in manifest.graphs], places)
    graphs = [
        judge_graph(bundle.path / entry.model, entry, fed, asked, tolerance_db, threads, progress, gates)
        for entry, asked in zip(manifest.graphs, spread, strict=True)
    ]
    for judged in graphs:
        _raise_failures(bundle, judged, tolerance_db)
    main = graphs[0]
    clauses = tuple(clause for judged in graphs for clause in judged.clauses)
    report = Report(
        edgeq=edgeq.__version__,
        name=manifest.name,
        target=manifest.target,
        precision=manifest.precision,
        task=manifest.task,
        machine=describe_machine(),
        parity=manifest.parity,
        metrics=main.metrics,
        primary=main.metrics[0].name,
        drop=metric_drop(main.metrics[0]),
        size=manifest.size,
        placement=main.placement.nodes,
        agreement=agreement(main.placement.nodes),
        plan=manifest.plan,
        contract=Contract(clauses=clauses, met=all(clause.met for clause in clauses)),
        checks=main.checks,
        fallback=None if len(graphs) == 1 else graphs[1].report(),
        findings=(*check_findings(main.checks), *main.placement.findings),
        notes=(*manifest.notes, *main.notes),
    )
    here = main.provider is not None
    if latency and here:
        found = compare_latency(
            bundle.model, reference, inputs[0], provider=main.provider, timing=Timing(threads, seconds=seconds)
        )
        timed = profile_nodes(bundle.model, inputs[0], provider=main.provider, threads=threads)
        floats = () if reference is None else profile_nodes(reference, inputs[0], threads=threads)
        report = msgspec.structs.replace(report, latency=found, node_times=timed, float_node_times=floats)
    return _with_memory(report, bundle, reference, inputs[0], main.provider, threads) if memory and here else report


def load_samples(
    bundle: Bundle,
) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]], SampleFiles]:
    """The bundle's sample batches and the float model's answers.

    Raises:
        ConfigError: there are none, or a file is not a numpy array of plain numbers.
    """
    samples = bundle.manifest.samples
    if samples is None or not samples.count:
        raise ConfigError(
            "the bundle holds no samples to validate it with",
            where=str(bundle.path),
            remedy="make the package again with calibration or evaluation data",
        )
    sides = []
    for files in (samples.inputs, samples.outputs):
        arrays = {name: _load(bundle, file, samples.count) for name, file in files.items()}
        sides.append([{name: array[i] for name, array in arrays.items()} for i in range(samples.count)])
    return sides[0], sides[1], samples


def _load(bundle: Bundle, file: str, count: int) -> np.ndarray:
    path = bundle.file(file)
    try:
        array = np.load(path, allow_pickle=False)
        if isinstance(array, np.ndarray) and array.ndim and len(array) == count:
            return array
        found = f"{array.shape}" if isinstance(array, np.ndarray) else "an archive"
        reason = f"expected {count} samples on the first axis, found {found}"
    except (OSError, ValueError, EOFError) as error:
        reason = str(error)
    raise ConfigError(f"{file!r} holds no sample tensor: {reason}", where=str(path), remedy="make the package again")


def _raise_failures(bundle: Bundle, judged: Judged, tolerance_db: float) -> None:
    for clause in judged.clauses:
        if not clause.met and clause.option in judged.strict:
            tolerance = tolerance_db if clause.unit == "dB" else BOX_TOLERANCE
            raise ValidationError(
                f"{clause.option} is {clause.measured:.1f} {clause.unit}, but the manifest says "
                f"{clause.asked + tolerance:.1f} {clause.unit} (tolerance {tolerance:g} {clause.unit})",
                where=str(bundle.path),
                remedy="compare this machine's processor and ONNX Runtime with the manifest's; see the report of "
                "placement, or allow more with a larger tolerance",
            )
    for check in judged.checks:
        if check.status in ("refused", "crashed"):
            raise ValidationError(
                f"{judged.entry.model} for {judged.entry.target} on {check.place}: {check.text}",
                where=str(bundle.path),
                remedy="compare the provider's version with the manifest's; if they agree, make the package again",
            )


def _with_memory(
    report: Report,
    bundle: Bundle,
    reference: ir.Model | str | os.PathLike[str] | None,
    inputs: Mapping[str, np.ndarray],
    provider: Provider | None,
    threads: int,
) -> Report:
    memory = measure_memory(bundle.model, inputs, provider=provider, threads=threads)
    float_memory = None
    if isinstance(reference, (str, os.PathLike)):
        float_memory = measure_memory(reference, inputs, threads=threads)
    return msgspec.structs.replace(report, memory=memory, float_memory=float_memory)
