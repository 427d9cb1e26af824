"""The table of operators: what a node hands to its function, and how a function is registered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch

from edgeq.torch_graph.dtypes import to_torch

__all__ = ["OPERATORS", "Call", "Check", "Operator", "axes_of", "axis_of", "integers", "operator"]


@dataclass(frozen=True)
class Call:
    """All that a node says besides its inputs.

    ``opset`` is the version of the operator's domain; ``types`` are the ONNX types of the inputs, None where
    unknown; ``outputs`` tells for each output whether anybody may read it.
    """

    op_type: str
    attributes: Mapping[str, Any]
    opset: int
    types: tuple[ir.DataType | None, ...] = ()
    outputs: tuple[bool, ...] = (True,)

    def has(self, name: str) -> bool:
        return name in self.attributes

    def integer(self, name: str, default: int) -> int:
        return int(self.attributes.get(name, default))

    def number(self, name: str, default: float) -> float:
        return float(self.attributes.get(name, default))

    def text(self, name: str, default: str) -> str:
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def integers(self, name: str, default: list[int] | None = None) -> list[int]:
        return [int(v) for v in self.attributes.get(name, default or [])]

    def tensor(self, name: str) -> torch.Tensor | None:
        value = self.attributes.get(name)
        return None if value is None else to_torch(value)


Function = Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]
"""``(call, *inputs)`` -> the first output or all of them; an omitted optional input is None."""

Check = Callable[[Call], str | None]
"""Why a function cannot compute what a node asks for, or None."""


@dataclass(frozen=True)
class Operator:
    """How to compute one operator.

    ``host`` holds the positions of inputs that steer the computation (shapes, axes, ...): they stay on the CPU
    where they are there.
    """

    function: Function
    check: Check | None = None
    host: tuple[int, ...] = ()


OPERATORS: dict[tuple[str, str], Operator] = {}
"""By domain (``""`` is ONNX's own) and operator type."""


def operator(
    *names: str, check: Check | None = None, host: tuple[int, ...] = (), domain: str = ""
) -> Callable[[Function], Function]:
    """Register a function for one or more operators of ``domain``."""

    def register(function: Function) -> Function:
        for name in names:
            OPERATORS[domain, name] = Operator(function, check, host)
        return function

    return register


def integers(tensor: torch.Tensor) -> list[int]:
    """The elements of a tensor that holds a shape, axes or the like."""
    return [int(v) for v in tensor.reshape(-1).tolist()]


def axis_of(axis: int, rank: int) -> int:
    """``axis`` counted from the front; raises IndexError when there is none such."""
    if not -rank <= axis < max(rank, 1):
        raise IndexError(f"axis {axis} of a tensor of rank {rank}")
    return axis % rank if rank else 0


def axes_of(call: Call, given: torch.Tensor | None) -> list[int] | None:
    """Axes from an input (newer opsets) or from the attribute of that name (older); None when neither is there."""
    if given is not None:
        return integers(given)
    return call.integers("axes") if call.has("axes") else None
