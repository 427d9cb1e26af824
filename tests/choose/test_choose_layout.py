"""Which nodes run in integers, which tensors are quantized for it, and why the others are not."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from small_models import parse, weights

from edgeq.qtypes import Scheme
from edgeq.stages.choose import Layout, find_layout, forecast_nodes
from edgeq.target import TargetProfile, load_target

IMAGE = "float[1,3,8,8] x"
CONV = "Conv<pads=[1,1,1,1]>"


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


CONSTANTS = {
    "w": weights(8, 3, 3, 3),
    "w2": weights(8, 8, 3, 3),
    "m": weights(8, 8),
    "bias": weights(8),
    "row": weights(1, 8),
    "table": weights(1000, 32),
    "little": weights(10, 32),
    "ten": weights(8, 10),
    "p": weights(32, 8),
    "stack": weights(2, 4, 4),
    "gain": np.ones(8, np.float32),
    "zero": np.float32(0),
    "one": np.float32(1),
    "six": np.float32(6),
    "minus": np.float32(-1),
    "flat": ints(1, 8, 64),
    "full": ints(1, 8, 8, 8),
    "halves": ints(4, 4),
    "mat": ints(8, 64),
}


@dataclass(frozen=True)
class Case:
    """``float`` maps each node that stays float to a part of its reason; all others must be integer or fused."""

    name: str
    text: str
    float: dict[str, str] = field(default_factory=dict)
    absorbed: dict[str, str] = field(default_factory=dict)
    activations: dict[str, tuple[str, ...]] | None = None
    owner: dict[str, str] = field(default_factory=dict)
    target: str = "linux-x64"
    scheme: str = "w8a8"
    symmetric: bool = False


CASES = [
    Case(
        "a convolution between floats needs a Q on both sides",
        f"g ({IMAGE}) => (float y) {{ a = {CONV}(x, w) y = Tanh(a) }}",
        float={"y": "has no integer kernel for Tanh in w8a8"},
        activations={"x": ("a",), "a": ("y",)},
    ),
    Case(
        "conv-clip",
        f"g ({IMAGE}) => (float y) {{ a = {CONV}(x, w) b = Clip(a, zero, six) y = {CONV}(b, w2) }}",
        absorbed={"b": "a"},
        activations={"x": ("a",), "b": ("y",), "y": ()},
    ),
    Case(
        "conv-relu at the graph's end",
        f"g ({IMAGE}) => (float y) {{ a = {CONV}(x, w) y = Relu(a) }}",
        absorbed={"y": "a"},
        activations={"x": ("a",), "y": ()},
    ),
    Case(
        "a symmetric target absorbs nothing",
        f"g ({IMAGE}) => (float y) {{ a = {CONV}(x, w) b = Relu(a) y = {CONV}(b, w2) }}",
        float={"b": "has no integer kernel for Relu"},
        activations={"x": ("a",), "a": ("b",), "b": ("y",), "y": ()},
        symmetric=True,
    ),
    Case(
        "bounds that do not hold zero are not absorbed",
        f"g ({IMAGE}) => (float y) {{ a = {CONV}(x, w) b = Clip(a, one, six) y = {CONV}(b, w2) }}",
        float={"b": "has no integer kernel for Clip"},
    ),
    Case(
        "bounds around zero are absorbed",
        f"g ({IMAGE}) => (float y) {{ a = {CONV}(x, w) b = Clip(a, minus, one) y = {CONV}(b, w2) }}",
        absorbed={"b": "a"},
    ),
    Case(
        "a clip without bounds is absorbed",
        f"g ({IMAGE}) => (float y) {{ a = {CONV}(x, w) b = Clip(a) y = {CONV}(b, w2) }}",
        absorbed={"b": "a"},
    ),
    Case(
        "bounds from an input are not absorbed",
        f"g ({IMAGE}, float top) => (float y) {{ a = {CONV}(x, w) b = Clip(a, zero, top) y = {CONV}(b, w2) }}",
        float={"b": "has no integer kernel for Clip"},
    ),
    Case(
        "a convolution with a second reader keeps its Relu",
        f"g ({IMAGE}) => (float y) {{ a = {CONV}(x, w) b = Relu(a) c = {CONV}(a, w2) y = Add(b, c) }}",
        float={"b": "has no integer kernel for Relu", "y": "is computed in float"},
    ),
    Case(
        "a convolution that is an output keeps its Relu",
        f"g ({IMAGE}) => (float a, float y) {{ a = {CONV}(x, w) b = Relu(a) y = {CONV}(b, w2) }}",
        float={"b": "has no integer kernel for Relu"},
    ),
    Case(
        "the output of a product with Relu is quantized, or nothing would fuse",
        "g (float[1,4,8] x) => (float y) { a = MatMul(x, m) b = Relu(a) y = Tanh(b) }",
        float={"y": "no integer kernel for Tanh"},
        absorbed={"b": "a"},
        activations={"x": ("a",), "b": ("y",)},
    ),
    Case(
        "a product alone keeps a float output",
        "g (float[1,4,8] x) => (float y) { a = MatMul(x, m) y = Tanh(a) }",
        float={"y": "no integer kernel for Tanh"},
        activations={"x": ("a",)},
    ),
    Case(
        "a residual Add between convolutions",
        f"g ({IMAGE}) => (float y) {{ a = {CONV}(x, w) b = {CONV}(a, w2) c = Add(a, b) y = {CONV}(c, w2) }}",
        activations={"x": ("a",), "a": ("b", "c"), "b": ("c",), "c": ("y",), "y": ()},
    ),
    Case(
        "a residual Add with Relu",
        f"""g ({IMAGE}) => (float y) {{
            a = {CONV}(x, w) b = {CONV}(a, w2) c = Add(a, b) d = Relu(c) y = {CONV}(d, w2) }}""",
        absorbed={"d": "c"},
    ),
    Case(
        "an Add before LayerNormalization, with its Relu, too",
        """g (float[1,4,8] x) => (float y) {
            a = MatMul(x, m) b = MatMul(a, m) c = Add(a, b) d = Relu(c) y = LayerNormalization(d, gain) }""",
        float={
            "c": "no integer kernel reads its output",
            "d": "no integer kernel reads its output",
            "y": "has no integer kernel for LayerNormalization",
        },
    ),
    Case(
        "an Add that reads a float",
        f"g ({IMAGE}) => (float y) {{ a = {CONV}(x, w) t = Tanh(a) b = Add(a, t) y = {CONV}(b, w2) }}",
        float={"t": "Tanh", "b": "is computed in float, so integers would only add conversions"},
    ),
    Case(
        "an Add of a model input",
        "g (float[1,8,8,8] x) => (float y) { b = Add(x, one) y = Conv<pads=[1,1,1,1]>(b, w2) }",
        float={"b": "is computed in float"},
    ),
    Case(
        "a chain of elementwise nodes falls as a whole",
        f"""g ({IMAGE}) => (float y) {{
            a = {CONV}(x, w) b = Sigmoid(a) c = Mul(a, b) d = LeakyRelu(c) y = Tanh(d) }}""",
        float={
            "b": "no integer kernel reads its output",
            "c": "no integer kernel reads its output",
            "d": "no integer kernel reads its output",
            "y": "Tanh",
        },
    ),
    Case(
        "concat",
        f"""g ({IMAGE}) => (float y) {{
            a = {CONV}(x, w) b = {CONV}(a, w2) c = Concat<axis=2>(a, b) y = {CONV}(c, w2) }}""",
        activations={"x": ("a",), "a": ("b", "c"), "b": ("c",), "c": ("y",), "y": ()},
        owner={"a": "a", "b": "b", "c": "c"},
    ),
    Case(
        "data that only moves shares the scale of where it comes from",
        f"""g ({IMAGE}) => (float y) {{
            a = {CONV}(x, w) r = Relu(a) b = MaxPool<kernel_shape=[2,2]>(r) c = Flatten(b) d = Reshape(c, mat2)
            e = Transpose<perm=[1,0]>(d) y = MatMul(e, m) }}""",
        absorbed={"r": "a"},
        owner={"r": "r", "b": "r", "c": "r", "d": "r", "e": "r"},
    ),
    Case(
        "split",
        f"""g ({IMAGE}) => (float y) {{
            a = {CONV}(x, w) b, c = Split<axis=1>(a, halves) d = Concat<axis=1>(c, b) y = {CONV}(d, w2) }}""",
        activations={"x": ("a",), "a": ("b",), "b": ("d",), "c": ("d",), "d": ("y",), "y": ()},
        owner={"b": "a", "c": "a", "d": "d"},
    ),
    Case(
        "a Reshape in front of a float",
        f"g ({IMAGE}) => (float y) {{ a = {CONV}(x, w) b = Reshape(a, flat) y = Softmax(b) }}",
        float={"b": "no integer kernel reads its output", "y": "no integer kernel reads its output"},
    ),
    Case(
        "attention: a product of two activations",
        "g (float[1,4,8] x) => (float y) { a = MatMul(x, m) b = Transpose<perm=[0,2,1]>(a) y = MatMul(a, b) }",
        float={"b": "no integer kernel reads its output", "y": "both operands are activations"},
    ),
    Case(
        "a stack of constant matrices",
        "g (float[2,4,4] x) => (float y) { y = MatMul(x, stack) }",
    ),
    Case(
        "a table is looked up in integers",
        "g (int64[1,4] x) => (float y) { a = Gather(table, x) y = MatMul(a, p) }",
        activations={"a": ("y",)},
    ),
    Case(
        "a little table is not worth it",
        "g (int64[1,4] x) => (float y) { a = Gather(little, x) y = MatMul(a, p) }",
        float={"a": "the table is too small to be worth it"},
    ),
    Case(
        "a gathered activation",
        "g (float[4,8] x, int64[2] i) => (float y) { a = Gather(x, i) y = MatMul(a, m) }",
        float={"a": "only rows of a constant matrix can be looked up in integers"},
    ),
    Case(
        "columns of a table",
        "g (int64[4] i) => (float y) { y = Gather<axis=1>(table, i) }",
        float={"y": "only rows of a constant matrix"},
    ),
    Case(
        "a tensor read twice by one node",
        f"g ({IMAGE}) => (float y) {{ a = {CONV}(x, w) b = Add(a, a) y = {CONV}(b, w2) }}",
        activations={"x": ("a",), "a": ("b",), "b": ("y",), "y": ()},
    ),
    Case(
        "a tensor read by an integer and a float node",
        f"g ({IMAGE}) => (float y, float z) {{ a = {CONV}(x, w) y = {CONV}(a, w2) z = Tanh(a) }}",
        float={"z": "Tanh"},
        activations={"x": ("a",), "a": ("y", "z"), "y": ()},  # a leaves a kernel as integers: both read those
    ),
    Case(
        "an input read by an integer and a float node",
        f"g ({IMAGE}) => (float y, float z) {{ y = {CONV}(x, w) z = Tanh(x) }}",
        float={"z": "Tanh"},
        activations={"x": ("y",), "y": ()},  # z keeps the exact input
    ),
    Case(
        "integer arithmetic is left alone",
        f"""g ({IMAGE}, int64[1] n) => (float y, int64[1] m2) {{
            s = Shape(x) m2 = Add(n, n) t = Concat<axis=0>(n, m2) y = {CONV}(x, w) }}""",
        float={"s": "works on integers already", "m2": "works on integers already", "t": "works on integers already"},
    ),
    Case(
        "an operator of another domain",
        f"g ({IMAGE}) => (float y, float z) {{ y = {CONV}(x, w) z = toy.Conv(x, w) }}",
        float={"z": "has no integer kernel for toy::Conv"},
    ),
    Case(
        "a weight that is computed",
        "g (float[1,8,8,8] x, float[8,8,3,3] z) => (float y) { y = Conv(x, z) }",
        float={"y": "both operands are activations"},
    ),
    Case(
        "a bias that is computed",
        f"g ({IMAGE}, float[8] z) => (float y) {{ y = {CONV}(x, w, z) }}",
        float={"y": "its bias is computed at run time"},
    ),
    Case(
        "a bias that is a row",
        "g (float[4,8] x) => (float y) { y = Gemm(x, m, row) }",
        float={"y": "its bias has the shape [1, 8], and integer kernels add one number per channel"},
    ),
    Case(
        "a scaled bias",
        "g (float[4,8] x) => (float y) { y = Gemm<beta=0.5>(x, m, bias) }",
        float={"y": "scales its product or bias by alpha or beta"},
    ),
    Case(
        "bits that no kernel has",
        f"g ({IMAGE}) => (float y) {{ y = {CONV}(x, w) }}",
        float={"y": "has no 16-bit integer kernel for Conv"},
        scheme="w8a16",
    ),
    Case(
        "weight-only takes matrices and nothing else",
        f"""g (float[1,3,8,8] x, float[1,4,8] v) => (float y, float z) {{
            y = {CONV}(x, w) a = MatMul(v, m) b = Relu(a) c = Add(b, bias) z = MatMul(c, m) }}""",
        float={"y": "no integer kernel for Conv in w4", "b": "Relu", "c": "Add"},
        activations={},
        scheme="w4",
    ),
    Case(
        "weight-only and a stack of matrices",
        "g (float[2,4,4] x) => (float y) { y = MatMul(x, stack) }",
        float={"y": "only matrices are stored in blocks"},
        activations={},
        scheme="w4",
    ),
    Case(
        "two bits and columns that ONNX Runtime computes wrongly",
        "g (float[2,8] x) => (float y) { a = MatMul(x, m) y = MatMul(a, ten) }",
        activations={},
        scheme="w2",
    ),
    Case(
        "weight-only and a product of activations",
        "g (float[2,4,4] x) => (float y) { y = MatMul(x, x) }",
        float={"y": "both operands are activations"},
        scheme="w8",
    ),
]
CONSTANTS["mat2"] = ints(16, 8)


def make(text: str) -> ir.Model:
    words = set(re.findall(r"\w+", text))
    return parse(text, **{name: array for name, array in CONSTANTS.items() if name in words})


def symmetric(target: TargetProfile) -> TargetProfile:
    return msgspec.structs.replace(target, activations=msgspec.structs.replace(target.activations, symmetric=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_layout(case: Case) -> None:
    model, target = make(case.text), load_target(case.target)
    layout = find_layout(model, symmetric(target) if case.symmetric else target, Scheme.parse(case.scheme))
    assert dict(layout.absorbed) == case.absorbed
    for node in model.graph:
        name = str(node.name)
        if name in case.float:
            assert name not in layout.integer
            assert case.float[name] in layout.reasons[name]
        elif name in case.absorbed:
            assert layout.reasons[name] == f"absorbed by {case.absorbed[name]}"
        else:
            assert name in layout.integer, layout.reasons[name]
    if case.activations is not None:
        assert layout.activations == case.activations
    for tensor, owner in case.owner.items():
        assert layout.owner[tensor] == owner
    check_invariants(model, layout)


def check_invariants(model: ir.Model, layout: Layout) -> None:
    """Hold for every graph: nobody is forgotten, nobody is named twice, nothing integer is observed."""
    names = [str(node.name) for node in model.graph]
    assert set(layout.integer).isdisjoint(layout.reasons)
    assert {*layout.integer, *layout.reasons} == set(names)
    assert all(layout.reasons[name] for name in layout.reasons)
    assert set(layout.activations) == set(layout.owner)
    assert set(layout.produced) <= set(layout.activations)
    assert len(set(layout.observed)) == len(layout.observed)
    values = {str(v.name): v for node in model.graph for v in (*node.inputs, *node.outputs) if v is not None}
    for tensor, readers in layout.activations.items():
        assert values[tensor].dtype == ir.DataType.FLOAT
        actual = {str(node.name) for node, _ in values[tensor].uses()}
        assert set(readers) <= actual
        assert len(set(readers)) == len(readers)
        if tensor in layout.produced and readers and not layout.scheme.weight_only:
            producer = values[tensor].producer()
            kernel = layout.absorbed.get(str(producer.name), str(producer.name))
            assert kernel in layout.integer


def test_a_case_that_breaks_an_invariant_is_seen() -> None:
    model = make(CASES[0].text)
    layout = find_layout(model, load_target("linux-x64"), Scheme.parse("w8a8"))
    forgotten = Layout(layout.scheme, layout.integer, {}, layout.activations, layout.owner, {}, layout.produced)
    with pytest.raises(AssertionError):
        check_invariants(model, forgotten)


def test_the_layout_changes_nothing() -> None:
    model = make(CASES[1].text)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    layout = find_layout(model, load_target("android"), Scheme.parse("w8a8"))
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    again = find_layout(model, load_target("android"), Scheme.parse("w8a8"))
    assert layout == again


def test_channel_axes_are_those_of_tensors_with_a_scale_of_their_own() -> None:
    model = make(
        f"""g ({IMAGE}) => (float y) {{
            a = {CONV}(x, w) b = MaxPool<kernel_shape=[1,1]>(a) c = {CONV}(b, w2) d = Relu(c)
            q = GlobalAveragePool(d) f = Flatten(q) y = Gemm(f, m, bias) }}"""
    )
    layout = find_layout(model, load_target("linux-x64"), Scheme.parse("w8a8"))
    assert layout.channel_axes(model) == {"x": 1}  # b moves a, f moves q


def test_kinds_tell_of_every_node() -> None:
    model = make(CASES[1].text)
    target = load_target("linux-x64")
    found = forecast_nodes(model, find_layout(model, target, Scheme.parse("w8a8")), target)
    assert {name: node.kind for name, node in found.items()} == {"a": "integer", "b": "fused", "y": "integer"}
    assert {node.provider for node in found.values()} == {"CPUExecutionProvider"}
    assert all(node.why for node in found.values())
