"""The profile of the CPU provider is verified, not believed: ONNX Runtime really runs each capability in integers.

Every case goes through the whole chain, then the optimized graph is read back, and its numbers are
compared with the same graph run without any optimization.
"""

from __future__ import annotations

import tempfile
from collections import Counter

import numpy as np
import onnx
import pytest
from small_models import Chain, parse, quantized, weights

from edgeq.runtime import open_session, session_options
from edgeq.stages.run.placement import read_placement
from edgeq.target import load_target

TARGETS = ["linux-x64", "android"]


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


CONSTANTS = {
    "w": weights(8, 3, 3, 3),
    "w2": weights(8, 8, 3, 3, seed=1),
    "k": weights(8, 1, 1, seed=2),
    "full": ints(1, 8, 8, 8),
    "flat": ints(1, 8, 64),
    "axis": ints(0),
    "start": ints(0),
    "end": ints(4),
    "channels": ints(1),
    "halves": ints(4, 4),
    "choice": np.array([True, False] * 4),
    "m": weights(8, 8, seed=3),
    "row": weights(8, seed=8),
    "half": weights(8, 2, 8, 8, seed=4),
    "table": weights(512, 64, seed=5),
    "t": weights(64, 8, seed=6),
}

CONV = "Conv<pads=[1,1,1,1]>"


def between_convs(body: str, *, second: bool = False) -> str:
    """``body`` computes b from a (and a2), both ``[1, 8, 8, 8]``, between two convolutions."""
    twin = f"a2 = {CONV}(x, w)" if second else ""
    return f"g (float[1,3,8,8] x) => (float[1,8,8,8] y) {{ a = {CONV}(x, w) {twin} {body} y = {CONV}(b, w2) }}"


# Per capability: operator -> (model, what has to become of it in the optimized graph).
COMPUTE = {
    "Conv": (between_convs(f"b = {CONV}(a, w2)"), {"b": "QLinearConv"}),
    "Gemm": (
        "g (float[4,8] x) => (float[4,8] y) { h = Gemm(x, m) y = Gemm<transB=1>(h, m) }",
        {"h": "QGemm", "y": "QGemm"},
    ),
    "MatMul": (
        "g (float[1,4,8] x) => (float[1,4,8] y) { h = MatMul(x, m) y = MatMul(h, m) }",
        {"h": "QLinearMatMul", "y": "MatMulIntegerToFloat"},
    ),
}
ELEMENTWISE = {
    "Add": (between_convs("b = Add(a, a2)", second=True), {"b": "QLinearAdd"}),
    "Mul": (between_convs("b = Mul(a, k)"), {"b": "QLinearMul"}),
    "Concat": (
        between_convs("c = Concat<axis=1>(a, a2) b = Slice(c, start, full8, channels)", second=True),
        {"c": "QLinearConcat"},
    ),
    "LeakyRelu": (between_convs("b = LeakyRelu<alpha=0.1>(a)"), {"b": "QLinearLeakyRelu"}),
    "Sigmoid": (between_convs("b = Sigmoid(a)"), {"b": "QLinearSigmoid"}),
    "Softmax": (between_convs("b = Softmax<axis=-1>(a)"), {"b": "QLinearSoftmax"}),
    "AveragePool": (
        between_convs("b = AveragePool<kernel_shape=[3,3],pads=[1,1,1,1],count_include_pad=1>(a)"),
        {"b": "QLinearAveragePool"},
    ),
    "GlobalAveragePool": (
        between_convs("p = GlobalAveragePool(a) b = Mul(a, p)"),
        {"p": "QLinearGlobalAveragePool", "b": "QLinearMul"},
    ),
    "Where": (between_convs("b = Where(choice, a, a2)", second=True), {"b": "QLinearWhere"}),
}
MOVES = {
    "MaxPool": (between_convs("b = MaxPool<kernel_shape=[3,3],pads=[1,1,1,1]>(a)"), {"b": "NhwcMaxPool"}),
    "Reshape": (between_convs("p = Reshape(a, flat) b = Reshape(p, full)"), {"p": "Reshape"}),
    "Transpose": (between_convs("b = Transpose<perm=[0,1,3,2]>(a)"), {"b": None}),
    "Flatten": (between_convs("p = Flatten(a) b = Reshape(p, full)"), {"p": "Flatten"}),
    "Squeeze": (between_convs("p = Squeeze(a, axis) b = Unsqueeze(p, axis)"), {"p": "Squeeze"}),
    "Unsqueeze": (between_convs("p = Squeeze(a, axis) b = Unsqueeze(p, axis)"), {"b": "Unsqueeze"}),
    "Expand": (between_convs("p = GlobalAveragePool(a) b = Expand(p, full)"), {"b": "Expand"}),
    "Slice": (between_convs("p = Slice(a, start, end, channels) b = Concat<axis=1>(p, p)"), {"p": "Slice"}),
    "Split": (between_convs("p, q = Split<axis=1>(a, halves) b = Concat<axis=1>(q, p)"), {"p": "Split"}),
    "DepthToSpace": (
        between_convs("p = DepthToSpace<blocksize=2>(a) b = Conv<strides=[2,2]>(p, half2)"),
        {"p": "DepthToSpace"},
    ),
}
TABLE = {
    "Gather": (
        "g (int64[1,4] x) => (float[1,4,8] y) { e = Gather(table, x) y = MatMul(e, t) }",
        {"e": "Gather", "y": "MatMulIntegerToFloat"},
    ),
}
WEIGHT_ONLY = {
    "MatMul": ("g (float[1,4,64] x) => (float[1,4,8] y) { y = MatMul(x, t) }", {"y": "MatMulNBits"}),
}
DYNAMIC = {
    "MatMul": (
        "g (float[1,4,8] x) => (float[1,4,8] y) { h = MatMul(x, m) b = Add(h, row) y = MatMul(b, m) }",
        {"h": "DynamicQuantizeMatMul", "y": "DynamicQuantizeMatMul"},
    ),
    "Gemm": (
        "g (float[4,8] x) => (float[4,8] y) { h = Gemm(x, m, row) y = Gemm<transB=1>(h, m, row) }",
        {"h": "DynamicQuantizeMatMul", "y": "DynamicQuantizeMatMul"},
    ),
}
KINDS = {
    "dynamic": DYNAMIC,
    "compute": COMPUTE,
    "elementwise": ELEMENTWISE,
    "moves-data": MOVES,
    "table": TABLE,
    "weight-only": WEIGHT_ONLY,
}
CONSTANTS |= {"full8": ints(8), "half2": weights(8, 2, 2, 2, seed=7)}


