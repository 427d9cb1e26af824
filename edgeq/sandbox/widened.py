"""Models for devices without 16-bit floats, such as SwiftShader: the same graph with its floats widened to 32 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgeq.errors import EdgeqError
from edgeq.float16 import to_float32
from edgeq.graph import load_model, save_model
from edgeq.sandbox.protocol import Outcome, Task

__all__ = ["say_widened", "widen"]


def widen(tasks: Sequence[Task], folder: Path) -> list[Task]:
    """Each task with a widened copy of its model in ``folder``; the same one where the model has no float16.

    A model that cannot be read is left for the provider to refuse.
    """
    return [_widened(task, folder / f"widened_{number}.onnx") for number, task in enumerate(tasks)]


def _widened(task: Task, file: Path) -> Task:
    try:
        model = load_model(task.model)
    except EdgeqError:
        return task
    if not to_float32(model):
        return task
    save_model(model, file)
    return replace(task, model=file)


def say_widened(tasks: Sequence[Task], widened: Sequence[Task], outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes with a word on those models that were changed."""
    return [
        outcome
        if before.model == after.model
        else replace(outcome, version=f"{outcome.version}, floats widened to 32 bits")
        for before, after, outcome in zip(tasks, widened, outcomes, strict=True)
    ]
