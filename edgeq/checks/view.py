"""How the rules see a QDQ graph: each node with what its Q/DQ neighbours say of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from edgeq.graph import constant_array
from edgeq.target import Capability, TargetProfile

__all__ = ["HEAVY", "PLUMBING", "Parameters", "View", "parameters"]

PLUMBING = frozenset({"QuantizeLinear", "DequantizeLinear"})

HEAVY = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators for which a DequantizeLinear that is not fused costs more than quantizing gains."""

_WEIGHTED: dict[str, tuple[int, int | None, int | None]] = {
    "Conv": (1, 2, 0),
    "ConvTranspose": (1, 2, 1),
    "Gemm": (1, 2, 1),
    "MatMul": (1, None, 1),
    "LayerNormalization": (1, 2, None),
    "InstanceNormalization": (1, 2, None),
    "GroupNormalization": (1, 2, None),
    "RMSNormalization": (1, None, None),
}
"""By operator the positions of weight and bias, and the weight's axis of output channels (ONNX's specification)."""


@dataclass(frozen=True)
class Parameters:
    """Scale, zero point and type of one Q or DQ node; ``stored`` are the integers where they are a constant."""

    node: ir.Node
    dtype: str
    scale: np.ndarray
    zero: np.ndarray
    stored: np.ndarray | None

    @property
    def bits(self) -> int:
        return int(self.dtype.lstrip("uint"))

    @property
    def signed(self) -> bool:
        return not self.dtype.startswith("u")

    @property
    def lowest(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def middle(self) -> int:
        return 0 if self.signed else 1 << (self.bits - 1)

    @property
    def block(self) -> int:
        return self.node.attributes.get_int("block_size", 0)

    @property
    def axis(self) -> int:
        axis = self.node.attributes.get_int("axis", 1)
        rank = self.stored.ndim if self.stored is not None else 0
        return axis + rank if axis < 0 else axis

    @property
    def per_channel(self) -> bool:
        return self.scale.size > 1 and not self.block

    @property
    def symmetric(self) -> bool:
        return bool((self.zero == self.middle).all())

    def same_as(self, other: Parameters) -> bool:
        """Whether both stand for the same grid."""
        return (
            self.dtype == other.dtype
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero, other.zero)
        )


def parameters(node: ir.Node) -> Parameters | None:
    """What a Q or DQ node says; None where its scale or type is not known before it runs."""
    scale = constant_array(node.inputs[1])
    stored = constant_array(node.inputs[0]) if node.op_type == "DequantizeLinear" else None
    zero = constant_array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    typed = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    if zero is not None:
        dtype = ir.DataType.from_numpy(zero.dtype)
    elif typed is not None and typed.dtype is not None:
        dtype = typed.dtype
    else:
        dtype = ir.DataType.UINT8
    if scale is None:
        return None
    values = np.zeros(scale.shape, np.int64) if zero is None else zero.astype(np.int64)
    return Parameters(node, dtype.name.lower(), scale.astype(np.float64), values, stored)


class View:
    """One QDQ model and the profile that it is judged by."""

    def __init__(self, model: ir.Model, profile: TargetProfile) -> None:
        self.model = model
        self.profile = profile
        self.nodes = list(model.graph)

    @cached_property
    def pairs(self) -> dict[ir.Node, Parameters]:
        """The parameters of every Q and DQ that are known."""
        found = ((node, parameters(node)) for node in self.nodes if node.op_type in PLUMBING)
        return {node: known for node, known in found if known is not None}

    @property
    def computing(self) -> Iterator[ir.Node]:
        """Every node that is neither Q nor DQ nor a constant."""
        return (node for node in self.nodes if node.op_type not in PLUMBING and node.op_type != "Constant")

    def dequantized(self, node: ir.Node, position: int) -> Parameters | None:
        """What the DequantizeLinear in front of an input says; None if there is none."""
        value = node.inputs[position] if position < len(node.inputs) else None
        producer = None if value is None else value.producer()
        return None if producer is None or producer.op_type != "DequantizeLinear" else self.pairs.get(producer)

    def activations(self, node: ir.Node) -> list[Parameters]:
        """The quantized inputs of ``node`` that are computed."""
        found = (self.dequantized(node, position) for position in range(len(node.inputs)))
        return [known for known in found if known is not None and known.stored is None]

    def weight(self, node: ir.Node) -> Parameters | None:
        """The quantized constant in the weight's place."""
        known = self.dequantized(node, _WEIGHTED[node.op_type][0]) if node.op_type in _WEIGHTED else None
        return known if known is not None and known.stored is not None else None

    def bias_value(self, node: ir.Node) -> ir.Value | None:
        """The bias of ``node``, if it has one."""
        position = _WEIGHTED.get(node.op_type, (0, None, None))[1]
        return node.inputs[position] if position is not None and position < len(node.inputs) else None

    def bias(self, node: ir.Node) -> Parameters | None:
        """The quantized bias of ``node``."""
        position = _WEIGHTED.get(node.op_type, (0, None, None))[1]
        return None if position is None else self.dequantized(node, position)

    def output_axis(self, node: ir.Node, rank: int) -> int | None:
        """The axis of the weight that counts output channels."""
        axis = _WEIGHTED[node.op_type][2]
        if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1:
            return 0
        return rank - 1 if node.op_type == "MatMul" else axis

    def quantizers(self, value: ir.Value) -> list[Parameters]:
        """The QuantizeLinear nodes that read ``value``."""
        readers = (user for user, _ in value.uses() if user.op_type == "QuantizeLinear")
        return [self.pairs[reader] for reader in readers if reader in self.pairs]

    def is_integer(self, node: ir.Node) -> bool:
        """Whether ``node`` reads quantized activations."""
        return bool(self.activations(node))

    def allowed(self, node: ir.Node) -> list[Capability]:
        """The capabilities that let ``node`` read what it reads."""
        read = self.activations(node)
        listed = self.profile.capabilities(node.op_type)
        if read:
            bits = min(known.bits for known in read)
            kinds = ("compute", "elementwise", "moves-data")
            return [c for c in listed if c.kind in kinds and bits in c.activation_bits]
        return [c for c in listed if c.kind in ("weight-only", "table")]