def make(text: str):
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return parse(text, **{name: array for name, array in CONSTANTS.items() if name in words})


def check(chain: Chain, expected: dict[str, str | None], kind: str) -> None:
    placement = read_placement(chain.model, chain.target.provider, expected=chain.plan.nodes)
    placed = {node.node: node for node in placement.nodes}
    for name, kernel in expected.items():
        if kernel is not None:
            assert placed[name].runs_as == kernel
        assert placed[name].kind in ("integer", "moves data", "fused"), f"{name} runs as {placed[name].runs_as}"
    # One Q for the input and one DQ for the output are fair; any other pair means that something runs in float.
    assert not [finding.text for finding in placement.findings if finding.severity != "info"]
    assert all(node.kind != "float" for node in placement.nodes)
    agree(chain)


def agree(chain: Chain) -> None:
    """Integer kernels give what the specification says, within one step of the output's own integers."""
    for sample in chain.feed:
        exact, fused = chain.run(sample)["y"], chain.run(sample, "all")["y"]
        steps = [d.qparams.scale for d in chain.plan.quantized if d.tensor == "y" and d.qparams is not None]
        step = float(steps[0]) if steps else 1e-4 * float(np.abs(exact).max())
        assert np.abs(exact - fused).max() <= step * 1.001


@pytest.mark.parametrize("target", TARGETS)
def test_every_operator_of_the_profile_has_a_case(target: str) -> None:
    for capability in (c for c in load_target(target).capability if not c.passive):
        assert set(capability.ops) <= set(KINDS[capability.kind]), capability.kind


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("kind", "op"),
    [(kind, op) for kind in ("compute", "elementwise", "moves-data", "table") for op in KINDS[kind]],
)
def test_integer_kernels(target: str, kind: str, op: str) -> None:
    if not any(c.kind == kind and op in c.ops for c in load_target(target).capability):
        pytest.skip(f"{target} does not promise it")
    text, expected = KINDS[kind][op]
    check(quantized(make(text), target), expected, kind)


def kernels(chain: Chain) -> Counter[str]:
    """What ONNX Runtime makes of the model, with everything merged that it merges."""
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(config=chain.target.provider.session)
        options.optimized_model_filepath = f"{folder}/optimized.onnx"
        with open_session(chain.model, options):
            return Counter(node.op_type for node in onnx.load(f"{folder}/optimized.onnx").graph.node)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", DYNAMIC)
def test_products_ranged_at_run_time_are_one_kernel_each(target: str, op: str) -> None:
    text, expected = DYNAMIC[op]
    chain = quantized(make(text), target, "w8a8_dynamic")
    check(chain, expected, "dynamic")
    assert kernels(chain) == {"DynamicQuantizeMatMul": 2}  # the biases are in them


