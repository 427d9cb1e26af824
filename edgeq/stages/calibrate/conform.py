"""Check one sample against the model's inputs; cast only where nothing can be lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgeq.errors import CalibrationError
from edgeq.graph import TensorInfo

__all__ = ["conform", "count_rows", "has_batch_axis"]

_RESHAPE = "give arrays of the model's shape; the leading axis counts samples"


def conform(arrays: Mapping[str, np.ndarray], inputs: Sequence[TensorInfo], where: str) -> dict[str, np.ndarray]:
    """Exactly the model's inputs, with their dtypes, C-contiguous.

    Integers are cast to another integer type if every value fits, floats to another float type if
    none overflows. Nothing else is cast: integers for a float input are most likely pixels that
    nobody normalized. Dynamic dimensions of one name must agree. Arrays that the model has no
    input for (labels) are left out.

    Raises:
        CalibrationError: an input is missing, has another rank or shape or another kind of numbers,
            or holds NaN.
    """
    missing = [info.describe() for info in inputs if info.name not in arrays]
    if missing:
        raise _missing(missing, arrays, where)
    symbols: dict[str, int] = {}
    return {info.name: _fit(np.asarray(arrays[info.name]), info, symbols, where) for info in inputs}


def has_batch_axis(inputs: Sequence[TensorInfo]) -> bool:
    """Whether the leading axis of every input counts items: all inputs agree on that dimension."""
    return bool(inputs) and all(info.shape for info in inputs) and len({info.shape[0] for info in inputs}) == 1


def count_rows(shapes: Mapping[str, tuple[int, ...]], inputs: Sequence[TensorInfo], where: str) -> int | None:
    """How many items arrays of these shapes hold; None if they are one item whose batch axis is left out.

    Only for inputs that `has_batch_axis`.

    Raises:
        CalibrationError: an array is missing or of another rank, or the arrays disagree.
    """
    missing = [info.describe() for info in inputs if info.name not in shapes]
    if missing:
        raise _missing(missing, shapes, where)
    counts: set[int | None] = set()
    for info in inputs:
        shape = shapes[info.name]
        if len(shape) not in (len(info.shape), len(info.shape) - 1):
            raise CalibrationError(
                f"expected {info.describe()}, got shape [{', '.join(map(str, shape))}]", where=where, remedy=_RESHAPE
            )
        counts.add(shape[0] if len(shape) == len(info.shape) else None)
    if len(counts) != 1:
        raise CalibrationError(
            "the arrays disagree on the number of samples: "
            + ", ".join(f"{info.name} has shape {list(shapes[info.name])}" for info in inputs),
            where=where,
            remedy=_RESHAPE,
        )
    return counts.pop()


def _missing(missing: Sequence[str], got: Mapping[str, object], where: str) -> CalibrationError:
    return CalibrationError(
        f"no data for input {'; '.join(missing)}; got {', '.join(sorted(got)) or 'nothing'}",
        where=where,
        remedy="name the arrays as the model's inputs",
    )


def _fit(array: np.ndarray, info: TensorInfo, symbols: dict[str, int], where: str) -> np.ndarray:
    got = f"{array.dtype}[{', '.join(map(str, array.shape))}]"
    if array.dtype.kind not in "biuf":
        raise CalibrationError(
            f"the values for {info.describe()} are not numbers: got {got}", where=where, remedy="give numeric arrays"
        )
    wrong = len(array.shape) != len(info.shape)
    for have, want in zip(array.shape, info.shape, strict=False):
        expected = symbols.setdefault(want, have) if isinstance(want, str) else want
        wrong |= expected is not None and have != expected
    if wrong:
        raise CalibrationError(
            f"expected {info.describe()}, got {got}",
            where=where,
            remedy=_RESHAPE,
        )
    if array.dtype != info.dtype:
        array = _cast(array, info, where)
    if array.dtype.kind == "f" and np.isnan(np.add.reduce(array, axis=None)) and np.isnan(array).any():
        raise CalibrationError(f"input {info.name!r} holds NaN", where=where, remedy="remove or repair this sample")
    return np.ascontiguousarray(array)


def _cast(array: np.ndarray, info: TensorInfo, where: str) -> np.ndarray:
    both_integer = array.dtype.kind in "biu" and info.dtype.kind in "iu"
    if both_integer or (array.dtype.kind == "f" and info.dtype.kind == "f"):
        with np.errstate(over="ignore"):
            cast = array.astype(info.dtype)
        fits = np.array_equal(cast, array) if both_integer else np.isinf(cast).sum() == np.isinf(array).sum()
        if fits:
            return cast
        problem = "its values do not fit"
    else:
        problem = "this is no safe cast"
    raise CalibrationError(
        f"input {info.name!r} wants {info.dtype}, got {array.dtype}: {problem}",
        where=where,
        remedy="preprocess the values as the model expects and give them in its type",
    )
