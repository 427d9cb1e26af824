"""Inputs for a model of which only the interface is known: types, shapes, names."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgeq import graph
from edgeq.errors import ExportError
from edgeq.graph import TensorInfo

__all__ = ["check_inputs", "make_inputs"]

DYNAMIC_SIZE = 16
IMAGE_SIDE = 224


def make_inputs(model: ir.Model, *, seed: int = 0) -> dict[str, np.ndarray]:
    """One batch by input name, the same for the same model.

    A dynamic first axis becomes 1, the sides of an image 224, other dynamic axes 16. Floats are
    standard normal. Masks are ones and positions count up; integers that index a table (an
    embedding) are drawn from its rows, others are zeros. Booleans are true, strings are empty.

    Raises:
        ModelError: an input has no type or shape.
    """
    rng = np.random.default_rng(seed)
    values = {str(value.name): value for value in graph.real_inputs(model)}
    return {info.name: _make(info, values[info.name], rng) for info in graph.input_infos(model)}


def _make(info: TensorInfo, value: ir.Value, rng: np.random.Generator) -> np.ndarray:
    shape = tuple(_size(info, axis) for axis in range(len(info.shape)))
    name = info.name.lower()
    if info.dtype == bool or "mask" in name:
        return np.ones(shape, info.dtype)
    if info.dtype.kind in "OSU":
        return np.full(shape, "", dtype=object)
    if info.dtype.kind not in "iu":
        return rng.standard_normal(shape).astype(info.dtype)
    rows = _table_rows(value)
    if shape and ("position" in name or name == "pos_ids"):
        count = min(shape[-1], rows or shape[-1])
        return np.broadcast_to(np.arange(shape[-1]) % count, shape).astype(info.dtype)
    if "token_type" in name or "segment" in name or rows is None:
        return np.zeros(shape, info.dtype)
    return rng.integers(0, rows, shape).astype(info.dtype)


def _size(info: TensorInfo, axis: int) -> int:
    size = info.shape[axis]
    if isinstance(size, int):
        return size
    if axis == 0 or (size is not None and "batch" in size.lower()):
        return 1
    is_image = len(info.shape) == 4 and info.dtype.kind == "f" and ({info.shape[1], info.shape[3]} & {1, 3, 4})
    return IMAGE_SIDE if is_image else DYNAMIC_SIZE


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


def check_inputs(model: ir.Model, given: Mapping[str, object], *, where: str) -> dict[str, np.ndarray]:
    """``given`` in the order of the model's inputs; raises ExportError where names, types or shapes do not fit."""
    infos = graph.input_infos(model)
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
