"""The bundle's sample tensors in tests on the device, and shapes to measure with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgeq.bundle import Bundle
from edgeq.errors import ValidationError
from edgeq.stages.embed.meaning import read_meaning
from edgeq.stages.embed.platforms.android_code import Code, TensorView
from edgeq.stages.embed.platforms.android_meaning import BoxesView
from edgeq.stages.embed.project import ProjectFile

__all__ = ["BenchView", "SamplesView", "bench_view", "sample_files", "sample_view"]


@dataclass(frozen=True)
class SampleView:
    """The samples of one tensor: the name of their file."""

    tensor: TensorView
    file: str


@dataclass(frozen=True)
class ChosenSize:
    """A parameter that chooses a dimension, its value in the samples, and which axis of which input has it."""

    id: str
    value: int
    input: int
    axis: int


@dataclass(frozen=True)
class SamplesView:
    """What a test on the device runs.

    ``outputs`` are compared number by number, ``boxes`` (boxes, scores, classes, count) as what was found.
    """

    inputs: tuple[SampleView, ...]
    outputs: tuple[SampleView, ...]
    sizes: tuple[ChosenSize, ...]
    boxes: tuple[SampleView, ...] = ()


@dataclass(frozen=True)
class BenchView:
    """What is measured with: the number of elements of each input, and the dimensions that give it."""

    counts: tuple[int, ...]
    sizes: tuple[ChosenSize, ...]


def sample_view(bundle: Bundle, code: Code, boxes: BoxesView | None) -> SamplesView | None:
    """None if the bundle has no samples, or not of all inputs."""
    samples = bundle.manifest.samples
    if samples is None or not {str(t.name) for t in code.inputs} <= set(samples.inputs) or not code.inputs:
        return None
    meaning = read_meaning(bundle.manifest)
    outputs = {str(view.tensor.name): view for view in _sampled(code.outputs, samples.outputs)}
    least = boxes and boxes.found.least_agreement(bundle.manifest.main, samples)
    return SamplesView(
        inputs=_sampled(code.inputs, samples.inputs),
        outputs=tuple(view for name, view in outputs.items() if meaning.sqnr_counts(name)),
        sizes=_sizes(code, _shapes(bundle, code)),
        boxes=() if boxes is None or least is None else tuple(outputs[name] for name in boxes.found.names),
    )


def bench_view(bundle: Bundle, code: Code) -> BenchView:
    """The samples' shapes; a dynamic dimension is 1 where there are none."""
    shapes = _shapes(bundle, code)
    return BenchView(tuple(math.prod(shapes[t.id]) for t in code.inputs), _sizes(code, shapes))


def sample_files(bundle: Bundle, folder: str) -> list[ProjectFile]:
    """The samples as they lie in the bundle."""
    samples = bundle.manifest.samples
    named = {**samples.inputs, **samples.outputs}.values() if samples is not None else ()
    return [ProjectFile(f"{folder}/{name.rpartition('/')[2]}", bundle.file(name)) for name in sorted(set(named))]


def _sampled(tensors: tuple[TensorView, ...], files: Mapping[str, str]) -> tuple[SampleView, ...]:
    return tuple(SampleView(t, files[str(t.name)].rpartition("/")[2]) for t in tensors if str(t.name) in files)


def _shapes(bundle: Bundle, code: Code) -> dict[str, tuple[int, ...]]:
    """The shape of one sample of each input, by its identifier."""
    samples = bundle.manifest.samples
    shapes = {}
    for view in code.inputs:
        file = samples.inputs.get(str(view.name)) if samples is not None else None
        if file is None:
            shapes[view.id] = tuple(dim if isinstance(dim, int) else 1 for dim in view.tensor.shape)
            continue
        try:
            shapes[view.id] = np.load(bundle.file(file), mmap_mode="r", allow_pickle=False).shape[1:]
        except (OSError, ValueError) as error:
            raise ValidationError(f"{file} is no array: {error}", where=str(bundle.path)) from None
        if len(shapes[view.id]) != len(view.tensor.shape):
            raise ValidationError(f"{file} has not the shape of {str(view.name)!r}", where=str(bundle.path))
    return shapes


def _sizes(code: Code, shapes: Mapping[str, tuple[int, ...]]) -> tuple[ChosenSize, ...]:
    found = []
    for size in code.sizes:
        number, axis = next(
            (number, axis)
            for number, view in enumerate(code.inputs)
            for axis, dim in enumerate(view.tensor.shape)
            if dim == size.name
        )
        found.append(ChosenSize(size.id, shapes[code.inputs[number].id][axis], number, axis))
    return tuple(found)
