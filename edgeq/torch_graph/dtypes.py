"""Element types and tensors, from ONNX to torch."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

__all__ = ["INTEGER_RANGES", "STORAGE", "to_torch"]

_T = ir.DataType

STORAGE: dict[ir.DataType, torch.dtype] = {
    _T.FLOAT: torch.float32,
    _T.DOUBLE: torch.float64,
    _T.FLOAT16: torch.float16,
    _T.BFLOAT16: torch.bfloat16,
    _T.BOOL: torch.bool,
    _T.INT2: torch.int8,
    _T.INT4: torch.int8,
    _T.INT8: torch.int8,
    _T.INT16: torch.int16,
    _T.INT32: torch.int32,
    _T.INT64: torch.int64,
    _T.UINT2: torch.uint8,
    _T.UINT4: torch.uint8,
    _T.UINT8: torch.uint8,
    _T.UINT16: torch.int32,
    _T.UINT32: torch.int64,
    _T.UINT64: torch.int64,
}
"""The torch type that holds a tensor of an ONNX type: torch computes little in uint16 and wider, and in 4 bits."""

INTEGER_RANGES: dict[ir.DataType, tuple[int, int]] = {
    _T.INT2: (-2, 1),
    _T.INT4: (-8, 7),
    _T.INT8: (-128, 127),
    _T.INT16: (-(1 << 15), (1 << 15) - 1),
    _T.INT32: (-(1 << 31), (1 << 31) - 1),
    _T.UINT2: (0, 3),
    _T.UINT4: (0, 15),
    _T.UINT8: (0, 255),
    _T.UINT16: (0, (1 << 16) - 1),
    _T.UINT32: (0, (1 << 32) - 1),
}
"""Lowest and highest value."""


def to_torch(tensor: ir.TensorProtocol) -> torch.Tensor:
    """A copy of an ONNX tensor on the CPU, in the type that ``STORAGE`` names.

    Raises:
        KeyError: no torch type holds the tensor's (strings, 8-bit floats, complex numbers).
    """
    storage = STORAGE[tensor.dtype]
    array = tensor.numpy()
    if storage is torch.bfloat16:
        return torch.from_numpy(array.astype(np.float32)).to(storage)  # exact: bfloat16 is cut from float32
    wide = array.astype(np.int64) if tensor.dtype in (_T.UINT16, _T.UINT32, _T.UINT64) else array
    if tensor.dtype in (_T.INT2, _T.INT4, _T.UINT2, _T.UINT4):
        wide = array.astype(np.int8 if tensor.dtype in (_T.INT2, _T.INT4) else np.uint8)
    return torch.from_numpy(np.array(wide, order="C")).to(storage)
