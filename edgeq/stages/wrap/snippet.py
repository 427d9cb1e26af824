"""A piece of graph from its text: ONNX's own syntax, with constants by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir

__all__ = ["Lines", "parse_snippet"]


class Lines:
    """Nodes of a piece of graph as they are written down, with their constants; names begin with ``prefix/``."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.lines: list[str] = []
        self.constants: dict[str, np.ndarray] = {}

    def add(self, name: str, call: str, constants: Mapping[str, Any] = MappingProxyType({})) -> str:
        """One node, and the constants that it reads as ``$key``; returns the quoted name of its output."""
        output = f"{self.prefix}/{name}"
        for key, array in constants.items():
            self.constants[f"{output}/{key}"] = np.asarray(array)
            call = call.replace(f"${key}", f'"{output}/{key}"')
        self.lines.append(f'"{output}" = {call}')
        return f'"{output}"'

    @property
    def text(self) -> str:
        """All nodes in ONNX's syntax."""
        return "\n".join(self.lines)


def parse_snippet(text: str, constants: Mapping[str, np.ndarray], opset: int) -> ir.Model:
    """``"(uint8[n, 4] x) => (float[n, 4] y) { f = Cast<to = 1>(x) y = Mul(f, two) }"`` with ``two`` a constant.

    Types and shapes of all tensors are inferred; nodes are named after their first output.
    """
    import onnx
    from onnx import numpy_helper, parser

    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> snippet {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items())
    for node in proto.graph.node:
        node.name = node.output[0]
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True))
