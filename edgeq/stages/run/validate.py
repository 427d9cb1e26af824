"""Does a bundle still do what it did when it was made? Run it here and compare with its reference outputs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec
import numpy as np

import edgeq
from edgeq.bundle import Bundle, Samples
from edgeq.errors import ConfigError, ProviderError, ValidationError
from edgeq.machine import describe_machine
from edgeq.report import Clause, Contract, Metric, Report
from edgeq.runtime import check_available
from edgeq.stages.run.accuracy import Predict, metric_drop, predictor
from edgeq.stages.run.closeness import Closeness
from edgeq.stages.run.latency import compare_latency
from edgeq.stages.run.memory import measure_memory
from edgeq.stages.run.placement import read_placement

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgeq.target import Provider

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
) -> Report:
    """Run a bundle's samples on this machine and report; ``read_bundle`` has checked its files already.

    The target's provider is used where it is available, otherwise the CPU, with a note. Each output
    must come as close to the float model's as the manifest says, less ``tolerance_db``: kernels of
    other processors round differently.

    Args:
        bundle: What ``read_bundle`` returned.
        reference: The float model, to compare latency and memory with.
        threads: Intra-op threads, 0 for all cores.
        tolerance_db: How far an output's SQNR may stay behind the manifest's.
        latency: Measure latency, too: it says something only on machines of the target's kind.
        memory: Measure memory, too: an emulator's says nothing of the chip's.
        seconds: How long each model runs while its latency is measured.

    Raises:
        ValidationError: an output is farther from the reference than the manifest allows.
        ConfigError: a sample file is no array, or the bundle holds no samples.
        ModelError: the model does not load or run.
    """
    manifest = bundle.manifest
    provider, notes = _available(manifest.provider)
    inputs, outputs, samples = load_samples(bundle)
    with predictor(bundle.model, provider=provider, threads=threads) as predict:
        closeness = _compare(predict, inputs, outputs)
    metrics = tuple(
        Metric(
            name="SQNR" if len(closeness) == 1 else f"{name} SQNR",
            value=round(found.sqnr_db, 3),
            unit="dB",
            samples=samples.count,
            source=f"the bundle's {samples.count} samples",
        )
        for name, found in closeness.items()
    )
    contract = _check(bundle, closeness, samples, tolerance_db, strict=provider == manifest.provider)
    worst = min(closeness.values(), key=lambda found: found.cosine)
    likeness = Metric(
        name="cosine",
        value=round(worst.cosine, 6),
        samples=samples.count,
        source=f"the bundle's {samples.count} samples",
    )
    report = Report(
        edgeq=edgeq.__version__,
        name=manifest.name,
        target=manifest.target,
        precision=manifest.precision,
        task=manifest.task,
        machine=describe_machine(),
        parity=manifest.parity,
        metrics=(likeness, *metrics),
        primary=likeness.name,
        drop=metric_drop(likeness),
        size=manifest.size,
        plan=manifest.plan,
        contract=contract,
        notes=(*manifest.notes, *notes),
    )
    placement = read_placement(bundle.model, provider, threads=threads)
    report = msgspec.structs.replace(report, placement=placement.nodes, findings=placement.findings)
    if latency:
        found = compare_latency(bundle.model, reference, inputs[0], provider=provider, threads=threads, seconds=seconds)
        report = msgspec.structs.replace(report, latency=found)
    return _with_memory(report, bundle, reference, inputs[0], provider, threads) if memory else report


def load_samples(
    bundle: Bundle,
) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]], Samples]:
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


def _available(provider: Provider) -> tuple[Provider | None, tuple[str, ...]]:
    """The target's provider, or None for the CPU with a note that says so."""
    try:
        check_available(provider)
    except ProviderError as error:
        return None, (f"Run on the CPU instead of {provider.name}: {error.what}.",)
    return provider, ()


def _compare(
    predict: Predict, inputs: list[dict[str, np.ndarray]], outputs: list[dict[str, np.ndarray]]
) -> dict[str, Closeness]:
    found = {name: Closeness() for name in outputs[0]}
    for batch, expected in zip(inputs, outputs, strict=True):
        answer = predict(batch)
        for name, reference in expected.items():
            if name not in answer or answer[name].shape != reference.shape:
                shape = answer[name].shape if name in answer else "missing"
                raise ValidationError(f"output {name!r} is {shape}, the reference has shape {reference.shape}")
            found[name].add(reference, answer[name])
    return found


def _check(
    bundle: Bundle, closeness: Mapping[str, Closeness], samples: Samples, tolerance_db: float, *, strict: bool
) -> Contract:
    clauses = []
    for name, recorded in sorted(samples.sqnr_db.items()):
        found = round(closeness[name].sqnr_db, 3)
        met = found >= recorded - tolerance_db
        if not met and strict:
            raise ValidationError(
                f"output {name!r} reaches an SQNR of {found:.1f} dB, but the manifest says {recorded:.1f} dB "
                f"(tolerance {tolerance_db:g} dB)",
                where=str(bundle.path),
                remedy="compare this machine's processor and ONNX Runtime with the manifest's; see the report of "
                "placement, or allow more with a larger tolerance",
            )
        clauses.append(
            Clause(option=f"SQNR of {name}", asked=recorded - tolerance_db, measured=found, unit="dB", met=met)
        )
    return Contract(clauses=tuple(clauses), met=all(clause.met for clause in clauses))


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
