"""What `edgeq compare` is given: bundles as they are, ONNX files as bundles of their own, and what both are fed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeq import __version__, graph
from edgeq.bundle import Bundle, Manifest, TensorEntry, file_entry, read_bundle
from edgeq.compare_report import ComparedModel
from edgeq.errors import ConfigError
from edgeq.interface import BoxesOutput
from edgeq.report import Report
from edgeq.stages.run.validate import load_samples
from edgeq.target import CPU_PROVIDER, Provider
from edgeq.trust import check_providers

__all__ = ["Contender", "Fed", "describe", "feed", "open_contender"]

Arrays = Mapping[str, np.ndarray]

_ONNX_RUNTIME = ">=1.24.2"


@dataclass(frozen=True)
class Contender:
    """One of two models: a bundle, which may have been made of a bare ONNX file for the occasion."""

    bundle: Bundle
    bare: bool


@dataclass(frozen=True)
class Fed:
    """Batches by input name, and the float model's answers where they are answers to both contenders' samples.

    ``boxes`` names the outputs that are boxes in both.
    """

    inputs: Sequence[Arrays]
    references: Sequence[Arrays] | None
    task: str | None
    text: str
    boxes: BoxesOutput | None = None


def open_contender(path: str | os.PathLike[str], folder: Path, *, trust_provider: bool = False) -> Contender:
    """A bundle, or an ``.onnx`` file, which is put into ``folder`` as a bundle for the CPU.

    Raises:
        ConfigError: neither of them.
        ModelError: the file is no ONNX model.
        ValidationError: a file of the bundle was changed, or its provider is not to be trusted.
    """
    path = Path(path)
    if path.suffix == ".onnx" and path.is_file():
        return Contender(_as_bundle(path, folder), bare=True)
    bundle = read_bundle(path)
    if not trust_provider:
        check_providers(bundle)
    return Contender(bundle, bare=False)


def describe(contender: Contender) -> ComparedModel:
    """Its size, and the metrics of the report beside it, if there is one."""
    bundle, entry = contender.bundle, contender.bundle.manifest.main
    report = None
    if not contender.bare and (bundle.path / "report.json").is_file():
        file = bundle.path / "report.json"
        report = Report.from_json(file.read_bytes(), where=str(file))
    names = [name for name in bundle.manifest.files if name == entry.model or name == f"{entry.model}.data"]
    return ComparedModel(
        name=bundle.manifest.name,
        target="" if contender.bare else entry.target,
        precision="" if contender.bare else entry.precision,
        provider=entry.provider.name,
        model_bytes=sum(bundle.manifest.files[name].bytes for name in names),
        metrics=report.metrics if report else (),
        primary=report.primary if report else None,
    )


def feed(a: Contender, b: Contender, sizes: Mapping[str, int]) -> Fed:
    """What both are run on: the samples of a bundle, else arrays made up for the inputs of the file.

    ``sizes`` fixes dynamic dimensions of made-up arrays.

    Raises:
        ConfigError: the inputs of both are not the same, or a dimension has no size.
    """
    _check_inputs(a, b)
    loaded = [load_samples(c.bundle) for c in (a, b) if c.bundle.manifest.samples is not None]
    task = a.bundle.manifest.task or b.bundle.manifest.task
    of_both = [c.bundle.manifest.interface.boxes for c in (a, b)]
    boxes = of_both[0] if of_both[0] == of_both[1] else None
    if not loaded:
        return Fed([_made_up(a.bundle.manifest.inputs, sizes)], None, task, "made-up inputs", boxes)
    inputs, outputs, samples = loaded[0]
    same = all(_equal(inputs, other) for other, _, _ in loaded[1:])
    return Fed(inputs, outputs if same else None, task, f"the bundle's {samples.count} samples", boxes)


def _as_bundle(path: Path, folder: Path) -> Bundle:
    model = graph.load_model(path)
    folder.mkdir(parents=True)
    graph.save_model(model, folder / "model.onnx")
    manifest = Manifest(
        edgeq=__version__,
        name=path.stem,
        target="",
        precision="",
        provider=Provider(name=CPU_PROVIDER, package="onnxruntime", version=_ONNX_RUNTIME),
        inputs=_entries(graph.input_infos(model)),
        outputs=_entries(graph.output_infos(model)),
        files={file.name: file_entry(file) for file in sorted(folder.iterdir())},
    )
    (folder / "manifest.json").write_bytes(manifest.to_json())
    return Bundle(folder, manifest)


def _entries(infos: Sequence[graph.TensorInfo]) -> tuple[TensorEntry, ...]:
    return tuple(TensorEntry(name=info.name, dtype=str(info.dtype), shape=info.shape) for info in infos)


def _check_inputs(a: Contender, b: Contender) -> None:
    ours, theirs = ({i.name: (i.dtype, len(i.shape)) for i in c.bundle.manifest.inputs} for c in (a, b))
    if ours != theirs:
        words = [
            ", ".join(f"{name!r} ({kind}, {rank} axes)" for name, (kind, rank) in side.items()) or "none"
            for side in (ours, theirs)
        ]
        raise ConfigError(
            f"the models cannot be compared: A's inputs are {words[0]}; B's are {words[1]}",
            remedy="compare models that an app could exchange for one another",
        )


def _made_up(inputs: Sequence[TensorEntry], sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Normal noise for floats, ones for everything else: valid as ids, masks and flags."""
    rng = np.random.default_rng(0)
    made = {}
    for entry in inputs:
        shape = []
        for axis, size in enumerate(entry.shape):
            known = size if isinstance(size, int) else sizes.get(f"{entry.name}:{axis}", sizes.get(str(size)))
            if known is None and axis == 0:
                known = 1
            if known is None:
                name = size or f"{entry.name}:{axis}"
                raise ConfigError(
                    f"axis {axis} ({size or 'unnamed'}) of the input {entry.name!r} has no size",
                    remedy=f"fix it: --fix {name}=SIZE, or compare with a bundle, which has samples",
                )
            shape.append(known)
        floats = np.issubdtype(np.dtype(entry.dtype), np.floating)
        made[entry.name] = (rng.standard_normal(shape) if floats else np.ones(shape)).astype(entry.dtype)
    return made


def _equal(ours: Sequence[Arrays], theirs: Sequence[Arrays]) -> bool:
    return len(ours) == len(theirs) and all(
        x.keys() == y.keys() and all(np.array_equal(x[name], y[name]) for name in x)
        for x, y in zip(ours, theirs, strict=True)
    )
