"""Which weights a kernel without VNNI or AMX adds to one another in 16 bits: x86-64's ``vpmaddubsw``."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

__all__ = ["multiplied_rows"]


def multiplied_rows(node: ir.Node, weight: np.ndarray) -> np.ndarray | None:
    """``[rows, K]``: the weights in the order in which a kernel multiplies them, a row for each output channel.

    Kernels see a Conv as a product over kernel positions and, fastest, input channels. None where each
    product is widened before it is added (depthwise Conv), or where nothing is known. Measured with
    ONNX Runtime 1.32 on an emulated Haswell: neighbours at 2j and 2j + 1 saturate, others do not.
    """
    if node.op_type == "Conv":
        depthwise = weight.shape[1] == 1 and node.attributes.get_int("group", 1) == weight.shape[0]
        return None if depthwise else np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
    if node.op_type == "Gemm":
        return weight if node.attributes.get_int("transB", 0) else weight.T
    if node.op_type == "MatMul":
        return np.moveaxis(weight, -2, -1).reshape(-1, weight.shape[-2])
    return None
