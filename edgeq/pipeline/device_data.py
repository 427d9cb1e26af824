"""A labelled data set for devices: prepared here, run there, and judged by the code that judges every package."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgeq.bundle import Bundle
from edgeq.devices.protocol import Arrays
from edgeq.errors import CalibrationError, ConfigError
from edgeq.graph import TensorInfo
from edgeq.pipeline.judging_labels import Judged, read_labels
from edgeq.recipe import ImagePreprocess, TextPreprocess
from edgeq.report import Metric
from edgeq.stages.calibrate.feeds import Feed, load_feed, raw_pictures
from edgeq.stages.run.accuracy import score
from edgeq.stages.run.predict import predictor

__all__ = ["EvaluationData"]

Stream = Callable[[Iterable[Arrays]], Iterator[tuple[Arrays, Arrays]]]
"""Batches in, each with its outputs out, in order."""


@dataclass(frozen=True)
class EvaluationData:
    """What a device's accuracy is measured on: ``data`` and ``labels`` are as in ``request.Data``.

    ``reference`` is the float model, run on this machine; without it only what labels say is measured.
    ``count`` items are drawn (default: all).
    """

    data: Any
    labels: str | os.PathLike[str] | None = None
    reference: str | os.PathLike[str] | None = None
    count: int | None = None

    def check(self, bundle: Bundle) -> None:
        """Raise CalibrationError or ConfigError for what cannot be measured: before the work, not after it."""
        if self.labels is None and self.reference is None:
            raise ConfigError(
                "--evaluation has nothing to compare the device's outputs with",
                remedy="give --labels, or the float model with --reference",
            )
        for option, path in (("--labels", self.labels), ("--reference", self.reference)):
            if path is not None and not Path(path).exists():
                raise CalibrationError(f"{option} names no file or folder", where=str(path), remedy="check the path")
        feed = self._feed(bundle)
        self._labels(bundle, feed)

    def measure(self, bundle: Bundle, stream: Stream) -> tuple[Metric, ...]:
        """All metrics of the task, the primary one first.

        Raises:
            CalibrationError: the data or its labels do not fit the model.
            EdgeqError: what running the batches raises.
        """
        feed = self._feed(bundle)
        judged = self._labels(bundle, feed)
        with predictor(self.reference) if self.reference is not None else nullcontext() as reference:
            answers = (
                (batch, None if reference is None else reference(batch), output) for batch, output in stream(feed)
            )
            manifest = bundle.manifest
            found = score(
                answers,
                task=manifest.task,
                source=feed.description,
                labels=judged.classes,
                boxes=manifest.interface.boxes,
                truths=judged.boxes,
            )
        return tuple(sorted(found.metrics, key=lambda metric: metric.name != found.primary))

    def _labels(self, bundle: Bundle, feed: Feed) -> Judged:
        manifest = bundle.manifest
        named = bundle.file(manifest.labels).read_text(encoding="utf-8").splitlines() if manifest.labels else ()
        return read_labels(self.labels, feed, manifest.interface, names=named, preprocess=manifest.preprocess)

    def _feed(self, bundle: Bundle) -> Feed:
        manifest = bundle.manifest
        inputs = [TensorInfo(entry.name, np.dtype(entry.dtype), entry.shape) for entry in manifest.inputs]
        preprocess = manifest.preprocess
        if isinstance(preprocess, TextPreprocess):
            preprocess = msgspec.structs.replace(preprocess, tokenizer=str(bundle.file(preprocess.tokenizer)))
        pixels = manifest.interface.pixels
        if pixels is None:
            return load_feed(self.data, inputs, preprocess=preprocess, count=self.count)
        inside = load_feed(self.data, [_prepared(inputs[0], pixels.steps)], preprocess=pixels.steps, count=self.count)
        return raw_pictures(inside, inputs, pixels.size, len(pixels.channels[0]))


def _prepared(pixels: TensorInfo, steps: ImagePreprocess) -> TensorInfo:
    """What the model inside reads, after ``steps``."""
    channels, (height, width) = 1 if steps.color == "L" else 3, steps.crop
    shape = (channels, height, width) if steps.layout == "NCHW" else (height, width, channels)
    return TensorInfo(pixels.name, np.dtype(np.float32), (pixels.shape[0], *shape))
