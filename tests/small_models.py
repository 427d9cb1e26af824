"""Small float models written as text, and the chain of stages from one of them to a QDQ model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from edgeq.graph import input_infos, name_nodes
from edgeq.qtypes import NodeFormat, QuantPlan, Scheme, TensorStats
from edgeq.runtime import run_model
from edgeq.stages.calibrate import calibrate, load_feed
from edgeq.stages.choose import Layout, choose_plan, find_layout
from edgeq.stages.insert import insert_qdq, verify_qdq
from edgeq.stages.tune import finish, shape_float
from edgeq.target import TargetProfile, load_target


def parse(text: str, opset: int = 21, **constants: np.ndarray) -> ir.Model:
    """``"g (float[1,3,8,8] x) => (float[1,4,8,8] y) { y = Conv(x, w) }"`` with ``w`` among the constants.

    Nodes are named after their first output.
    """
    header = f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1, "toy" : 1]>'
    proto = onnx.parser.parse_model(f"{header} {text}")
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items())
    for node in proto.graph.node:
        node.name = node.output[0]
    for output in proto.graph.output:
        if not output.type.tensor_type.shape.dim:
            output.type.tensor_type.ClearField("shape")  # "float y": let it be inferred
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))
    name_nodes(model)
    return model


def weights(*shape: int, seed: int = 0, scale: float = 0.2) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def samples(model: ir.Model, count: int = 4, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Normal noise for float inputs, small non-negative numbers for integer ones, True and False for booleans."""
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(count):
        sample = {}
        for info in input_infos(model):
            shape = tuple(d if isinstance(d, int) else 2 for d in info.shape)
            if info.dtype.kind == "f":
                sample[info.name] = rng.standard_normal(shape).astype(info.dtype)
            else:
                sample[info.name] = rng.integers(0, 2, shape).astype(info.dtype)
        drawn.append(sample)
    return drawn


@dataclass(frozen=True)
class Chain:
    """What each stage made of one float model."""

    target: TargetProfile
    shaped: ir.Model
    layout: Layout
    stats: dict[str, TensorStats]
    plan: QuantPlan
    model: ir.Model
    feed: list[dict[str, np.ndarray]]

    def run(self, sample: dict[str, np.ndarray], optimization: str = "none") -> dict[str, np.ndarray]:
        return run_model(self.model, sample, optimization=optimization, config=self.target.provider.session)


def quantized(
    model: ir.Model,
    target: str | TargetProfile = "linux-x64",
    scheme: str = "w8a8",
    *,
    feed: Sequence[dict[str, np.ndarray]] | None = None,
    range_method: str = "mse",
    bias_correction: bool = True,
    formats: Mapping[str, str] | None = None,
) -> Chain:
    """The stages from shaping to finishing, as the pipeline runs them; ``formats`` by name of node, such as "w8a16"."""
    profile = load_target(target) if isinstance(target, str) else target
    parsed = Scheme.parse(scheme)
    drawn = list(feed) if feed is not None else samples(model)
    shaped = shape_float(model, profile, parsed)
    own = {name: NodeFormat.parse(text) for name, text in (formats or {}).items()}
    layout = find_layout(shaped, profile, parsed, formats=own)
    stats = {}
    if layout.observed:
        data = load_feed(drawn, input_infos(model))
        stats = calibrate(shaped, data, layout.observed, channel_axis=layout.channel_axes(shaped))
    plan = choose_plan(shaped, layout, stats, profile, range_method=range_method, bias_correction=bias_correction)
    result = finish(insert_qdq(shaped, plan), profile, parsed)
    verify_qdq(result)
    return Chain(profile, shaped, layout, stats, plan, result, drawn)
