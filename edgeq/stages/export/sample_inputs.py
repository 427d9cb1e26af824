"""Inputs for a model of which only the interface is known: types, shapes, names."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import onnx_ir as ir

from edgeq import graph, runtime
from edgeq.errors import ExportError
from edgeq.graph import TensorInfo

__all__ = ["Guess", "check_inputs", "find_inputs", "guesses", "make_inputs"]

DYNAMIC_SIZES = (16, 32, 64, 128, 256, 512, 1024, 4096, 1)
IMAGE_SIZES = ((224, 224), (48, 320), (320, 320), (640, 640), (256, 256), (32, 320), (512, 512), (32, 100), (64, 64))
"""Height and width: classifiers, text lines, detectors; powers of two for networks that halve them often."""
SCALARS = (0, 1, 16000, 8000)
SAMPLING_RATE = 16000

_SECONDS = 20.0
"""No more guesses are made after this time."""

_REMEDY = "fix the dimension with --fix NAME=SIZE, or give --calibration data, whose first sample is used"


@dataclass(frozen=True)
class Guess:
    """What to put where a model leaves sizes and meanings open.

    ``size`` is for dynamic axes that are neither a batch nor the sides of an image. ``state`` is
    the same for all inputs but the first (None: ``size``): recurrent states have no length.
    ``scalar`` is for integers of which nothing is known.
    """

    size: int = DYNAMIC_SIZES[0]
    image: tuple[int, int] = IMAGE_SIZES[0]
    state: int | None = None
    scalar: int = SCALARS[0]


def guesses() -> Iterator[Guess]:
    """All guesses, the most likely first: sizes change before states, and those before scalars."""
    sizes = tuple(zip(DYNAMIC_SIZES, IMAGE_SIZES, strict=True))
    for scalar, state, (size, image) in product(SCALARS, (None, 1), sizes):
        yield Guess(size, image, state, scalar)


def make_inputs(model: ir.Model, infos: Sequence[TensorInfo], guess: Guess, *, seed: int = 0) -> dict[str, np.ndarray]:
    """One batch by input name, the same for the same model and guess.

    A dynamic first axis becomes 1; axes of one name are of one size. Floats are standard normal.
    Masks are ones and positions count up; integers that index a table (an embedding) are drawn
    from its rows; a sampling rate is 16000. Booleans are true, strings are empty.
    """
    rng = np.random.default_rng(seed)
    values = {str(value.name): value for value in graph.real_inputs(model)}
    known: dict[str, int] = {}
    made = {}
    for number, info in enumerate(infos):
        shape = tuple(_size(info, axis, number == 0, guess, known) for axis in range(len(info.shape)))
        made[info.name] = _fill(info, shape, values[info.name], guess, rng)
    return made


def _fill(
    info: TensorInfo, shape: tuple[int, ...], value: ir.Value, guess: Guess, rng: np.random.Generator
) -> np.ndarray:
    name = info.name.lower()
    if info.dtype == bool or "mask" in name:
        return np.ones(shape, info.dtype)
    if info.dtype.kind in "OSU":
        return np.full(shape, "", dtype=object)
    if info.dtype.kind not in "iu":
        return np.asarray(rng.standard_normal(shape)).astype(info.dtype)
    rows = _table_rows(value)
    if shape and ("position" in name or name == "pos_ids"):
        count = min(shape[-1], rows or shape[-1])
        return np.broadcast_to(np.arange(shape[-1]) % count, shape).astype(info.dtype)
    if int(np.prod(shape)) == 1 and rows is None:
        rate = name in ("sr", "fs", "rate") or ("sampl" in name and "rate" in name)
        return np.full(shape, SAMPLING_RATE if rate and guess.scalar == 0 else guess.scalar).astype(info.dtype)
    if "token_type" in name or "segment" in name or rows is None:
        return np.zeros(shape, info.dtype)
    return np.asarray(rng.integers(0, rows, shape)).astype(info.dtype)


def _size(info: TensorInfo, axis: int, first: bool, guess: Guess, known: dict[str, int]) -> int:
    dim = info.shape[axis]
    if isinstance(dim, int):
        return dim
    sides = _image_sides(info)
    if axis == 0 or (dim is not None and "batch" in dim.lower()):
        size = 1
    elif axis in sides:
        size = guess.image[sides.index(axis)]
    elif sides and all(not isinstance(d, int) for d in info.shape):
        size = 3
    else:
        size = guess.size if first or guess.state is None else guess.state
    return size if dim is None else known.setdefault(dim, size)


def _image_sides(info: TensorInfo) -> tuple[int, ...]:
    """The axes of height and width, if the input looks like pictures; else none."""
    if len(info.shape) != 4 or info.dtype.kind != "f":
        return ()
    if info.shape[3] in (1, 3, 4) and not isinstance(info.shape[2], int):
        return (1, 2)
    anything = all(not isinstance(dim, int) for dim in info.shape)
    return (2, 3) if anything or info.shape[1] in (1, 3, 4) else ()


def find_inputs(
    model: ir.Model,
    infos: Sequence[TensorInfo],
    *,
    first: Mapping[str, np.ndarray] | None = None,
    where: str,
) -> dict[str, np.ndarray]:
    """The first made-up batch on which the model runs: ``first`` if given, then one per guess.

    A model whose interface leaves nothing open is not run.

    Args:
        model: The float model.
        infos: Its inputs, with the dimensions fixed that the user fixed.
        first: A batch made of what is known otherwise, such as the size of its pictures.
        where: Where the model comes from, for the message.

    Raises:
        ExportError: it runs on none of them; says what was tried.
        ModelError: ONNX Runtime cannot load the model.
    """
    made = (make_inputs(model, infos, guess) for guess in guesses())
    if first is None and not any(_leaves_open(info) for info in infos):
        return next(made)
    tried: dict[str, str] = {}
    started = time.monotonic()
    with runtime.open_session(model, runtime.session_options(optimization="none")) as session:
        for inputs in (*([dict(first)] if first is not None else []), *made):
            text = describe_inputs(inputs)
            if text in tried:
                continue
            try:
                session.run(None, inputs)
            except Exception as error:  # ONNX Runtime's exceptions share no public base class
                tried[text] = runtime.reason(error)
            else:
                return inputs
            if time.monotonic() - started > _SECONDS:
                break
    shown = list(tried)[:3]
    more = f", and {len(tried) - len(shown)} more" if len(tried) > len(shown) else ""
    raise ExportError(
        f"the model runs on none of {len(tried)} made-up inputs: {' | '.join(shown)}{more}; "
        f"the first fails with: {tried[shown[0]]}",
        where=where,
        remedy=_REMEDY,
    )


def describe_inputs(inputs: Mapping[str, np.ndarray]) -> str:
    """Names, types and shapes; the value of a single integer instead of its shape."""
    return ", ".join(
        f"{name} = {array.item()}"
        if array.size == 1 and array.dtype.kind in "iu"
        else f"{name}: {array.dtype}{list(array.shape)}"
        for name, array in inputs.items()
    )


def _leaves_open(info: TensorInfo) -> bool:
    open_size = any(not isinstance(dim, int) for dim in info.shape)
    return open_size or (info.dtype.kind in "iu" and all(dim == 1 for dim in info.shape))


def _table_rows(value: ir.Value) -> int | None:
    """Rows of the smallest constant table that an integer input indexes with Gather, straight or through a Cast."""
    rows = []
    for node, index in value.uses():
        if node.op_type == "Cast":
            rows.append(_table_rows(node.outputs[0]))
        elif node.op_type == "Gather" and index == 1 and node.attributes.get_int("axis", 0) == 0:
            table = node.inputs[0]
            if table is not None and table.const_value is not None:
                rows.append(int(table.const_value.shape.numpy()[0]))
    return min((count for count in rows if count), default=None)


def check_inputs(infos: Sequence[TensorInfo], given: Mapping[str, object], *, where: str) -> dict[str, np.ndarray]:
    """``given`` in the order of the model's inputs; raises ExportError where names, types or shapes do not fit."""
    wanted = "; ".join(info.describe() for info in infos)
    if not isinstance(given, Mapping) or set(given) != {info.name for info in infos}:
        found = ", ".join(map(str, given)) if isinstance(given, Mapping) else type(given).__name__
        raise ExportError(
            f"example inputs do not fit the model: found {found}", where=where, remedy=f"it takes: {wanted}"
        )
    arrays = {info.name: np.asarray(given[info.name]) for info in infos}
    for info in infos:
        array = arrays[info.name]
        fits = array.ndim == len(info.shape) and all(
            not isinstance(size, int) or size == found for size, found in zip(info.shape, array.shape, strict=True)
        )
        if array.dtype != info.dtype or not fits:
            raise ExportError(
                f"example input {info.name!r} is {array.dtype}{list(array.shape)}",
                where=where,
                remedy=f"the model takes {info.describe()}",
            )
    return arrays
