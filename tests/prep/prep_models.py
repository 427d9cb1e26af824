"""Small models as text, and the check that every pass test makes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper, parser

from edgeq.graph import name_nodes, to_bytes
from edgeq.runtime import run_model
from edgeq.stages.prep.infer_shapes import InferShapes
from edgeq.stages.prep.rewrite import PrepPass

RNG = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return RNG.uniform(0.5, 2.0, size=shape).astype(np.float32)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def scalar(number: float) -> np.ndarray:
    return np.array(number, np.float32)


def build(signature: str, body: str, opset: int = 21, **constants: np.ndarray) -> ir.Model:
    """``signature`` such as ``float[1,4] x => float[n] y``; ``body`` in ONNX text; shapes inferred."""
    inputs, outputs = signature.split("=>")
    text = f'<ir_version: 10, opset_import: ["": {opset}]> g ({inputs.strip()}) => ({outputs.strip()}) {{ {body} }}'
    proto = parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    model = ir.from_proto(proto)
    name_nodes(model)
    InferShapes()(model)
    return model


def ops(model: ir.Model) -> dict[str, int]:
    return dict(Counter(node.op_type for node in model.graph))


def example(model: ir.Model, **sizes: int) -> dict[str, np.ndarray]:
    """Normal floats, small integers and coin flips in the shape of each input; 2 for a dynamic dimension."""
    feeds = {}
    for value in model.graph.inputs:
        shape = tuple(d if isinstance(d, int) else sizes.get(d.value or "", 2) for d in value.shape or ())
        dtype = value.dtype.numpy()
        if dtype.kind == "f":
            feeds[value.name] = RNG.normal(size=shape).astype(dtype)
        else:
            feeds[value.name] = RNG.integers(0, 2, size=shape).astype(dtype)
    return feeds


def apply(step: PrepPass, model: ir.Model, feeds: Mapping[str, np.ndarray] | None = None) -> bool:
    """Run ``step`` and check all that holds for every pass; returns whether it changed the model.

    Outputs stay (to the bit, or to 1e-5), the result is valid ONNX, ``modified`` is the truth, and
    a second run finds nothing.
    """
    feeds = feeds if feeds is not None else example(model)
    expected = run_model(model, feeds, config={"session.disable_prepacking": "1"})
    before = to_bytes(model)
    modified = step(model).modified
    assert modified == (to_bytes(model) != before), "modified must be the truth"
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    found = run_model(model, feeds, config={"session.disable_prepacking": "1"})
    for name, array in expected.items():
        if step.effect == "reorders":
            np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5)
        else:
            np.testing.assert_array_equal(found[name], array)
    after = to_bytes(model)
    assert not step(model).modified, "a second run must find nothing"
    assert to_bytes(model) == after
    return modified
