"""Give dynamic dimensions of the inputs their sizes, and check that nothing dynamic is left."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgeq.errors import ModelError
from edgeq.graph import named_sizes, real_inputs

__all__ = ["check_static", "fit_inputs", "fix_shapes"]


def fix_shapes(
    model: ir.Model, *, static: bool, fixed_dims: Mapping[str, int], example_inputs: Mapping[str, np.ndarray]
) -> bool:
    """Fix dimensions in place; true if any was.

    ``fixed_dims`` names a dimension (``"batch"``), one axis of an input (``"input_ids:1"``), or an
    input with a single dynamic dimension. With ``static``, every other dynamic dimension takes its
    size from ``example_inputs``. Shapes that were not static are forgotten, to be inferred again.

    Raises:
        ConfigError: a key of ``fixed_dims`` names nothing, or a size is not a positive integer.
        ModelError: two sizes for one dimension, or an example input is missing or of another rank.
    """
    sizes = named_sizes(model, fixed_dims)
    by_name: dict[str, tuple[int, str]] = {}
    modified = False
    for value in real_inputs(model):
        dims = list(value.shape or ())
        for axis, dim in enumerate(dims):
            if isinstance(dim, int):
                continue
            place = f"{value.name}:{axis}"
            size = sizes.get(place)
            if size is None and static:
                size = _example_size(value, axis, example_inputs)
            if size is None:
                continue
            if dim.value is not None:
                known, where = by_name.setdefault(dim.value, (size, place))
                if known != size:
                    raise ModelError(
                        f"dimension {dim.value!r} would be {known} in {where} and {size} in {place}",
                        remedy="give one size to each dimension, or example inputs that agree",
                    )
            dims[axis] = size
            modified = True
        if value.shape is not None:
            value.shape = ir.Shape(dims)
    if modified:
        _forget_dynamic_shapes(model, {name: size for name, (size, _) in by_name.items()})
    return modified


def fit_inputs(model: ir.Model, example_inputs: Mapping[str, np.ndarray], longer: int = 0) -> dict[str, np.ndarray]:
    """The examples in the shape that the inputs have now: repeated or cut along each fixed axis.

    Along a dynamic axis they keep their size, plus ``longer``.
    """
    fitted = dict(example_inputs)
    for value in real_inputs(model):
        array = fitted.get(str(value.name))
        if array is None or value.shape is None or array.ndim != len(value.shape):
            continue
        for axis, dim in enumerate(value.shape):
            size = array.shape[axis]
            wanted = dim if isinstance(dim, int) else size + longer
            if size not in (wanted, 0):
                array = np.take(array, np.arange(wanted) % size, axis=axis)
        fitted[str(value.name)] = array
    return fitted


def check_static(model: ir.Model) -> None:
    """Raises ModelError naming the tensors of the main graph that have no static shape."""
    left = []
    for node in model.graph:
        for output in node.outputs:
            tensor = output.type is None or isinstance(output.type, ir.TensorType)
            if output.name and tensor and (output.shape is None or not output.shape.is_static()):
                shape = "unknown" if output.shape is None else str(output.shape)
                left.append(f"{output.name} ({node.op_type}, shape {shape})")
    if left:
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        raise ModelError(
            f"the target needs static shapes, but {len(left)} tensors stay dynamic: {', '.join(left[:3])}{more}",
            where=left[0],
            remedy="fix more dimensions, or export the model without operators whose output size depends on the data",
        )


def _example_size(value: ir.Value, axis: int, example_inputs: Mapping[str, np.ndarray]) -> int:
    array = example_inputs.get(str(value.name))
    if array is None or array.ndim != len(value.shape or ()):
        found = "there is none" if array is None else f"it has shape {list(array.shape)}"
        raise ModelError(
            f"the size of {value.name}:{axis} is to come from the example input, but {found}",
            where=f"input {value.name}: {value.shape}",
            remedy="give an example of that input, or fix the dimension by name",
        )
    return int(array.shape[axis])


def _forget_dynamic_shapes(model: ir.Model, sizes: Mapping[str, int]) -> None:
    outputs = set(model.graph.outputs)
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.shape is None or value.shape.is_static():
                continue
            if value in outputs:
                value.shape = ir.Shape([d if isinstance(d, int) else sizes.get(d.value or "", d) for d in value.shape])
            else:
                value.shape = None
