"""Give convolutions whole groups of four input channels, where a provider computes groups of three wrongly."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.graph import Names, constant_array, set_initializer

__all__ = ["pad_channels"]


def pad_channels(model: ir.Model, names: Names) -> None:
    """Pad input and weight of each ungrouped Conv with channels of zeros, in place, where its kernel is wrong.

    ONNX Runtime's WebGPU kernel reads three channels at a time if their number is a multiple of 3 and the
    number of outputs one of 4. For a picture's three that is right; for 6, 9, 33 or 129 the result is
    noise (measured, versions 1.27 and onnxruntime-web 1.30; a 1 x 1 kernel without stride takes another path).
    """
    for node in [n for n in model.graph if n.op_type == "Conv" and n.domain in ("", "ai.onnx")]:
        weight = constant_array(node.inputs[1])
        if weight is None or not _is_wrong(node, weight.shape):
            continue
        more = -weight.shape[1] % 4
        value, matrix, rank = node.inputs[0], node.inputs[1], weight.ndim
        assert value is not None
        assert matrix is not None
        pads = np.zeros(2 * rank, np.int64)
        pads[rank + 1] = more
        ends = set_initializer(model, names.fresh(f"{node.name}_channel_pads"), pads)
        padding = ir.node("Pad", [value, ends], name=names.fresh(f"{node.name}_channels"))
        padded = padding.outputs[0]
        padded.name, padded.type = names.fresh(f"{value.name}_padded"), value.type
        if value.shape is not None:
            padded.shape = ir.Shape([weight.shape[1] + more if i == 1 else d for i, d in enumerate(value.shape)])
        wide = np.pad(weight, [(0, more if axis == 1 else 0) for axis in range(rank)])
        model.graph.insert_before(node, padding)
        node.replace_input_with(0, padded)
        node.replace_input_with(1, set_initializer(model, names.fresh(f"{matrix.name}_padded"), wide))


def _is_wrong(node: ir.Node, shape: tuple[int, ...]) -> bool:
    if node.attributes.get_int("group", 1) != 1:
        return False
    outputs, channels, *kernel = shape
    pointwise = all(k == 1 for k in kernel) and all(s == 1 for s in node.attributes.get_ints("strides", [1]))
    return channels % 3 == 0 and channels % 4 != 0 and channels != 3 and outputs % 4 == 0 and not pointwise
