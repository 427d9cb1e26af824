"""Operator by operator against ONNX Runtime: every attribute that changes what is computed, in old and new forms."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest
from small_models import parse, samples, weights

from edgeq.runtime import run_model

torch = pytest.importorskip("torch")

from edgeq.torch_graph import TorchGraph, unsupported  # noqa: E402

pytestmark = pytest.mark.torch


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def floats(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def compare(model: ir.Model, feeds: Mapping[str, np.ndarray], tolerance: float = 1e-5) -> None:
    """Every output as ONNX Runtime has it: shape, and values to ``tolerance`` of the largest."""
    assert unsupported(model) == []
    expected = run_model(model, feeds)
    graph = TorchGraph(model)
    with torch.no_grad():
        found = graph.run({name: torch.from_numpy(array) for name, array in feeds.items()}, list(expected))
    for name, wanted in expected.items():
        array = found[name].numpy()
        assert array.shape == wanted.shape, name
        if wanted.dtype.kind in "iub":
            np.testing.assert_array_equal(array.astype(np.int64), wanted.astype(np.int64))
        else:
            assert array.dtype == wanted.dtype
            np.testing.assert_allclose(array, wanted, rtol=0, atol=tolerance * max(np.abs(wanted).max(initial=0), 1e-3))


IMAGE = "float[2,6,9,11] x"
W = {"w": weights(8, 6, 3, 3), "b": weights(8)}
GROUPED = {"w": weights(8, 2, 3, 3), "b": weights(8)}
UP = {"w": weights(6, 4, 3, 3), "b": weights(4)}

CASES: dict[str, tuple[str, str, int, dict[str, np.ndarray]]] = {
    # inputs, body, opset, constants
    "conv": (IMAGE, "y = Conv(x, w, b)", 21, W),
    "conv pads": (IMAGE, "y = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w, b)", 21, W),
    "conv pads asymmetric": (IMAGE, "y = Conv<pads=[0,1,2,3], strides=[2,1]>(x, w)", 21, W),
    "conv dilations": (IMAGE, "y = Conv<dilations=[2,3], pads=[2,3,2,3]>(x, w, b)", 21, W),
    "conv groups": (IMAGE, "y = Conv<group=3>(x, w, b)", 21, {"w": weights(9, 2, 3, 3), "b": weights(9)}),
    "conv depthwise": (IMAGE, 'y = Conv<group=6, auto_pad="SAME_UPPER">(x, w)', 21, {"w": weights(6, 1, 3, 3)}),
    "conv same upper": (IMAGE, 'y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w)', 21, {"w": weights(4, 6, 2, 2)}),
    "conv same lower": (IMAGE, 'y = Conv<auto_pad="SAME_LOWER", strides=[2,3]>(x, w)', 21, {"w": weights(4, 6, 2, 4)}),
    "conv valid": (IMAGE, 'y = Conv<auto_pad="VALID", strides=[2,3]>(x, w)', 21, W),
    "conv 1d": ("float[2,6,9] x", "y = Conv<pads=[1,2]>(x, w)", 21, {"w": weights(4, 6, 3)}),
    "conv 3d": ("float[1,2,4,5,6] x", "y = Conv<pads=[0,1,1,1,0,1]>(x, w)", 21, {"w": weights(4, 2, 2, 3, 3)}),
    "conv transpose": (IMAGE, "y = ConvTranspose(x, w, b)", 21, UP),
    "conv transpose strides": (IMAGE, "y = ConvTranspose<strides=[2,3], pads=[0,1,2,1]>(x, w, b)", 21, UP),
    "conv transpose padded": (
        IMAGE,
        "y = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]>(x, w, b)",
        21,
        UP,
    ),
    "conv transpose shape": (IMAGE, "y = ConvTranspose<strides=[2,2], output_shape=[17,22]>(x, w, b)", 21, UP),
    "conv transpose same": (IMAGE, 'y = ConvTranspose<strides=[2,2], auto_pad="SAME_UPPER">(x, w)', 21, UP),
    "conv transpose dilations": (
        IMAGE,
        "y = ConvTranspose<dilations=[2,1], group=2>(x, w)",
        21,
        {"w": weights(6, 2, 3, 3)},
    ),
    "gemm": ("float[3,5] x", "y = Gemm(x, w, b)", 21, {"w": weights(5, 4), "b": weights(4)}),
    "gemm transposed": (
        "float[5,3] x",
        "y = Gemm<transA=1, transB=1, alpha=0.5, beta=2.0>(x, w, b)",
        21,
        {"w": weights(4, 5), "b": weights(3, 1)},
    ),
    "gemm without c": ("float[3,5] x", "y = Gemm<alpha=3.0>(x, w)", 21, {"w": weights(5, 4)}),
    "matmul": ("float[2,3,5] x, float[2,5,4] z", "y = MatMul(x, z)", 21, {}),
    "matmul broadcast": ("float[2,1,3,5] x, float[4,5,4] z", "y = MatMul(x, z)", 21, {}),
    "matmul vector": ("float[2,3,5] x, float[5] z", "y = MatMul(x, z)", 21, {}),
    "einsum": ("float[2,3,5] x, float[2,4,5] z", 'y = Einsum<equation="bij, bkj -> bik">(x, z)', 21, {}),
    "einsum ellipsis": ("float[2,3,5] x", 'y = Einsum<equation="...ij->...ji">(x)', 21, {}),
    "max pool": (IMAGE, "y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)", 21, {}),
    "max pool ceil": (IMAGE, "y = MaxPool<kernel_shape=[2,3], strides=[2,2], ceil_mode=1>(x)", 22, {}),
    "max pool ceil pads": (
        IMAGE,
        "y = MaxPool<kernel_shape=[2,2], strides=[3,3], pads=[0,0,1,1], ceil_mode=1>(x)",
        22,
        {},
    ),
    "max pool dilations": (IMAGE, "y = MaxPool<kernel_shape=[3,2], dilations=[2,3], pads=[1,0,0,1]>(x)", 21, {}),
    "max pool same": (IMAGE, 'y = MaxPool<kernel_shape=[2,2], auto_pad="SAME_LOWER">(x)', 21, {}),
    "max pool 1d": ("float[2,3,9] x", "y = MaxPool<kernel_shape=[4], strides=[2]>(x)", 21, {}),
    "average pool": (IMAGE, "y = AveragePool<kernel_shape=[3,3], strides=[2,2]>(x)", 21, {}),
    "average pool pads": (IMAGE, "y = AveragePool<kernel_shape=[3,2], pads=[1,0,2,1]>(x)", 21, {}),
    "average pool include": (
        IMAGE,
        "y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2], count_include_pad=1>(x)",
        21,
        {},
    ),
    "average pool ceil": (
        IMAGE,
        "y = AveragePool<kernel_shape=[3,3], strides=[3,3], pads=[1,0,1,0], ceil_mode=1>(x)",
        22,
        {},
    ),
    "average pool ceil include": (
        IMAGE,
        "y = AveragePool<kernel_shape=[3,3], strides=[3,3], pads=[1,0,1,0], ceil_mode=1, count_include_pad=1>(x)",
        22,
        {},
    ),
    "average pool dilations": (
        IMAGE,
        "y = AveragePool<kernel_shape=[3,2], dilations=[2,2], pads=[1,1,1,1], count_include_pad=1>(x)",
        19,
        {},
    ),
    "average pool 1d": ("float[2,3,9] x", "y = AveragePool<kernel_shape=[4], pads=[1,2]>(x)", 21, {}),
    "global pools": (IMAGE, "a = GlobalAveragePool(x) b = GlobalMaxPool(x) y = Concat<axis=1>(a, b)", 21, {}),
    "batch norm": (
        IMAGE,
        "y = BatchNormalization<epsilon=0.01>(x, s, b, m, v)",
        15,
        {"s": weights(6), "b": weights(6, seed=1), "m": weights(6, seed=2), "v": np.abs(weights(6, seed=3)) + 0.1},
    ),
    "layer norm": ("float[2,3,8] x", "y = LayerNormalization(x, s, b)", 17, {"s": weights(8), "b": weights(8)}),
    "layer norm axis": (
        "float[2,3,8] x",
        "y = LayerNormalization<axis=1, epsilon=0.1>(x, s)",
        17,
        {"s": weights(3, 8)},
    ),
    "layer norm all": (
        "float[2,3,8] x => float y, float z",
        "y, m, i = LayerNormalization<axis=-2>(x, s) z = Add(m, i)",
        17,
        {"s": weights(3, 8)},
    ),
    "instance norm": (IMAGE, "y = InstanceNormalization(x, s, b)", 21, {"s": weights(6), "b": weights(6)}),
    "group norm 18": (IMAGE, "y = GroupNormalization<num_groups=3>(x, s, b)", 18, {"s": weights(3), "b": weights(3)}),
    "group norm 21": (IMAGE, "y = GroupNormalization<num_groups=3>(x, s, b)", 21, {"s": weights(6), "b": weights(6)}),
    "lrn": (IMAGE, "y = LRN<size=3, alpha=0.1, beta=0.5, bias=2.0>(x)", 21, {}),
    "lp norm": (IMAGE, "a = LpNormalization<axis=1, p=1>(x) y = LpNormalization<axis=-1, p=2>(a)", 21, {}),
    "mean variance norm": (IMAGE, "y = MeanVarianceNormalization<axes=[0,2,3]>(x)", 21, {}),
    "reduce attribute": ("float[2,3,4] x", "y = ReduceMean<axes=[-1,0], keepdims=0>(x)", 13, {}),
    "reduce input": ("float[2,3,4] x", "y = ReduceMean<keepdims=1>(x, a)", 18, {"a": ints(-1, 1)}),
    "reduce all": ("float[2,3,4] x", "y = ReduceSum<keepdims=0>(x)", 13, {}),
    "reduce none": ("float[2,3,4] x", "y = ReduceSum<noop_with_empty_axes=1>(x)", 18, {}),
    "reduce sum 13": ("float[2,3,4] x", "y = ReduceSum<keepdims=0>(x, a)", 13, {"a": ints(1)}),
    "reduce integers": (
        "int64[2,3] x => int64 y",
        "a = ReduceSum<keepdims=0>(x) b = ReduceMax<keepdims=0>(x) y = Add(a, b)",
        18,
        {},
    ),
    "arg max": (
        "float[2,3,4] x => int64 y, int64 z",
        "y = ArgMax<axis=-1, keepdims=0>(x) z = ArgMin<axis=1, select_last_index=1>(x)",
        13,
        {},
    ),
    "top k": ("float[2,9] x => float y, int64 i", "y, i = TopK<axis=-1>(x, k)", 21, {"k": ints(4)}),
    "top k smallest": ("float[9,2] x => float y, int64 i", "y, i = TopK<axis=0, largest=0>(x, k)", 21, {"k": ints(3)}),
    "softmax 13": ("float[2,3,4] x", "y = Softmax<axis=1>(x)", 13, {}),
    "softmax 11": ("float[2,3,4] x", "y = Softmax<axis=1>(x)", 11, {}),
    "log softmax": ("float[2,3,4] x", "y = LogSoftmax(x)", 13, {}),
    "gelu": ("float[2,9] x", 'a = Gelu(x) b = Gelu<approximate="tanh">(x) y = Add(a, b)', 20, {}),
    "microsoft gelu": ("float[2,9] x", "a = com.microsoft.Gelu(x) y = com.microsoft.QuickGelu(a)", 20, {}),
    "fast gelu": ("float[2,9] x", "y = com.microsoft.FastGelu(x, b)", 20, {"b": weights(9)}),
    "hard sigmoid": ("float[2,9] x", "a = HardSigmoid(x) y = HardSigmoid<alpha=0.166667, beta=0.3>(a)", 21, {}),
    "clip": ("float[2,9] x", "y = Clip(x, lo, hi)", 13, {"lo": np.float32(-0.3), "hi": np.float32(0.7)}),
    "clip above": ("float[2,9] x", "y = Clip(x, , hi)", 13, {"hi": np.float32(0.2)}),
    "clip attributes": ("float[2,9] x", "y = Clip<max=0.5>(x)", 6, {}),
    "prelu": (IMAGE, "y = PRelu(x, s)", 16, {"s": weights(6, 1, 1)}),
    "pow": (
        "float[2,9] x",
        "a = Pow(x, two) b = Pow(a, half) y = Mul(a, b)",
        15,
        {"two": ints(2), "half": floats(0.5)},
    ),
    "integer division": (
        "int64[2,9] x => int64 y",
        "a = Sub(x, five) y = Div(a, two)",
        14,
        {"five": ints(5), "two": ints(2)},
    ),
    "mod": ("float[2,9] x", "y = Mod<fmod=1>(x, d)", 13, {"d": floats(0.3)}),
    "integer mod": ("int64[2,9] x => int64 y", "a = Sub(x, five) y = Mod(a, d)", 13, {"five": ints(5), "d": ints(3)}),
    "cum sum": ("float[3,4] x", "y = CumSum<exclusive=1, reverse=1>(x, a)", 14, {"a": np.array(-1)}),
    "casts": (
        "float[3,4] x => float y, float16 z",
        "a = Mul(x, f) b = Cast<to=7>(a) c = Cast<to=9>(b) y = Cast<to=1>(c) z = Cast<to=10>(x)",
        21,
        {"f": floats(3.7)},
    ),
    "reshape zero": ("float[2,3,4] x", "y = Reshape(x, s)", 21, {"s": ints(0, -1)}),
    "reshape allowzero": ("float[0,3] x", "y = Reshape<allowzero=1>(x, s)", 21, {"s": ints(3, 0)}),
    "flatten": (
        "float[2,3,4] x => float y, float b, float c",
        "a = Flatten(x) b = Flatten<axis=-1>(x) c = Flatten<axis=0>(x) y = Identity(a)",
        13,
        {},
    ),
    "squeeze": ("float[1,3,1] x", "a = Squeeze(x, m) y = Unsqueeze(a, u)", 13, {"m": ints(-1), "u": ints(-1, 0)}),
    "squeeze attribute": ("float[1,3,1] x", "a = Squeeze<axes=[0]>(x) y = Unsqueeze<axes=[2,0]>(a)", 11, {}),
    "split": ("float[2,7] x => float y, float z", "y, z = Split<axis=-1>(x, s)", 13, {"s": ints(3, 4)}),
    "split even": ("float[2,6] x => float y, float z", "y, z = Split<axis=1>(x)", 13, {}),
    "split outputs": ("float[2,7] x => float y, float z, float v", "y, z, v = Split<axis=1, num_outputs=3>(x)", 18, {}),
    "slice": (
        "float[4,7,5] x",
        "y = Slice(x, s, e, a, t)",
        13,
        {"s": ints(-3, 5), "e": ints(9223372036854775807, -100), "a": ints(0, -2), "t": ints(2, -2)},
    ),
    "slice plain": ("float[4,7,5] x", "y = Slice(x, s, e)", 13, {"s": ints(1, 2), "e": ints(100, -1)}),
    "slice empty": ("float[4,7] x", "y = Slice(x, s, e)", 13, {"s": ints(3), "e": ints(2)}),
    "gather": ("float[4,7,5] x", "y = Gather<axis=-2>(x, i)", 13, {"i": np.array([[0, -1], [3, 2]])}),
    "gather scalar": ("float[4,7,5] x", "y = Gather<axis=1>(x, i)", 13, {"i": np.array(-2)}),
    "gather elements": (
        "float[3,4] x",
        "y = GatherElements<axis=1>(x, i)",
        13,
        {"i": np.array([[0, -1], [3, 2], [1, 1]])},
    ),
    "gather nd": ("float[3,4,5] x", "y = GatherND(x, i)", 13, {"i": np.array([[[0, 1]], [[2, -1]]])}),
    "gather nd batch": ("float[3,4,5] x", "y = GatherND<batch_dims=1>(x, i)", 13, {"i": np.array([[0], [2], [-1]])}),
    "scatter nd": ("float[3,4] x", "y = ScatterND(x, i, u)", 16, {"i": np.array([[0], [2]]), "u": weights(2, 4)}),
    "scatter elements": (
        "float[3,4] x",
        'y = ScatterElements<axis=1, reduction="add">(x, i, u)',
        16,
        {"i": np.array([[0, 0], [1, 2], [3, -1]]), "u": weights(3, 2)},
    ),
    "expand": ("float[3,1] x", "y = Expand(x, s)", 13, {"s": ints(2, 1, 4)}),
    "tile": ("float[3,2] x", "y = Tile(x, s)", 13, {"s": ints(2, 3)}),
    "pad constant": ("float[3,4] x", "y = Pad(x, p, v)", 13, {"p": ints(1, 0, 2, -1), "v": np.float32(2.5)}),
    "pad axes": ("float[2,3,4] x", 'y = Pad<mode="edge">(x, p, , a)', 18, {"p": ints(1, 2), "a": ints(-1)}),
    "pad reflect": ("float[3,4] x", 'y = Pad<mode="reflect">(x, p)', 18, {"p": ints(2, 1, 0, 3)}),
    "pad wrap": ("float[3,4] x", 'y = Pad<mode="wrap">(x, p)', 19, {"p": ints(2, 1, 0, 3)}),
    "shape computation": (
        "float[a,b,c] x => float y, int64 z",
        "s = Shape(x) g = Gather(s, i) h = Div(g, two) r = Concat<axis=0>(m, h) y = Reshape(x, r)"
        " t = Shape<start=1, end=-1>(x) z = Mul(t, g)",
        15,
        {"i": ints(1), "two": ints(2), "m": ints(-1)},
    ),
    "constant of shape": (
        "float[a,b] x",
        "s = Shape(x) c = ConstantOfShape<value=float[1] {3.5}>(s) y = Add(x, c)",
        13,
        {},
    ),
    "range": ("int64[1] x => int64 y", "n = Squeeze(x) y = Range(o, n, d)", 13, {"o": np.array(7), "d": np.array(-2)}),
    "trilu": ("float[4,5] x => float y, float z", "y = Trilu(x, k) z = Trilu<upper=0>(x)", 14, {"k": np.array(1)}),
    "one hot": ("int64[3] x", "y = OneHot<axis=0>(x, d, v)", 13, {"d": ints(4), "v": floats(-1, 2)}),
    "eye like": ("float[3,4] x", "y = EyeLike<k=1, dtype=1>(x)", 13, {}),
    "non zero": ("int64[3,4] x => int64 y", "y = NonZero(x)", 13, {}),
    "depth to space": (
        "float[1,8,2,3] x",
        "a = DepthToSpace<blocksize=2>(x) b = SpaceToDepth<blocksize=2>(a)"
        ' y = DepthToSpace<blocksize=2, mode="CRD">(b)',
        13,
        {},
    ),
    "where": ("float[3,4] x", "c = Greater(x, o) n = Not(c) y = Where(n, x, o)", 16, {"o": floats(0.1)}),
    "variadic": ("float[3,4] x, float[4] z", "a = Max(x, z, x) b = Min(x, z) c = Mean(a, b) y = Sum(a, b, c)", 13, {}),
    "dropout": ("float[3,4] x", "y = Dropout(x)", 13, {}),
    "grid sample": (
        "float[1,2,5,6] x, float[1,3,4,2] z",
        'a = GridSample<mode="linear", align_corners=1>(x, z)'
        ' b = GridSample<mode="nearest", padding_mode="border">(x, z) y = Add(a, b)',
        20,
        {},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_operator(name: str) -> None:
    signature, body, opset, constants = CASES[name]
    inputs, _, outputs = signature.partition("=>")
    model = parse(f"g ({inputs}) => ({outputs or 'float y'}) {{ {body} }}", opset=opset, **constants)
    compare(model, samples(model, 1, seed=3)[0])


RESIZES = [([1, 1, 0.6, 0.6], None), ([1, 1, 2, 2], None), ([1, 1, 2.5, 0.5], None), (None, [1, 2, 9, 3])]
TIES = {"half_pixel_symmetric"}
"""Modes where some coordinates fall on ties, which float32 decides by the order of operations: not for nearest."""


@pytest.mark.parametrize(
    "transformation", ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"]
)
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resize(mode: str, transformation: str) -> None:
    if mode == "nearest":
        settings = [{"nearest_mode": f'"{m}"'} for m in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")]
    else:  # ONNX Runtime takes exclude_outside for cubic only
        settings = [
            {"antialias": a, "exclude_outside": e} for a in (0, 1) for e in ((0, 1) if mode == "cubic" else (0,))
        ]
    for chosen in settings:
        for scales, sizes in RESIZES:
            if mode == "nearest" and transformation in TIES and scales and min(scales) < 1:
                continue
            options = ", ".join(f"{name}={value}" for name, value in chosen.items())
            given = "s" if scales else ", s"
            constant = np.array(scales, np.float32) if scales else np.array(sizes)
            attributes = f'mode="{mode}", coordinate_transformation_mode="{transformation}", {options}'
            text = f"g (float[1,2,5,7] x) => (float[a,b,c,d] y) {{ y = Resize<{attributes}>(x, , {given}) }}"
            model = parse(text, opset=19, s=constant)
            compare(model, samples(model, 1)[0])


def test_resize_of_named_axes_keeps_the_aspect() -> None:
    text = """
    g (float[1,2,5,7] x) => (float[a,b,c,d] y) {
        y = Resize<axes=[2,3], keep_aspect_ratio_policy="not_larger", mode="linear">(x, , , s)
    }
    """
    model = parse(text, opset=19, s=ints(9, 8))
    compare(model, samples(model, 1)[0])
