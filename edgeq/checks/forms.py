"""Small float models by operator: the forms in which networks use it, written as text.

One form of an operator is one graph with random constants and inputs of fixed seeds. Shapes are
static and sensible: channels in multiples of 4, and an odd number in the forms that say so.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import onnx_ir as ir

__all__ = ["Form", "build_form", "draw_inputs", "forms_of", "opset_for"]

IMAGE, ODD, ROWS, MATRIX = "float[1,8,12,12]", "float[1,7,9,9]", "float[1,16,32]", "float[4,32]"


@dataclass(frozen=True)
class Form:
    """One float graph with ``op`` in it.

    ``text`` is ONNX's textual form without a name, such as ``"(float[1,8] x) => (float[1,8] y)
    { y = Relu(x) }"``; constants come from a table by name. ``spans`` gives the range of inputs that are
    not normal noise, as ``(low, high)``.
    """

    op: str
    text: str
    name: str = ""
    spans: Mapping[str, tuple[float, float]] = field(default_factory=dict)


_POSITIVE = {"x": (0.3, 2.0)}
_BINARY = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min", "Pow"})
_REDUCE = (
    *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"),
    *("ReduceProd", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"),
)
_COMPARE = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
_SPANS: dict[str, dict[str, tuple[float, float]]] = {
    **dict.fromkeys(("Sqrt", "Log", "Reciprocal", "Pow"), _POSITIVE),
    **{op: {"x": (-0.9, 0.9)} for op in ("Acos", "Asin", "Atanh")},
    "Acosh": {"x": (1.1, 4.0)},
    "Div": {"z": (0.5, 2.0)},
    "Mod": {"z": (0.5, 2.0)},
    "ReduceProd": {"x": (0.9, 1.1)},
    "ReduceLogSum": _POSITIVE,
    "Exp": {"x": (-3.0, 2.0)},
}

_TEXTS: dict[str, dict[str, str]] = {
    "Conv": {
        "": f"({IMAGE} x) => (float[1,16,12,12] y) {{ y = Conv<pads=[1,1,1,1]>(x, conv, bias16) }}",
        "1x1 without bias": f"({IMAGE} x) => (float[1,16,12,12] y) {{ y = Conv(x, point) }}",
        "depthwise": f"({IMAGE} x) => ({IMAGE} y) {{ y = Conv<pads=[1,1,1,1], group=8>(x, depthwise, bias8) }}",
        "stride 2": f"({IMAGE} x) => (float[1,16,6,6] y) "
        "{ y = Conv<pads=[1,1,1,1], strides=[2,2]>(x, conv, bias16) }",
        "odd channels": f"({ODD} x) => (float[1,5,9,9] y) {{ y = Conv<pads=[1,1,1,1]>(x, conv_odd, bias5) }}",
        "one dimension": "(float[1,8,32] x) => (float[1,16,32] y) { y = Conv<pads=[1,1]>(x, conv1d, bias16) }",
    },
    "ConvTranspose": {
        "": f"({IMAGE} x) => (float[1,16,12,12] y) {{ y = ConvTranspose<pads=[1,1,1,1]>(x, deconv, bias16) }}",
        "stride 2": f"({IMAGE} x) => (float[1,16,24,24] y) "
        "{ y = ConvTranspose<strides=[2,2], kernel_shape=[2,2]>(x, deconv2, bias16) }",
    },
    "Gemm": {
        "": f"({MATRIX} x) => (float[4,16] y) {{ y = Gemm(x, columns, bias16) }}",
        "transB": f"({MATRIX} x) => (float[4,16] y) {{ y = Gemm<transB=1>(x, matrix, bias16) }}",
        "odd sizes": "(float[3,33] x) => (float[3,17] y) { y = Gemm(x, columns_odd, bias17) }",
    },
    "MatMul": {
        "": f"({ROWS} x) => (float[1,16,16] y) {{ y = MatMul(x, columns) }}",
        "rank 2": f"({MATRIX} x) => (float[4,16] y) {{ y = MatMul(x, columns) }}",
        "odd sizes": "(float[1,5,33] x) => (float[1,5,17] y) { y = MatMul(x, columns_odd) }",
    },
    "LayerNormalization": {"": f"({ROWS} x) => ({ROWS} y) {{ y = LayerNormalization<axis=-1>(x, gamma32, row) }}"},
    "RMSNormalization": {"": f"({ROWS} x) => ({ROWS} y) {{ y = RMSNormalization<axis=-1>(x, gamma32) }}"},
    "GroupNormalization": {
        "": f"({IMAGE} x) => ({IMAGE} y) {{ y = GroupNormalization<num_groups=2>(x, gamma8, bias8) }}"
    },
    "InstanceNormalization": {"": f"({IMAGE} x) => ({IMAGE} y) {{ y = InstanceNormalization(x, gamma8, bias8) }}"},
    "BatchNormalization": {
        "": f"({IMAGE} x) => ({IMAGE} y) {{ y = BatchNormalization(x, gamma8, bias8, bias8, gamma8) }}"
    },
    "LpNormalization": {"": f"({IMAGE} x) => ({IMAGE} y) {{ y = LpNormalization<axis=1>(x) }}"},
    "Clip": {"": f"({IMAGE} x) => ({IMAGE} y) {{ y = Clip(x, low, high) }}"},
    "PRelu": {"": f"({IMAGE} x) => ({IMAGE} y) {{ y = PRelu(x, slope) }}"},
    "AveragePool": {
        "": f"({IMAGE} x) => (float[1,8,6,6] y) {{ y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(x) }}",
        "padded": f"({IMAGE} x) => (float[1,8,12,12] y) "
        "{ y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x) }",
    },
    "MaxPool": {
        "": f"({IMAGE} x) => (float[1,8,6,6] y) {{ y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x) }}",
        "padded": f"({IMAGE} x) => (float[1,8,6,6] y) "
        "{ y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x) }",
    },
    "GlobalAveragePool": {"": f"({IMAGE} x) => (float[1,8,1,1] y) {{ y = GlobalAveragePool(x) }}"},
    "GlobalMaxPool": {"": f"({IMAGE} x) => (float[1,8,1,1] y) {{ y = GlobalMaxPool(x) }}"},
    "Softmax": {
        "": f"({ROWS} x) => ({ROWS} y) {{ y = Softmax<axis=-1>(x) }}",
        "attention scores": "(float[1,4,16,16] x) => (float[1,4,16,16] y) { y = Softmax<axis=-1>(x) }",
        "odd classes": "(float[2,17] x) => (float[2,17] y) { y = Softmax<axis=-1>(x) }",
    },
    "LogSoftmax": {"": f"({ROWS} x) => ({ROWS} y) {{ y = LogSoftmax<axis=-1>(x) }}"},
    "Concat": {
        "different scales": f"({IMAGE} x, {IMAGE} z) => (float[1,16,12,12] y) {{ y = Concat<axis=1>(x, z) }}",
        "three parts": f"({ROWS} x, {ROWS} z, {ROWS} u) => (float[1,48,32] y) {{ y = Concat<axis=1>(x, z, u) }}",
    },
    "Where": {
        "": f"({IMAGE} x, {IMAGE} z) => ({IMAGE} y) {{ y = Where(choice, x, z) }}",
        "one constant": f"({IMAGE} x) => ({IMAGE} y) {{ y = Where(choice, x, five) }}",
    },
    "Reshape": {"": f"({IMAGE} x) => (float[1,8,144] y) {{ y = Reshape(x, flat) }}"},
    "Flatten": {"": f"({IMAGE} x) => (float[1,1152] y) {{ y = Flatten(x) }}"},
    "Transpose": {
        "": f"({IMAGE} x) => (float[1,12,12,8] y) {{ y = Transpose<perm=[0,2,3,1]>(x) }}",
        "heads": "(float[1,16,4,8] x) => (float[1,4,16,8] y) { y = Transpose<perm=[0,2,1,3]>(x) }",
    },
    "Squeeze": {"": f"({IMAGE} x) => (float[8,12,12] y) {{ y = Squeeze(x, zero) }}"},
    "Unsqueeze": {"": f"({IMAGE} x) => (float[1,1,8,12,12] y) {{ y = Unsqueeze(x, zero) }}"},
    "Slice": {"": f"({IMAGE} x) => (float[1,8,5,12] y) {{ y = Slice(x, one, six, two_axis) }}"},
    "Split": {"": f"({IMAGE} x) => (float[1,3,12,12] y, float[1,5,12,12] z) {{ y, z = Split<axis=1>(x, parts) }}"},
    "Expand": {"": f"({IMAGE} x) => (float[2,8,12,12] y) {{ y = Expand(x, twice) }}"},
    "Tile": {"": f"({IMAGE} x) => (float[1,16,12,12] y) {{ y = Tile(x, tiles) }}"},
    "Pad": {
        "": f"({IMAGE} x) => (float[1,8,14,14] y) {{ y = Pad(x, border) }}",
        "reflect": f'({IMAGE} x) => (float[1,8,14,14] y) {{ y = Pad<mode="reflect">(x, border) }}',
    },
    "Gather": {"": f"({IMAGE} x) => (float[1,3,12,12] y) {{ y = Gather<axis=1>(x, picks) }}"},
    "GatherND": {"": f"({IMAGE} x) => (float[2,12,12] y) {{ y = GatherND(x, pairs) }}"},
    "GatherElements": {"": "(float[4,32] x) => (float[2,32] y) { y = GatherElements<axis=0>(x, rows2) }"},
    "ScatterND": {"": f"({IMAGE} x) => ({IMAGE} y) {{ y = ScatterND(x, pairs, patch) }}"},
    "DepthToSpace": {"": f"({IMAGE} x) => (float[1,2,24,24] y) {{ y = DepthToSpace<blocksize=2>(x) }}"},
    "SpaceToDepth": {"": f"({IMAGE} x) => (float[1,32,6,6] y) {{ y = SpaceToDepth<blocksize=2>(x) }}"},
    "Resize": {
        "nearest": f"({IMAGE} x) => (float[1,8,24,24] y) "
        '{ y = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", '
        'nearest_mode="floor">(x, , double) }',
        "linear": f'({IMAGE} x) => (float[1,8,24,24] y) {{ y = Resize<mode="linear">(x, , double) }}',
    },
    "ArgMax": {"": f"({ROWS} x) => (int64[1,16,1] y) {{ y = ArgMax<axis=-1>(x) }}"},
    "ArgMin": {"": f"({ROWS} x) => (int64[1,16,1] y) {{ y = ArgMin<axis=-1>(x) }}"},
    "TopK": {"": f"({ROWS} x) => (float[1,16,5] y, int64[1,16,5] z) {{ y, z = TopK(x, five_i) }}"},
    "CumSum": {"": f"({ROWS} x) => ({ROWS} y) {{ y = CumSum(x, one) }}"},
    "Einsum": {
        "": '(float[2,8,16] x, float[2,16,4] z) => (float[2,8,4] y) { y = Einsum<equation="bij,bjk->bik">(x, z) }'
    },
    "Cast": {"": f"({IMAGE} x) => (int32[1,8,12,12] y) {{ y = Cast<to=6>(x) }}"},
    "LSTM": {"": "(float[6,1,32] x) => (float[6,1,1,16] y) { y = LSTM<hidden_size=16>(x, lstm_w, lstm_r, lstm_b) }"},
    "GRU": {"": "(float[6,1,32] x) => (float[6,1,1,16] y) { y = GRU<hidden_size=16>(x, gru_w, gru_r, gru_b) }"},
    "Shape": {"": f"({IMAGE} x) => (int64[4] y) {{ y = Shape(x) }}"},
    "Range": {"": "(float[4] x) => (float[4] y) { r = Range(zero_f, four, one_f) y = Add(r, x) }"},
    "Trilu": {"": f"({ROWS} x) => ({ROWS} y) {{ y = Trilu<upper=0>(x) }}"},
    "GridSample": {"": f"({IMAGE} x) => (float[1,8,6,6] y) {{ y = GridSample(x, grid) }}"},
    **{
        op: {
            "": f"({IMAGE} x, {IMAGE} z) => (bool[1,8,12,12] y) "
            f"{{ a = Greater(x, zero_f) b = Greater(z, zero_f) y = {op}(a, b) }}"
        }
        for op in ("And", "Or", "Xor")
    },
    "OneHot": {"": "(int64[1,12] ids) => (float[1,12,500] y) { y = OneHot(ids, depth, off_on) }"},
    "ScatterElements": {"": "(float[4,32] x) => (float[4,32] y) { y = ScatterElements<axis=0>(x, rows2, patch2) }"},
    "Not": {"": f"({IMAGE} x) => (bool[1,8,12,12] y) {{ c = Greater(x, five) y = Not(c) }}"},
    "Mod": {"": f"({IMAGE} x, {IMAGE} z) => ({IMAGE} y) {{ y = Mod<fmod=1>(x, z) }}"},
    **{op: {"": f"({IMAGE} x) => (float[1,8,1,1] y) {{ y = {op}(x, axes) }}"} for op in _REDUCE},
    **{op: {"": f"({IMAGE} x, {IMAGE} z) => (bool[1,8,12,12] y) {{ y = {op}(x, z) }}"} for op in _COMPARE},
}

_ACTIVATION_OPERAND: dict[str, str] = {
    "MatMul": "(float[1,2,16,32] x, float[1,2,32,16] z) => (float[1,2,16,16] y) { y = MatMul(x, z) }",
    "Gemm": "(float[4,32] x, float[32,16] z) => (float[4,16] y) { y = Gemm(x, z) }",
    "Conv": "(float[1,8,12,12] x, float[16,8,3,3] z) => (float[1,16,12,12] y) { y = Conv<pads=[1,1,1,1]>(x, z) }",
}
"""Both operands are activations; only for operators whose second input may be computed."""

_LONG = "(float[1,16,256] x) => (float[1,16,16] y) { y = MatMul(x, long) }"
"""For blocks: every size up to 256 divides its sums."""

_STEPS = frozenset({"Floor", "Ceil", "Round", "Sign", *_COMPARE})
"""Where a rounding error of the input may cost a whole step: their inputs are numbers that every float type holds."""

_TABLE = "(int64[1,12] ids) => (float[1,12,32] y) { y = Gather(table, ids) }"

_OLD: dict[str, str] = {
    op: f"({IMAGE} x) => (float[1,8,1,1] y) {{ y = {op}<axes=[2,3]>(x) }}" for op in _REDUCE if op != "ReduceSum"
}
"""Below opset 18 the axes are an attribute."""

_OLD_GROUPS = f"({IMAGE} x) => ({IMAGE} y) {{ y = GroupNormalization<num_groups=2>(x, gamma2, bias2) }}"
"""Below opset 21 there is one number per group, not per channel."""


def _noise(*shape: int, scale: float = 0.2) -> np.ndarray:
    seed = zlib.crc32(repr(shape).encode())
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


@lru_cache
def _constants() -> dict[str, np.ndarray]:
    return {
        "conv": _noise(16, 8, 3, 3),
        "conv_odd": _noise(5, 7, 3, 3),
        "conv1d": _noise(16, 8, 3),
        "point": _noise(16, 8, 1, 1),
        "deconv": _noise(8, 16, 3, 3),
        "deconv2": _noise(8, 16, 2, 2),
        "depthwise": _noise(8, 1, 3, 3),
        "matrix": _noise(16, 32),
        "columns": _noise(32, 16),
        "columns_odd": _noise(33, 17),
        "columns2": _noise(1, 32, 16)[0],
        "classes": _noise(16, 10),
        "square": _noise(16, 16, 1, 1),
        "square32": _noise(32, 32),
        "square32b": _noise(1, 32, 32)[0],
        "square32c": _noise(1, 1, 32, 32)[0, 0],
        "point_up": _noise(8, 16, 1, 1),
        "bias10": _noise(10),
        "table": _noise(600, 32, scale=1.0),
        "bias5": _noise(5),
        "bias8": _noise(8),
        "bias16": _noise(16),
        "bias17": _noise(17),
        "row": _noise(32),
        "bias2": _noise(2),
        "gamma2": 1 + np.abs(_noise(2)),
        "gamma8": 1 + np.abs(_noise(8)),
        "gamma32": 1 + _noise(32),
        "slope": np.abs(_noise(8, 1, 1)),
        "choice": _noise(1, 8, 12, 12) > 0,
        "patch2": _noise(2, 32, scale=1.0),
        "off_on": np.array([0, 1], np.float32),
        "long": _noise(256, 16),
        "patch": _noise(2, 12, 12, scale=1.0),
        "grid": np.clip(_noise(1, 6, 6, 2, scale=0.5), -0.9, 0.9),
        "lstm_w": _noise(1, 64, 32),
        "lstm_r": _noise(1, 64, 16),
        "lstm_b": _noise(1, 128),
        "gru_w": _noise(1, 48, 32),
        "gru_r": _noise(1, 48, 16),
        "gru_b": _noise(1, 96),
        **{
            name: np.array(value, np.float32)
            for name, value in {
                "two": 2, "five": 5.657, "low": -1, "high": 1.5, "zero_f": 0, "six_f": 6, "one_f": 1,
                "half": 0.5, "four": 4,
                "root2": 1.4142135, "root8": 2.8284271, "never": -3.4e38, "double": [1, 1, 2, 2],
            }.items()
        },
        **{
            name: np.array(value, np.int64)
            for name, value in {
                "flat": [1, 8, 144], "zero": [0], "one": [1], "six": [6], "two_axis": [2], "parts": [3, 5],
                "twice": [2, 8, 12, 12], "tiles": [1, 2, 1, 1], "border": [0, 0, 1, 1, 0, 0, 1, 1],
                "picks": [0, 3, 5], "pairs": [[0, 1], [0, 3]], "axes": [2, 3], "last": [-1], "inner": [1, 2],
                "five_i": [5], "rows2": np.arange(64).reshape(2, 32) % 4,
                "split_heads": [1, 16, 4, 8], "join_heads": [1, 16, 32], "depth": 500,
            }.items()
        },
    }  # fmt: skip


def forms_of(op: str, opset: int, *, operand: bool = False, table: bool = False, blocks: bool = False) -> list[Form]:
    """The forms of ``op`` in an opset: with constants where it has weights, or of two activations (``operand``).

    ``blocks`` gives a matrix that all sizes of blocks divide, ``table`` the look-up of a constant's rows.
    An operator that nothing is known of is ``y = op(x)``. The list is empty where ``operand`` or ``blocks``
    makes no sense.
    """
    spans = _SPANS.get(op, {})
    if table:
        return [Form(op, _TABLE, "rows of a constant")]
    if blocks:
        return [Form("MatMul", _LONG, "256 rows")] if op == "MatMul" else []
    if operand:
        text = _ACTIVATION_OPERAND.get(op)
        return [] if text is None else [Form(op, text, "of two activations")]
    if opset < 18 and op in _OLD:
        return [Form(op, _OLD[op], "", spans)]
    if opset < 21 and op == "GroupNormalization":
        return [Form(op, _OLD_GROUPS)]
    if op in _TEXTS:
        spans = {"z": (0.0, 0.25)} if op == "Concat" else spans
        return [Form(op, text, name, spans) for name, text in _TEXTS[op].items()]
    if op in _BINARY:
        constant = "two" if op == "Pow" else "five"
        pair = Form(op, f"({IMAGE} x, {IMAGE} z) => ({IMAGE} y) {{ y = {op}(x, z) }}", "of two activations", spans)
        single = Form(op, f"({IMAGE} x) => ({IMAGE} y) {{ y = {op}(x, {constant}) }}", "with a constant", spans)
        return [single] if op == "Pow" else [pair, single]
    return [Form(op, f"({IMAGE} x) => ({IMAGE} y) {{ y = {op}(x) }}", "", spans)]


@lru_cache
def opset_for(op: str, opset: int) -> int:
    """``opset``, or the first one that has ``op``."""
    import onnx

    versions = [schema.since_version for schema in onnx.defs.get_all_schemas_with_history() if schema.name == op]
    return max(opset, min(versions, default=opset))


def build_form(text: str, opset: int) -> ir.Model:
    """The float model of ``text``, with shapes inferred; nodes are named after their first output.

    Raises:
        onnx.parser.ParseError, onnx.shape_inference.InferenceError: the text is no valid graph in this opset.
    """
    import onnx
    from onnx import numpy_helper

    header = f'<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
    proto = onnx.parser.parse_model(f"{header} g {text}")
    body = text.partition("{")[2]
    used = set(re.findall(r"[A-Za-z_]\w*", body))
    arrays = {name: array for name, array in _constants().items() if name in used}
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    for node in proto.graph.node:
        node.name = node.output[0]
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True))
    model.graph.name = "case"
    return model


def draw_inputs(
    model: ir.Model, spans: Mapping[str, tuple[float, float]], count: int, seed: int
) -> list[dict[str, np.ndarray]]:
    """``count`` samples: uniform over an input's span, else normal noise; 0 and 1 for masks, small ids for the rest."""
    from edgeq.graph import input_infos

    rng = np.random.default_rng(seed)
    steps = any(node.op_type in _STEPS for node in model.graph)
    samples = []
    for _ in range(count):
        sample: dict[str, np.ndarray] = {}
        for info in input_infos(model):
            shape = tuple(int(dim) for dim in info.shape if dim is not None)
            if info.name in spans:
                sample[info.name] = rng.uniform(*spans[info.name], shape).astype(info.dtype)
            elif info.dtype.kind == "f":
                noise = rng.standard_normal(shape)
                sample[info.name] = (np.floor(noise * 8) / 8 + 1 / 16 if steps else noise).astype(info.dtype)
            else:
                sample[info.name] = rng.integers(0, 2 if info.name == "mask" else 500, shape).astype(info.dtype)
        samples.append(sample)
    return samples