def test_readers_of_one_tensor_share_its_integers() -> None:
    text = "g (float[1,4,8] x) => (float[1,4,8] y) { q = MatMul(x, m) k = MatMul(x, n) s = Add(q, row) y = Mul(s, k) }"
    model = parse(text, m=CONSTANTS["m"], n=weights(8, 8, seed=9), row=CONSTANTS["row"])
    made = kernels(quantized(model, "linux-x64", "w8a8_dynamic"))
    assert made == {"DynamicQuantizeLinear": 1, "MatMulIntegerToFloat": 2, "Mul": 1}


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("rows", "block"), [(64, 32), (64, 16), (80, 32), (40, 16), (128, 128), (20, 32)])
def test_weight_only_matrices_become_block_kernels(bits: int, rows: int, block: int) -> None:
    model = parse(f"g (float[1,4,{rows}] x) => (float[1,4,8] y) {{ y = MatMul(x, w) }}", w=weights(rows, 8, seed=bits))
    chain = quantized(model, "linux-x64", f"w{bits}_b{block}")
    placed = {node.node: node.runs_as for node in read_placement(chain.model).nodes}
    assert placed == {"y": "MatMulNBits"}
    for sample in chain.feed:
        exact, fused = chain.run(sample)["y"], chain.run(sample, "all")["y"]
        np.testing.assert_allclose(fused, exact, rtol=0, atol=2e-2 * np.abs(exact).max())


def test_weight_only_gemm_becomes_a_block_kernel_with_its_bias() -> None:
    model = parse("g (float[4,64] x) => (float[4,8] y) { y = Gemm<transB=1>(x, w, b) }", w=weights(8, 64), b=weights(8))
    chain = quantized(model, "linux-x64", "w4")
    placed = [node.runs_as for node in read_placement(chain.model).nodes]
    assert placed[0] == "MatMulNBits"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("text", "runs"),
    [
        (between_convs("b = Relu(a)"), {"a": "QLinearConv", "b": "QLinearConv"}),
        (between_convs("b = Clip(a, zero, six)"), {"a": "QLinearConv", "b": "QLinearConv"}),
        (between_convs("c = Add(a, a2) b = Relu(c)", second=True), {"c": "QLinearAdd", "b": "QLinearAdd"}),
        (
            "g (float[4,8] x) => (float[4,8] y) { h = Gemm(x, m) r = Relu(h) y = Gemm(r, m) }",
            {"h": "QGemm", "r": "QGemm", "y": "QGemm"},
        ),
        (
            "g (float[1,4,8] x) => (float[1,4,8] y) { h = MatMul(x, m) r = Relu(h) y = MatMul(r, m) }",
            {"h": "QLinearMatMul", "r": "QLinearMatMul"},
        ),
    ],
    ids=["conv-relu", "conv-clip", "add-relu", "gemm-relu", "matmul-relu"],
)
def test_kernels_take_over_relu_and_clip(target: str, text: str, runs: dict[str, str]) -> None:
    CONSTANTS.update(zero=np.float32(0), six=np.float32(6))
    check(quantized(make(text), target), runs, "compute")


SHAPES = {
    "1d": ("g (float[1,3,8] x) => (float[1,4,6] y) { y = Conv(x, w) }", (4, 3, 3)),
    "3d": ("g (float[1,3,6,6,6] x) => (float[1,4,4,4,4] y) { y = Conv(x, w) }", (4, 3, 3, 3, 3)),
    "depthwise": ("g (float[1,4,8,8] x) => (float[1,4,6,6] y) { y = Conv<group=4>(x, w) }", (4, 1, 3, 3)),
    "grouped": ("g (float[1,4,8,8] x) => (float[1,8,6,6] y) { y = Conv<group=2>(x, w) }", (8, 2, 3, 3)),
    "same": (
        'g (float[1,3,8,8] x) => (float[1,4,4,4] y) { y = Conv<auto_pad="SAME_UPPER",strides=[2,2]>(x, w) }',
        (4, 3, 3, 3),
    ),
    "dilated": ("g (float[1,3,8,8] x) => (float[1,4,4,4] y) { y = Conv<dilations=[2,2]>(x, w) }", (4, 3, 3, 3)),
    "batch": ("g (float[3,3,8,8] x) => (float[3,4,6,6] y) { y = Conv(x, w) }", (4, 3, 3, 3)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_convolution(shape: str) -> None:
    text, size = SHAPES[shape]
    check(quantized(parse(text, w=weights(*size))), {"y": "QLinearConv"}, "compute")


@pytest.mark.parametrize(
    ("text", "constants", "kernel"),
    [
        ("y = Gemm<transA=1>(x, w, b)", {"w": weights(4, 8), "b": weights(8)}, "QGemm"),
        ("y = Gemm<alpha=0.5>(x, w)", {"w": weights(4, 8)}, "QGemm"),
        ("y = Gemm(x, w, b)", {"w": weights(4, 8), "b": weights(1)}, "QGemm"),
        ("y = MatMul(x, w)", {"w": weights(4)}, "MatMulIntegerToFloat"),
        # A scale per column of a stack of matrices fuses, and then fails while running.
        ("y = MatMul(x, w)", {"w": weights(2, 4, 8)}, "MatMulIntegerToFloat"),
    ],
    ids=["transA", "alpha", "one bias for all", "vector", "stack of matrices"],
)
def test_odd_products_in_integers(text: str, constants: dict[str, np.ndarray], kernel: str) -> None:
    model = parse(f"g (float[4,4] x) => (float y) {{ {text} }}", **constants)
    model.graph.outputs[0].shape = None
    check(quantized(model), {"y": kernel}, "compute")
