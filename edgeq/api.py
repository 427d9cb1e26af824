"""The Python API: the command line's verbs as functions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgeq.request import Data, Exported, Limits, parse_bytes
from edgeq.wrap import parse_wrap

if TYPE_CHECKING:
    from edgeq.compare_report import CompareReport
    from edgeq.device_report import DeviceReport
    from edgeq.embedding import Embedded
    from edgeq.progress import Progress
    from edgeq.report import Report

__all__ = ["compare", "embed", "export", "run", "run_on_devices"]


def export(
    source: Any,
    *,
    target: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    calibration: Any = None,
    evaluation: Any = None,
    labels: str | os.PathLike[str] | None = None,
    pairs: str | os.PathLike[str] | None = None,
    metric: str | None = None,
    samples: int | None = None,
    precision: str | None = None,
    effort: int = 1,
    max_drop: float | None = None,
    min_sqnr: float | None = None,
    max_size: int | str | None = None,
    max_latency: float | None = None,
    pick: int | None = None,
    gates: Sequence[str] = (),
    range_method: str = "mse",
    bias_correction: bool = True,
    smoothing: bool = True,
    task: str | None = None,
    class_names: Sequence[str] | str | os.PathLike[str] | None = None,
    example_inputs: Any = None,
    fix: Mapping[str, int] | None = None,
    embed_preprocessing: bool | str | tuple[int, ...] = False,
    embed_postprocessing: bool | str = False,
    seed: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    measure: bool = True,
    fallback: bool = True,
    on: Sequence[str] = (),
    contexts: Sequence[str] = (),
    embed: Sequence[str] = (),
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Turn a model into a quantized, validated package for one target.

    Args:
        source: A path, an id or an object: ``model.onnx``, ``module.py:function``, ``program.pt2``, a
            Hugging Face id or folder, ``example:NAME``, a ``torch.nn.Module`` (with
            ``example_inputs``), an ``ExportedProgram``, an ``onnx.ModelProto`` or ``onnx_ir.Model``.
        target: A target's name (``edgeq.target_names()``) or a profile's ``.toml`` file.
        output: The bundle's folder; default ``<name>-<target>`` in the working directory.
        calibration: A folder of pictures, ``.npy``/``.npz`` files, ``.jsonl`` texts, a recipe, or an
            iterable of dicts, tuples or arrays (a list, a DataLoader).
        evaluation: Data of the same kinds to measure accuracy on; default: a held-out part of
            ``calibration``.
        labels: Labels of ``evaluation``: JSON, CSV, or a folder per class.
        pairs: JSONL with ``query`` and ``document``, for retrieval.
        metric: A metric of your own, ``path/to/metric.py:function``.
        samples: How many calibration samples to use.
        precision: Such as ``w8a8``, ``w8a16``, ``w4``; default: the target's, in order, until the
            limits are met.
        effort: How much is tried for accuracy: 0 what follows from statistics (seconds), 1 what is found by
            measuring block after block (minutes), 2 also what is learned (torch; longer).
        max_drop: Most that may be lost, in percentage points of the primary metric.
        min_sqnr: Least signal-to-noise ratio of the outputs, in dB.
        max_size: Largest model file, in bytes or as text such as ``"5MB"``.
        max_latency: Longest median inference on this machine, on one thread, in ms.
        pick: Take this point of the Pareto front that a report shows, without starting over (see ``cache``).
        gates: What the package must not have: ``unfused``, ``fallback``, ``leftover`` or ``all`` (see
            ``docs/accuracy.md``); ``GateError`` if it has.
        range_method: ``mse``, ``minmax``, ``average``, ``percentile`` or ``entropy``.
        bias_correction: Shift biases by the mean error of quantized weights.
        smoothing: Move outlier channels of activations into weights (SmoothQuant) where that is predicted to help.
        task: What the model does, such as ``image-classification``.
        class_names: Names of the classes in their order, or a file with one a line; default: those of the source.
        example_inputs: One batch of inputs, for sources that carry none.
        fix: Sizes of dynamic dimensions by name.
        embed_preprocessing: The package takes raw uint8 pixels and prepares them itself: True for pictures of any
            size, ``"480x640"`` or ``(480, 640)`` for one height and width. See ``docs/preprocessing.md``.
        embed_postprocessing: The package gives probabilities and the most probable classes, finished embeddings, or
            boxes: True for what the source says, or such as ``"yolov8,score=0.3,overlap=0.5,boxes=50"``.
        seed: For drawing ``samples``.
        cache: A folder for statistics; an interrupted calibration resumes from it.
        overwrite: Replace an existing bundle.
        measure: Measure latency and memory.
        fallback: Put a second graph into the bundle where the target names one, such as the CPU beside an NPU.
        on: Where the package is run besides this process, such as ``"arm64:cortex-a53"``; what is quick and
            installed is used without being asked for. See ``docs/accuracy.md``.
        contexts: Chips to compile for ahead of time, such as ``"SM8750"``; ``"SM8550,SM8750"`` makes one
            file for both.
        embed: Platforms to make an app project for, too, in ``<output>-embed``: see ``edgeq.embed``.
        trust_remote_code: Run Python code that a Hugging Face model brings along.
        allow_pickle: Load weights that exist only as pickles.
        progress: Told of every step.

    Returns:
        The bundle and its report.

    Raises:
        EdgeqError: its subclasses say what went wrong; ``ContractError`` carries the best result.

    Example:
        >>> result = edgeq.export("model.onnx", target="android", calibration="photos/", max_drop=0.5)
        >>> result.report.drop, result.report.size.ratio
    """
    from edgeq.gates import parse_gates
    from edgeq.pipeline import Job
    from edgeq.pipeline import export as carry_out
    from edgeq.progress import Silent
    from edgeq.sandbox.place import parse_place

    job = Job(
        source,
        target,
        data=Data(calibration, evaluation, labels, pairs, metric, samples, seed),
        precision=precision,
        effort=effort,
        range_method=range_method,
        bias_correction=bias_correction,
        smoothing=smoothing,
        task=task,
        class_names=class_names,
        example_inputs=example_inputs,
        fixed_dims=dict(fix or {}),
        wrap=parse_wrap(embed_preprocessing, embed_postprocessing),
        cache=None if cache is None else Path(cache),
        measure=measure,
        with_fallback=fallback,
        gates=parse_gates(gates),
        places=tuple(parse_place(place) for place in on),
        contexts=tuple(contexts),
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        progress=progress or Silent(),
    )
    size = parse_bytes(max_size) if isinstance(max_size, str) else max_size
    limits = Limits(max_drop, min_sqnr, size, max_latency, pick)
    return carry_out(job, output=output, limits=limits, overwrite=overwrite, platforms=tuple(embed))


