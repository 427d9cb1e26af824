"""A piece of graph from its text: ONNX's own syntax, with constants by name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

__all__ = ["parse_snippet"]


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
