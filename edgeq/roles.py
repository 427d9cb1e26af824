"""What each input of an operator is to quantization: data, weight, bias, or no number at all."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

__all__ = ["Roles", "channel_axis", "is_float", "is_floating", "roles_of"]


@dataclass(frozen=True, slots=True)
class Roles:
    """Input positions by role; ``data`` None means every float input that has no other role."""

    data: tuple[int, ...] | None = None
    weight: int | None = None
    bias: int | None = None


_ROLES: dict[str, Roles] = {
    "Conv": Roles((0,), 1, 2),
    "ConvTranspose": Roles((0,), 1, 2),
    "Gemm": Roles((0,), 1, 2),
    "MatMul": Roles((0,), 1),
    "Gather": Roles((0,)),
    "LayerNormalization": Roles((0,), 1, 2),
    "InstanceNormalization": Roles((0,), 1, 2),
    "Clip": Roles((0,)),
    "Pad": Roles((0,)),
    "Resize": Roles((0,)),
    "Dropout": Roles((0,)),
}
_DEFAULT = Roles()


def roles_of(op_type: str) -> Roles:
    """The roles of an operator's inputs."""
    return _ROLES.get(op_type, _DEFAULT)


def channel_axis(node: ir.Node, rank: int) -> int | None:
    """The axis of the weight that counts output channels, or None if scales per channel make no sense.

    Conv ``[M, C/g, ...]`` 0; ConvTranspose ``[C, M/g, ...]`` 1; Gemm ``[K, N]`` 1, or 0 with
    ``transB``; MatMul ``[K, N]`` 1. A stack of matrices gets one scale: ONNX Runtime 1.32 fuses one
    per column and then fails while running.
    """
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    if node.op_type == "MatMul" and rank == 2:
        return 1
    return None


def is_float(value: ir.Value | None) -> bool:
    """True for float32 tensors, the only ones that are quantized (an unknown type counts as float)."""
    return value is not None and value.dtype in (None, ir.DataType.FLOAT)


def is_floating(value: ir.Value | None) -> bool:
    """True for tensors of floats of any width (an unknown type counts as float)."""
    return value is not None and (value.dtype is None or value.dtype.is_floating_point())