def run(
    bundle: str | os.PathLike[str],
    *,
    reference: str | os.PathLike[str] | None = None,
    threads: int = 1,
    tolerance_db: float = 3.0,
    on: Sequence[str] = (),
    gates: Sequence[str] = (),
    trust_provider: bool = False,
    report_folder: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Validate a bundle on this machine, and on its provider where that is installed.

    Args:
        bundle: The folder that ``export`` wrote.
        reference: The float model, to compare latency and memory with.
        threads: Threads of ONNX Runtime, 0 for all cores.
        tolerance_db: How far the SQNR of the bundle's samples may stay behind what the manifest says.
        on: Sandboxes to run it in as well, such as ``"arm64:cortex-a53"``.
        gates: What no graph of it may have: ``unfused``, ``fallback``, ``leftover`` or ``all``.
        trust_provider: Load what the manifest names as its provider, though no target of edgeq does.
        progress: Told of every step.
        report_folder: Write ``report.json`` and ``report.html`` here.

    Raises:
        ConfigError: not a bundle.
        GateError: some nodes do not run as ``gates`` demand; it carries the report.
        ValidationError: a file was changed, the outputs are not what they were, or the provider refuses the model.
    """
    from edgeq.gates import parse_gates
    from edgeq.pipeline import validate_bundle

    return validate_bundle(
        bundle,
        reference=reference,
        threads=threads,
        tolerance_db=tolerance_db,
        places=on,
        progress=progress,
        report_folder=report_folder,
        gates=parse_gates(gates),
        trust_provider=trust_provider,
    )


def embed(
    bundle: str | os.PathLike[str],
    *,
    platform: str,
    output: str | os.PathLike[str] | None = None,
    name: str | None = None,
    package: str | None = None,
    model_format: Literal["onnx", "ort"] | None = None,
    abis: Sequence[str] | None = None,
    bench: bool | None = None,
    trust_provider: bool = False,
) -> Embedded:
    """Make a project for an app build of a bundle, or bring one up to date.

    Options that are None are what they were for the project before, else the platform's default. Files of the
    project that were edited since are kept; where the new version differs, it is put beside them as ``NAME.new``.

    Args:
        bundle: The folder that ``export`` wrote.
        platform: Such as ``"android"``; ``docs/embedding.md`` lists all.
        output: The project's folder; default ``<bundle>-embed/<platform>``.
        name: Name of the class or module of the model; default: from the model's name.
        package: What the platform calls a package; default: from the model's name.
        model_format: ``"onnx"``, or ``"ort"`` to convert the model.
        abis: Android's names of the processors to build for; default ``"arm64-v8a"``.
        bench: Add what measures speed on the device.
        trust_provider: Take what the manifest names as its provider, though no target of edgeq does.

    Raises:
        ConfigError: not a bundle, an unknown platform, an option it does not have, or a model it cannot run.
        OutputError: the folder holds something that edgeq did not write, or cannot be written.
        ValidationError: a file of the bundle was changed, or its provider is not one of edgeq's.

    Example:
        >>> edgeq.embed("efficientnet-lite0-android", platform="android", package="com.example.vision").path
    """
    from edgeq.embedding import EmbedOptions
    from edgeq.pipeline import embed as carry_out

    options = EmbedOptions(
        name=name, package=package, format=model_format, abis=None if abis is None else tuple(abis), bench=bench
    )
    return carry_out(bundle, platform, output, options, trust_provider=trust_provider)


def run_on_devices(
    bundle: str | os.PathLike[str],
    devices: Sequence[str],
    *,
    threads: int = 1,
    cores: str = "all",
    seconds: float | None = None,
    runs: int | None = None,
    warmup_runs: int | None = None,
    latency: bool = True,
    profile: bool = False,
    tolerance_db: float = 3.0,
    timeout_s: float = 600.0,
    sessions: int = 1,
    max_latency_ms: float | None = None,
    max_regression: float | None = None,
    baseline: str | os.PathLike[str] | None = None,
    evaluation: Any = None,
    labels: str | os.PathLike[str] | None = None,
    samples: int | None = None,
    reference: str | os.PathLike[str] | None = None,
    trust_provider: bool = False,
    report_folder: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> DeviceReport:
    """Run a bundle on devices and judge there what it gives; what fails on one of them is in its result.

    Args:
        bundle: The folder that ``export`` wrote.
        devices: Such as ``"local"``, ``"qemu:cortex-a53"``; see ``docs/devices.md``.
        threads: Intra-op threads, 0 for all cores that it may use.
        cores: ``"all"``, ``"big"``, ``"little"``, or numbers such as ``"0,4-7"``, where the device can pin.
        seconds: How long latency is measured, at least; default: 3, and 0 under emulation.
        runs: How many runs are measured, whatever time they take; default: at least 20, and 3 under emulation.
        warmup_runs: Runs before that, at least; default: 3, and 0.3 s.
        latency: Measure latency, not outputs alone.
        profile: Also time each node, in a session of its own.
        tolerance_db: How far the SQNR of the bundle's samples may stay behind what the manifest says.
        timeout_s: After how long a device is given up.
        sessions: Processes that latency is measured in; give 8 where it is to be compared.
        max_latency_ms: Longest median inference; see ``checks`` of each result, and its ``exit_code``.
        max_regression: Most that it may take longer than ``baseline``: 0.05 for 5 %.
        baseline: A stored report (``DeviceReport.to_json``), or a bundle or ``.onnx`` file to run in turn.
        evaluation: Data to measure accuracy on, as for ``export``; it is streamed through each device.
        labels: Labels of ``evaluation``.
        samples: How many of ``evaluation`` to use; default: all.
        reference: The float model, which then runs on this machine beside them.
        trust_provider: Load what the manifest names as its provider, though no target of edgeq does.
        report_folder: Write ``device-report.json`` here.
        progress: Told of every device.

    Returns:
        One result per device, in the order of ``devices``; ``error`` and ``exit_code`` say what failed.

    Raises:
        ConfigError: not a bundle, one without samples, or no such kind of device.
        ValidationError: a file of the bundle was changed.
    """
    from edgeq.device_checks import DeviceLimits
    from edgeq.pipeline import DeviceOptions, EvaluationData
    from edgeq.pipeline import run_on_devices as carry_out

    options = DeviceOptions(
        threads=threads,
        cores=cores,
        seconds=seconds,
        runs=runs,
        warmup_runs=warmup_runs,
        latency=latency,
        profile=profile,
        tolerance_db=tolerance_db,
        timeout_s=timeout_s,
        sessions=sessions,
        data=None if evaluation is None else EvaluationData(evaluation, labels, reference, samples),
    )
    return carry_out(
        bundle,
        devices,
        options,
        report_folder=report_folder,
        trust_provider=trust_provider,
        limits=DeviceLimits(max_latency_ms, max_regression),
        baseline=baseline,
        progress=progress,
    )


def compare(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    devices: Sequence[str] = ("local",),
    *,
    threads: int = 1,
    cores: str = "all",
    sessions: int = 8,
    seconds: float = 1.0,
    min_difference: float = 0.02,
    by: Literal["wall", "cpu"] | None = None,
    fix: Mapping[str, int] | None = None,
    trust_provider: bool = False,
    progress: Progress | None = None,
) -> CompareReport:
    """Say whether ``b`` is faster or slower than ``a``, or that it cannot be told; see ``docs/latency.md``.

    Args:
        a: A bundle's folder or an ``.onnx`` file.
        b: Another one with the same inputs.
        devices: Such as ``"local"``; see ``docs/devices.md``.
        threads: Intra-op threads, 0 for all cores.
        cores: ``"all"``, ``"big"``, ``"little"``, or numbers such as ``"0,4-7"``, where the device can pin.
        sessions: Processes in which both take turns, half of which load ``b`` first.
        seconds: How long each runs in a process.
        min_difference: The least difference that matters: 0.02 for 2 %.
        by: The time that decides; default: CPU time with one thread on a CPU, else wall time.
        fix: Sizes of dynamic dimensions by name, for ``.onnx`` files.
        trust_provider: Load what a manifest names as its provider, though no target of edgeq does.
        progress: Told of every process.

    Returns:
        One result per device; ``difference`` holds ratio, interval and verdict, ``error`` says what failed.

    Raises:
        ConfigError: neither bundle nor model, other inputs, or no such kind of device.
        ModelError: an ``.onnx`` file does not load.
        ValidationError: a file of a bundle was changed.

    Example:
        >>> edgeq.compare("model-old", "model-new").results[0].difference.verdict
    """
    from edgeq.devices.registry import parse_device
    from edgeq.pipeline.comparing import Effort
    from edgeq.pipeline.comparing import compare as carry_out

    effort = Effort(
        sessions=sessions,
        seconds=seconds,
        threads=threads,
        cores=cores,
        min_difference=min_difference,
        by=by,
        sizes=dict(fix or {}),
    )
    chosen = [parse_device(name) for name in devices]
    return carry_out(a, b, chosen, effort, trust_provider=trust_provider, progress=progress)
