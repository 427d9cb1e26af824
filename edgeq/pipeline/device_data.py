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
from edgeq.recipe import TextPreprocess
from edgeq.report import Metric
from edgeq.stages.calibrate.feeds import Feed, load_feed
from edgeq.stages.run.accuracy import score
from edgeq.stages.run.labels import load_labels
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
        if self.labels is not None:
            load_labels(self.labels, feed.item_names)

    def measure(self, bundle: Bundle, stream: Stream) -> tuple[Metric, ...]:
        """All metrics of the task, the primary one first.

        Raises:
            CalibrationError: the data or its labels do not fit the model.
            EdgeqError: what running the batches raises.
        """
        feed = self._feed(bundle)
        labels = None if self.labels is None else load_labels(self.labels, feed.item_names)
        with predictor(self.reference) if self.reference is not None else nullcontext() as reference:
            answers = (
                (batch, None if reference is None else reference(batch), output) for batch, output in stream(feed)
            )
            manifest = bundle.manifest
            found = score(
                answers,
                task=manifest.task,
                source=feed.description,
                labels=labels,
                boxes=manifest.interface.boxes,
            )
        return tuple(sorted(found.metrics, key=lambda metric: metric.name != found.primary))

    def _feed(self, bundle: Bundle) -> Feed:
        manifest = bundle.manifest
        inputs = [TensorInfo(entry.name, np.dtype(entry.dtype), entry.shape) for entry in manifest.inputs]
        preprocess = manifest.preprocess
        if isinstance(preprocess, TextPreprocess):
            preprocess = msgspec.structs.replace(preprocess, tokenizer=str(bundle.file(preprocess.tokenizer)))
        return load_feed(self.data, inputs, preprocess=preprocess, count=self.count)
