"""Small models for the tests of this folder."""

from __future__ import annotations

import onnx.parser
import onnx_ir as ir

from edgeq import graph

CONV = """
<ir_version: 9, opset_import: ["" : 17]>
g (float[{batch},3,8,8] image) => (float[{batch},4,8,8] out)
<float[4,3,1,1] w = {{1,-1,0.5, 2,0,0, 0,-3,1, 0.25,0.25,0.25}}>
{{
    conv = Conv(image, w)
    relu = Relu(conv)
    out = Sigmoid(relu)
}}
"""


def parse(text: str) -> ir.Model:
    model = ir.from_proto(onnx.parser.parse_model(text))
    graph.name_nodes(model)
    return model
