"""Run a float model over a feed and fold the named tensors into statistics, sample by sample."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from edgeq import graph
from edgeq.errors import CalibrationError
from edgeq.padding import mask_of, with_tokens_for_padding
from edgeq.progress import Progress, Silent
from edgeq.qtypes import TensorStats
from edgeq.runtime import open_session, session_options
from edgeq.stages.calibrate.cache import load_state, save_state
from edgeq.stages.calibrate.feeds import Feed
from edgeq.stages.calibrate.stats import SAMPLE_CAP, Accumulator

__all__ = ["STATS_VERSION", "calibrate"]

STATS_VERSION = 3
"""Raised whenever the same samples would give other statistics or another state, so that old caches are not used."""

_CHECKPOINT_SECONDS = 5.0
_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)


def calibrate(
    model: ir.Model,
    feed: Feed,
    tensors: Sequence[str],
    *,
    channel_axis: Mapping[str, int] | None = None,
    count_padding: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, TensorStats]:
    """Statistics of float tensors (graph inputs or outputs of nodes) over all samples of ``feed``.

    ``channel_axis`` names, for the tensors that need per-channel statistics, an axis of fixed size.
    What is computed for padding behind the tokens of a text is left out, as nobody reads it, unless
    ``count_padding`` says that it matters: ranges that are found at run time include it.
    With ``cache`` (a folder) finished statistics are kept and found again, and a calibration that
    was interrupted goes on where it stopped, with bit-identical results. Memory does not grow with
    the number of samples. ``model`` is left as it is.

    Raises:
        CalibrationError: a tensor does not exist, is constant or is no float; the feed is empty; a
            tensor holds NaN or +infinity; the model cannot run on a sample.
        ModelError: ONNX Runtime cannot load the model.
    """
    progress = progress or Silent()
    axes = dict(channel_axis or {})
    tensors = list(dict.fromkeys(tensors))
    _check_tensors(model, tensors)
    if not len(feed):
        raise CalibrationError("there are no calibration samples", where=feed.description)
    run = _Run(model, {name: Accumulator(axes.get(name)) for name in tensors}, count_padding)
    path = None if cache is None else cache / f"{_key(model, feed, tensors, axes, count_padding)}.stats"
    if path is not None and (saved := load_state(path)) is not None:
        run.restore(*saved)
    progress.start("calibrate", len(feed))
    try:
        progress.advance(run.done)
        if run.done < len(feed):
            _observe(run, feed, path, progress)
    finally:
        progress.finish()
    return run.finish()


class _Run:
    """Accumulators after ``done`` samples; ``folding`` while they disagree on which samples they have seen."""

    def __init__(self, model: ir.Model, accumulators: dict[str, Accumulator], count_padding: bool) -> None:
        self.model = model
        self.count_padding = count_padding
        self.accumulators = accumulators
        self.done = 0
        self.folding = False

    def fold(self, arrays: Mapping[str, np.ndarray], mask: np.ndarray | None, sample: str) -> None:
        self.folding = True
        mask = None if self.count_padding else mask
        for name, accumulator in self.accumulators.items():
            try:
                accumulator.update(with_tokens_for_padding(arrays[name], mask), self.done)
            except ValueError as error:
                raise CalibrationError(
                    f"tensor {name!r} ({_origin(self.model, name)}) holds {error} for {sample}",
                    where=f"sample number {self.done} of the calibration data",
                    remedy="check this sample, and that the float model gives finite results on it",
                ) from None
        self.done += 1
        self.folding = False

    def save(self, path: Path) -> None:
        save_state(path, self.done, {name: a.state() for name, a in self.accumulators.items()})

    def restore(self, done: int, state: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        for name, accumulator in self.accumulators.items():
            accumulator.restore(state[name])
        self.done = done

    def finish(self) -> dict[str, TensorStats]:
        result = {}
        for name, accumulator in self.accumulators.items():
            try:
                result[name] = accumulator.finish()
            except ValueError:
                raise CalibrationError(
                    f"tensor {name!r} ({_origin(self.model, name)}) is empty in every sample",
                    remedy="feed samples that give this part of the model something to compute",
                ) from None
        return result


def _observe(run: _Run, feed: Feed, path: Path | None, progress: Progress) -> None:
    """Run the remaining samples; a checkpoint every few seconds, and when anything stops the loop."""
    outputs = [name for name in run.accumulators if name not in {v.name for v in run.model.graph.inputs}]
    saved = time.monotonic()
    try:
        with open_session(_expose(run.model, outputs), session_options()) as session:
            for inputs in feed.samples(start=run.done):
                sample = feed.sample_name(run.done)
                try:
                    values = session.run(outputs, inputs) if outputs else []
                except Exception as error:  # ONNX Runtime's exceptions share no public base class
                    raise CalibrationError(
                        f"the model fails on {sample}: {' '.join(str(error).split())[:300]}",
                        where=f"sample number {run.done} of the calibration data",
                        remedy="compare the sample's shapes and values with what the model expects",
                    ) from None
                run.fold({**inputs, **dict(zip(outputs, values, strict=True))}, mask_of(inputs), sample)
                del values
                progress.advance()
                if path is not None and time.monotonic() - saved > _CHECKPOINT_SECONDS:
                    run.save(path)
                    saved = time.monotonic()
    finally:
        # A sample that is folded only in part would be counted twice on resuming.
        if path is not None and run.done and not run.folding:
            run.save(path)


def _expose(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy (weights shared) whose outputs are ``names`` alone, so that nothing else is kept alive."""
    copy = model.clone()
    values = {v.name: v for node in copy.graph for v in node.outputs if v.name}
    copy.graph.outputs[:] = [values[name] for name in names]
    return copy


def _check_tensors(model: ir.Model, tensors: Sequence[str]) -> None:
    known = {v.name: v for v in graph.real_inputs(model)}
    known.update({v.name: v for node in model.graph for v in node.outputs if v.name})
    for name in tensors:
        if name in model.graph.initializers:
            raise CalibrationError(f"tensor {name!r} is a constant: it needs no calibration")
        if name not in known:
            raise CalibrationError(
                f"the model's main graph has no tensor {name!r}",
                remedy="name graph inputs or outputs of nodes; tensors inside If, Loop and Scan cannot be observed",
            )
        if known[name].dtype is not None and known[name].dtype not in _FLOATS:
            raise CalibrationError(f"tensor {name!r} is {known[name].dtype}: only float tensors have a range to learn")


def _origin(model: ir.Model, name: str) -> str:
    for node in model.graph:
        if any(value.name == name for value in node.outputs):
            return f"output of node {node.name!r}, {node.op_type}"
    return "input of the model"


def _key(model: ir.Model, feed: Feed, tensors: Sequence[str], axes: Mapping[str, int], count_padding: bool) -> str:
    """Identity of a calibration: everything that decides its statistics."""
    parts = {
        "model": graph.fingerprint(model),
        "feed": feed.fingerprint,
        "tensors": {name: axes.get(name) for name in tensors},
        "padding": count_padding,
        "cap": SAMPLE_CAP,
        "version": STATS_VERSION,
        "onnxruntime": ort.__version__,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
