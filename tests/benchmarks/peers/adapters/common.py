"""What every adapter shares. An adapter runs in its tool's own environment and imports nothing of edgeq.

    python ADAPTER.py METHOD '{"model": ..., "output": ..., "samples": ..., "precision": ..., "family": ...}'

It writes an ONNX file, or fails: the last line of what it says is then the result.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

os.environ["ORT_DISABLE_TELEMETRY"] = "1"


@dataclass(frozen=True)
class Task:
    """One model to quantize with the samples in an ``.npz`` file: arrays ``[samples, 1, ...]`` by input name."""

    model: str
    output: str
    samples: str
    precision: str
    family: str

    @property
    def transformer(self) -> bool:
        return self.family == "transformer"

    @property
    def weight_bits(self) -> int:
        return int(self.precision[1])

    @property
    def activation_bits(self) -> int:
        return int(self.precision.rpartition("a")[2])

    def feeds(self) -> list[dict[str, np.ndarray]]:
        with np.load(self.samples) as file:
            arrays = dict(file)
        count = len(next(iter(arrays.values())))
        return [{name: array[index] for name, array in arrays.items()} for index in range(count)]


class Reader:
    """ONNX Runtime's CalibrationDataReader, by its shape (tools subclass or take it as it is)."""

    def __init__(self, feeds: list[dict[str, np.ndarray]]) -> None:
        self.feeds = feeds
        self.rewind()

    def rewind(self) -> None:
        self.rest: Iterator[dict[str, np.ndarray]] = iter(self.feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.rest, None)

    def __len__(self) -> int:
        return len(self.feeds)


def main(methods: Mapping[str, Callable[[Task], None]]) -> None:
    task = Task(**json.loads(sys.argv[2]))
    methods[sys.argv[1]](task)
    if not Path(task.output).exists():
        raise FileNotFoundError("the tool ended well and wrote no file")
