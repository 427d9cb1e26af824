"""Writes a bundle into a folder: model, sample tensors, labels, licences, a readme and the manifest."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edgeq import graph
from edgeq.bundle import Manifest, Samples, TensorEntry, file_entry
from edgeq.errors import ConfigError, OutputError
from edgeq.recipe import Preprocess, TextPreprocess
from edgeq.stages.package.interface import find_interface
from edgeq.stages.package.render import render_html, render_licences, render_readme

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgeq.report import Report

__all__ = ["write_bundle", "write_report"]

_MODEL = "model.onnx"
_LABELS = "labels.txt"
_TOKENIZER = "tokenizer.json"


def write_bundle(
    folder: Path,
    *,
    model: ir.Model,
    manifest: Manifest,
    fallback: ir.Model | None = None,
    sample_inputs: Sequence[Mapping[str, np.ndarray]] = (),
    reference_outputs: Sequence[Mapping[str, np.ndarray]] = (),
    sqnr_db: Mapping[str, float] | None = None,
    box_agreement: Mapping[str, float] | None = None,
    labels: Sequence[str] = (),
) -> Manifest:
    """Fill ``folder`` (an existing, empty one, see ``edgeq.output.atomic_folder``) and return the manifest.

    Args:
        folder: Where the files go.
        model: The finished model.
        manifest: A draft, without ``files``, ``inputs``, ``outputs``, ``samples`` and ``labels``. A
            tokenizer that it names is copied into the bundle; entries of its ``interface`` are kept.
        fallback: The model of ``manifest.fallback``, with the same inputs and outputs.
        sample_inputs: Batches by input name. Those with the shapes of the first are kept.
        reference_outputs: The float model's answers to them.
        sqnr_db: How close the packaged model came to these answers, per output.
        box_agreement: The same for outputs that hold boxes, in percent.
        labels: Names of the classes, one per logit.

    Raises:
        ConfigError: the tokenizer is missing, a label is not one line of text, or the fallback's inputs or
            outputs are others than the model's.
        OutputError: the disk is full or the folder is not writable.
    """
    graph.save_model(model, folder / _MODEL)
    try:
        _write_fallback(folder, model, fallback, manifest)
        samples = _write_samples(folder, sample_inputs, reference_outputs, sqnr_db or {}, box_agreement or {})
        preprocess, named = _write_tokenizer(folder, manifest), _write_labels(folder, labels)
        finished = msgspec.structs.replace(
            manifest,
            inputs=_tensors(graph.input_infos(model)),
            outputs=_tensors(graph.output_infos(model)),
            preprocess=preprocess,
            interface=find_interface(
                model,
                task=manifest.task,
                preprocess=preprocess,
                tokenizer=folder / _TOKENIZER if isinstance(preprocess, TextPreprocess) else None,
                labels=None if named is None else (named, len(labels)),
                known=manifest.interface,
            ),
            samples=samples,
            labels=named,
        )
        (folder / "README.md").write_text(render_readme(finished), encoding="utf-8")
        (folder / "LICENSES.md").write_text(render_licences(finished), encoding="utf-8")
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        entries = {path.relative_to(folder).as_posix(): file_entry(path) for path in files}
        finished = msgspec.structs.replace(finished, files=entries)
        (folder / "manifest.json").write_bytes(finished.to_json())
    except OSError as error:
        raise OutputError(f"cannot write the bundle: {error.strerror or error}", where=str(folder)) from None
    return finished


def write_report(folder: Path, report: Report, manifest: Manifest) -> None:
    """Write ``report.json`` and ``report.html``. They hold timings, so the manifest has no checksum of them.

    Raises:
        OutputError: the disk is full or the folder is not writable.
    """
    try:
        (folder / "report.json").write_bytes(report.to_json())
        (folder / "report.html").write_text(render_html(report, manifest), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write the report: {error.strerror or error}", where=str(folder)) from None


def _write_fallback(folder: Path, model: ir.Model, fallback: ir.Model | None, manifest: Manifest) -> None:
    if (fallback is None) != (manifest.fallback is None):
        raise ValueError("a fallback's model and its entry in the manifest belong together")
    if fallback is None or manifest.fallback is None:
        return
    for infos in (graph.input_infos, graph.output_infos):
        ours, theirs = _tensors(infos(model)), _tensors(infos(fallback))
        if ours != theirs:
            raise ConfigError(
                f"the fallback for {manifest.fallback.target} has {_in_words(theirs)} where the model has "
                f"{_in_words(ours)}: an app could not switch between them",
                remedy="leave it out with --no-fallback",
            )
    path = folder / manifest.fallback.model
    path.parent.mkdir(parents=True)
    graph.save_model(fallback, path)


def _in_words(tensors: Sequence[TensorEntry]) -> str:
    return ", ".join(f"{t.name}: {t.dtype}{list(t.shape)}" for t in tensors)


def _write_samples(
    folder: Path,
    inputs: Sequence[Mapping[str, np.ndarray]],
    outputs: Sequence[Mapping[str, np.ndarray]],
    sqnr_db: Mapping[str, float],
    box_agreement: Mapping[str, float],
) -> Samples | None:
    pairs = list(zip(inputs, outputs, strict=True))
    alike = [pair for pair in pairs if _shapes(pair) == _shapes(pairs[0])]
    if not alike:
        return None
    (folder / "samples").mkdir()
    named: list[dict[str, str]] = []
    for side, noun in enumerate(("input", "output")):
        names = {}
        for index, name in enumerate(alike[0][side]):
            names[name] = f"samples/{noun}_{index}.npy"
            stacked = np.stack([np.asarray(pair[side][name]) for pair in alike])
            np.save(folder / names[name], stacked, allow_pickle=False)
        named.append(names)
    recorded = [
        {name: round(found[name], 3) for name in named[1] if name in found} for found in (sqnr_db, box_agreement)
    ]
    return Samples(count=len(alike), inputs=named[0], outputs=named[1], sqnr_db=recorded[0], box_agreement=recorded[1])


def _shapes(pair: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]) -> list[tuple[int, ...]]:
    return [array.shape for side in pair for array in side.values()]


def _write_tokenizer(folder: Path, draft: Manifest) -> Preprocess | None:
    """The preprocessing with the tokenizer's place in the bundle instead of on the disk of whoever made it."""
    preprocess = draft.preprocess
    if not isinstance(preprocess, TextPreprocess):
        return preprocess
    if not Path(preprocess.tokenizer).is_file():
        raise ConfigError("the tokenizer does not exist", where=preprocess.tokenizer, remedy="check the recipe")
    shutil.copyfile(preprocess.tokenizer, folder / _TOKENIZER)
    return msgspec.structs.replace(preprocess, tokenizer=_TOKENIZER)


def _write_labels(folder: Path, labels: Sequence[str]) -> str | None:
    if not labels:
        return None
    broken = next((label for label in labels if re.search(r"[\r\n]", label)), None)
    if broken is not None:
        raise ConfigError(f"the label {broken!r} is not one line of text")
    (folder / _LABELS).write_text("".join(f"{label}\n" for label in labels), encoding="utf-8", newline="\n")
    return _LABELS


def _tensors(infos: Sequence[graph.TensorInfo]) -> tuple[TensorEntry, ...]:
    return tuple(TensorEntry(name=i.name, dtype=str(i.dtype), shape=i.shape) for i in infos)
