"""What stands behind a model."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgeq.interface import Output

__all__ = ["Back"]


@dataclass(frozen=True)
class Back:
    """A piece of graph behind a model, what its outputs mean, and which of the model's outputs they replace."""

    graph: ir.Model
    outputs: tuple[Output, ...]
    replaces: frozenset[str]
