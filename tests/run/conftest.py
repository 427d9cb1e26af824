"""Small models, float and QDQ, written out so that a test says what it means."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeq.graph import name_nodes


class Builder:
    """Collects nodes and initializers; ``q``/``dq`` write one QuantizeLinear or DequantizeLinear."""

    def __init__(self) -> None:
        self.nodes: list = []
        self.initializers: list = []
        self.rng = np.random.default_rng(0)

    def const(self, name: str, array: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def add(self, op: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], output, **attributes))
        return output

    def qdq(self, x: str, scale: float = 0.02, zero: int = 128, dtype: type = np.uint8) -> str:
        s, z = self.const(f"{x}_s", np.float32(scale)), self.const(f"{x}_z", dtype(zero))
        self.add("QuantizeLinear", [x, s, z], f"{x}_q")
        return self.add("DequantizeLinear", [f"{x}_q", s, z], f"{x}_dq")

    def weight(self, name: str, shape: tuple[int, ...], scale: float = 0.01) -> str:
        values = self.rng.integers(-100, 100, shape).astype(np.int8)
        inputs = [self.const(f"{name}_q", values), self.const(f"{name}_s", np.float32(scale))]
        return self.add("DequantizeLinear", [*inputs, self.const(f"{name}_z", np.int8(0))], name)

    def bias(self, name: str, size: int, scale: float) -> str:
        values = self.rng.integers(-100, 100, size).astype(np.int32)
        inputs = [self.const(f"{name}_q", values), self.const(f"{name}_s", np.float32(scale))]
        return self.add("DequantizeLinear", [*inputs, self.const(f"{name}_z", np.int32(0))], name)

    def model(self, x: tuple[int, ...], outputs: dict[str, tuple[int, ...]], opset: int = 21) -> ir.Model:
        values = [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in outputs.items()]
        graph = helper.make_graph(
            self.nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)], values, self.initializers
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        model = ir.from_proto(proto)
        name_nodes(model)
        return model


@pytest.fixture
def build() -> Builder:
    return Builder()


@pytest.fixture
def conv_relu(build: Builder):
    """Makes Conv -> Relu -> Q/DQ -> Conv -> Q/DQ with a chosen type and zero point behind the Relu."""

    def make(dtype: type = np.uint8, zero: int = 0, bias_scale: float = 0.0002) -> ir.Model:
        middle = 128 if dtype is np.uint8 else 0
        x = build.qdq("x", zero=middle, dtype=dtype)
        w1, w2 = build.weight("w1", (4, 3, 3, 3)), build.weight("w2", (4, 4, 3, 3))
        build.add("Conv", [x, w1, build.bias("b1", 4, bias_scale)], "conv1")
        relu = build.qdq(build.add("Relu", ["conv1"], "relu1"), zero=zero, dtype=dtype)
        build.add("Conv", [relu, w2], "conv2")
        return build.model((1, 3, 8, 8), {build.qdq("conv2", zero=middle, dtype=dtype): (1, 4, 4, 4)})

    return make
