"""Small graphs of many kinds, with random weights, to hold the prediction of placement against what providers do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from small_models import parse, weights

__all__ = ["GRAPHS", "Graph", "build"]

CONV = "Conv<pads=[1,1,1,1]>"


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def f(value: float) -> np.ndarray:
    return np.float32(value)


@dataclass(frozen=True)
class Graph:
    """``body`` computes ``outputs`` from ``inputs``; ``constants`` beside the common ones, ``schemes`` beside w8a8."""

    inputs: str
    outputs: str
    body: str
    constants: dict[str, Any] = field(default_factory=dict)
    schemes: tuple[str, ...] = ()
    opset: int = 21


_COMMON: dict[str, Any] = {
    "w3": weights(8, 3, 3, 3, seed=1),
    "w8": weights(8, 8, 3, 3, seed=2),
    "w8b": weights(8, 8, 3, 3, seed=3),
    "wp": weights(8, 8, 1, 1, seed=4),
    "wd": weights(8, 1, 3, 3, seed=5),
    "w16": weights(8, 16, 3, 3, seed=6),
    "wt": weights(8, 8, 2, 2, seed=7),
    "b8": weights(8, seed=8),
    "m": weights(32, 32, seed=9),
    "m2": weights(32, 32, seed=10),
    "up": weights(32, 64, seed=11),
    "down": weights(64, 32, seed=12),
    "b32": weights(32, seed=13),
    "b64": weights(64, seed=14),
    "m8": weights(8, 10, seed=15),
    "m8t": weights(10, 8, seed=16),
    "b10": weights(10, seed=17),
    "gain": 1 + weights(32, seed=18),
    "zero": f(0),
    "half": f(0.5),
    "one": f(1),
    "six": f(6),
    "minus": f(-1),
    "root2": f(np.sqrt(2)),
    "two": f(2),
    "three": f(3),
    "eps": f(1e-5),
    "sixth": f(1 / 6),
    "flat": ints(0, -1),
    "last": ints(-1),
    "hw": ints(2, 3),
    "split2": ints(4, 4),
    "heads": ints(1, 6, 4, 8),
    "joined": ints(1, 6, 32),
    "double": np.array([1, 1, 2, 2], np.float32),
    "padding": ints(0, 0, 1, 1, 0, 0, 1, 1),
}

_IMAGE = "float[1,3,16,16] x"
_ROWS = "float[4,32] x"
_TOKENS = "float[1,6,32] x"
_HEAD = "g = GlobalAveragePool(t) v = Flatten(g) y = Gemm(v, m8, b10)"
_HSWISH = "{0}p = Add({0}, three) {0}c = Clip({0}p, zero, six) {0}d = Div({0}c, sixd) {0}h = Mul({0}, {0}d)"
_NORM = (
    "{0}mu = ReduceMean<keepdims=1>({0}, last) {0}c = Sub({0}, {0}mu) {0}sq = Pow({0}c, two) "
    "{0}var = ReduceMean<keepdims=1>({0}sq, last) {0}ve = Add({0}var, eps) {0}sd = Sqrt({0}ve) "
    "{0}nn = Div({0}c, {0}sd) {0}g = Mul({0}nn, gain) {0}n = Add({0}g, b32)"
)
_ATTENTION = """
    q0 = MatMul(x, m) q1 = Add(q0, b32) q2 = Reshape(q1, heads) q = Transpose<perm=[0,2,1,3]>(q2)
    k0 = MatMul(x, m2) k1 = Add(k0, b32) k2 = Reshape(k1, heads) k = Transpose<perm=[0,2,3,1]>(k2)
    v0 = MatMul(x, m) v2 = Reshape(v0, heads) v = Transpose<perm=[0,2,1,3]>(v2)
    s0 = MatMul(q, k) s1 = Mul(s0, scale)"""
_CONTEXT = """
    c0 = MatMul(p, v) c1 = Transpose<perm=[0,2,1,3]>(c0) c2 = Reshape(c1, joined)
    o0 = MatMul(c2, m2) o = Add(o0, b32)"""
_SCALE = {"scale": f(8**-0.5)}


GRAPHS: dict[str, Graph] = {
    "conv-relu": Graph(
        _IMAGE, "float y", f"a = {CONV}(x, w3, b8) r = Relu(a) b = {CONV}(r, w8) t = Relu(b) {_HEAD}", schemes=("w4a8",)
    ),
    "conv-relu6-residual": Graph(
        _IMAGE,
        "float y",
        f"""a = {CONV}(x, w3, b8) r = Clip(a, zero, six) d = Conv<pads=[1,1,1,1], group=8>(r, wd) e = Clip(d, zero, six)
            p = Conv(e, wp) t = Add(p, r) {_HEAD}""",
    ),
    "residual-relu": Graph(
        _IMAGE,
        "float y",
        f"""a = {CONV}(x, w3) r = Relu(a) b = {CONV}(r, w8) c = Relu(b) d = {CONV}(c, w8b) s = Add(d, r)
            t = Relu(s) {_HEAD}""",
    ),
    "hard-swish-written-out": Graph(
        _IMAGE, "float y", f"a = {CONV}(x, w3) {_HSWISH.format('a')} t = {CONV}(ah, w8) {_HEAD}", {"sixd": f(6)}
    ),
    "hard-swish": Graph(_IMAGE, "float y", f"a = {CONV}(x, w3) h = HardSwish(a) t = {CONV}(h, w8) {_HEAD}"),
    "swish": Graph(_IMAGE, "float y", f"a = {CONV}(x, w3) s = Sigmoid(a) h = Mul(a, s) t = {CONV}(h, w8) {_HEAD}"),
    "leaky-relu": Graph(_IMAGE, "float y", f"a = {CONV}(x, w3) l = LeakyRelu(a) t = {CONV}(l, w8) {_HEAD}"),
    "prelu-elu": Graph(
        _IMAGE,
        "float y",
        f"a = {CONV}(x, w3) l = PRelu(a, slope) b = {CONV}(l, w8) e = Elu(b) t = {CONV}(e, w8b) {_HEAD}",
        {"slope": weights(8, 1, 1, seed=20)},
    ),
    "squeeze-excite": Graph(
        _IMAGE,
        "float y",
        f"""a = {CONV}(x, w3) r = Relu(a) q = GlobalAveragePool(r) e = Conv(q, wp, b8) f = Relu(e) h = Conv(f, wp2)
            s = HardSigmoid(h) t = Mul(r, s) {_HEAD}""",
        {"wp2": weights(8, 8, 1, 1, seed=21)},
    ),
    "resize-nearest-concat": Graph(
        _IMAGE,
        "float y",
        f"""a = {CONV}(x, w3) r = Relu(a) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
            b = {CONV}(p, w8) c = Relu(b)
            u = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(c, , double)
            j = Concat<axis=1>(u, r) t = {CONV}(j, w16) {_HEAD}""",
    ),
    "resize-linear": Graph(
        _IMAGE,
        "float y",
        f"""a = {CONV}(x, w3) u = Resize<mode="linear", coordinate_transformation_mode="half_pixel">(a, , double)
            y = {CONV}(u, w8)""",
    ),
    "conv-transpose": Graph(
        _IMAGE,
        "float y",
        f"a = {CONV}(x, w3) r = Relu(a) u = ConvTranspose<strides=[2,2]>(r, wt, b8) v = Relu(u) y = {CONV}(v, w8)",
    ),
    "pools-and-pad": Graph(
        _IMAGE,
        "float y",
        f"""a = {CONV}(x, w3) p = Pad(a, padding) b = Conv(p, w8) q = AveragePool<kernel_shape=[2,2], strides=[2,2]>(b)
            n = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(q) t = {CONV}(n, w8b) {_HEAD}""",
    ),
    "split-slice-depth": Graph(
        _IMAGE,
        "float y",
        f"""a = {CONV}(x, w3) l, r = Split<axis=1>(a, split2) s = Slice(r, s0, s4, c1) j = Concat<axis=1>(l, s)
            b = {CONV}(j, wide) d = DepthToSpace<blocksize=2>(b) y = {CONV}(d, w2)""",
        {
            "s0": ints(0),
            "s4": ints(4),
            "c1": ints(1),
            "wide": weights(8, 8, 3, 3, seed=22),
            "w2": weights(8, 2, 3, 3, seed=23),
        },
    ),
    "global-pool-by-mean": Graph(
        _IMAGE, "float y", f"a = {CONV}(x, w3) r = Relu(a) g = ReduceMean<keepdims=0>(r, hw) y = Gemm(g, m8, b10)"
    ),
    "clip-odd-bounds": Graph(
        _IMAGE,
        "float y",
        f"a = {CONV}(x, w3) r = Clip(a, half, six) t = {CONV}(r, w8) c = Clip(t, minus, one) y = Conv(c, wp)",
    ),
    "outputs-read-inside": Graph(
        _IMAGE,
        "float a, float r, float y",
        f"a = {CONV}(x, w3) b = {CONV}(a, w8) r = Relu(b) y = {CONV}(r, w8b)",
    ),
    "shared-weights": Graph(
        _IMAGE, "float y", f"a = {CONV}(x, w3) b = {CONV}(a, w8) c = Relu(b) d = {CONV}(c, w8) y = Relu(d)"
    ),
    "conv-batch-norm": Graph(
        _IMAGE,
        "float y",
        f"a = {CONV}(x, w3) n = BatchNormalization(a, one8, b8, b8, one8) r = Relu(n) t = {CONV}(r, w8) {_HEAD}",
        {"one8": np.ones(8, np.float32)},
    ),
    "conv-1d": Graph(
        "float[1,3,40] x",
        "float y",
        "a = Conv<pads=[1,1]>(x, w1) r = Relu(a) b = Conv<strides=[2]>(r, w2) y = Tanh(b)",
        {"w1": weights(8, 3, 3, seed=24), "w2": weights(8, 8, 3, seed=25)},
    ),
    "dynamic-image": Graph(
        "float[batch,3,height,width] x", "float y", f"a = {CONV}(x, w3) r = Relu(a) t = {CONV}(r, w8) {_HEAD}"
    ),
    "mlp-gemm": Graph(
        _ROWS,
        "float y",
        "a = Gemm(x, up, b64) r = Relu(a) b = Gemm(r, down, b32) s = Sigmoid(b) y = Gemm(s, m)",
        schemes=("w8", "w4", "w4a8"),
    ),
    "mlp-trans-b": Graph(
        _ROWS,
        "float y",
        """a = Gemm<transB=1>(x, ut, b64) r = Relu(a) b = Gemm<transB=1>(r, dt) t = Tanh(b)
           y = Gemm<transB=1>(t, m, b32)""",
        {"ut": weights(64, 32, seed=26), "dt": weights(32, 64, seed=27)},
        schemes=("w8",),
    ),
    "matmul-bias-rank-2": Graph(
        _ROWS,
        "float y",
        "a = MatMul(x, m) b = Add(a, b32) c = Tanh(b) d = MatMul(c, m2) y = Add(b32, d)",
        schemes=("w8", "w4"),
    ),
    "matmul-bias-rank-3": Graph(
        _TOKENS,
        "float y",
        "a = MatMul(x, up) b = Add(a, b64) c = Relu(b) d = MatMul(c, down) e = Add(d, b32) y = Add(e, x)",
        schemes=("w8", "w4"),
    ),
    "matmul-bias-rank-4": Graph(
        "float[1,2,6,32] x", "float y", "a = MatMul(x, up) b = Add(a, b64) c = Sigmoid(b) y = MatMul(c, down)"
    ),
    "attention": Graph(_TOKENS, "float y", f"{_ATTENTION} p = Softmax(s1) {_CONTEXT} y = Add(o, x)", _SCALE, ("w8",)),
    "attention-mask": Graph(
        f"{_TOKENS}, int64[1,6] mask",
        "float y",
        f"""fm = Cast<to=1>(mask) im = Sub(one, fm) um = Unsqueeze(im, ax) bm = Mul(um, low)
            {_ATTENTION} s2 = Add(s1, bm) p = Softmax(s2) {_CONTEXT} y = Add(o, x)""",
        {**_SCALE, "low": f(-3.4e38), "ax": ints(1, 2)},
    ),
    "layer-norm": Graph(
        _TOKENS,
        "float y",
        """a = MatMul(x, m) b = Add(a, b32) s = Add(b, x) n = LayerNormalization(s, gain, b32) c = MatMul(n, m2)
           y = Add(c, n)""",
    ),
    "layer-norm-written-out": Graph(
        _TOKENS, "float y", f"a = MatMul(x, m) {_NORM.format('a')} c = MatMul(an, m2) y = Add(c, a)"
    ),
    "gelu-by-erf": Graph(
        _TOKENS,
        "float y",
        """a = MatMul(x, up) b = Add(a, b64) d = Div(b, root2) e = Erf(d) p = Add(e, one) u = Mul(b, p) g = Mul(u, half)
           y = MatMul(g, down)""",
    ),
    "gelu-by-tanh": Graph(
        _TOKENS,
        "float y",
        """a = MatMul(x, up) b = Add(a, b64) c = Pow(b, three) d = Mul(c, k1) e = Add(b, d) h = Mul(e, k2) t = Tanh(h)
           p = Add(t, one) u = Mul(b, p) g = Mul(u, half) y = MatMul(g, down)""",
        {"k1": f(0.044715), "k2": f(np.sqrt(2 / np.pi))},
    ),
    "gelu-operator": Graph(_TOKENS, "float y", "a = MatMul(x, up) g = Gelu(a) y = MatMul(g, down)"),
    "embedding": Graph(
        "int64[1,6] ids",
        "float y",
        """e = Gather(table, ids) p = Add(e, position) n = LayerNormalization(p, gain, b32) a = MatMul(n, m)
           b = Add(a, b32) t = Tanh(b) y = MatMul(t, m2)""",
        {"table": weights(1000, 32, seed=28), "position": weights(1, 6, 32, seed=29)},
        schemes=("w8", "w4"),
    ),
    "gru": Graph(
        "float[5,1,32] x",
        "float y",
        "h, last_h = GRU<hidden_size=32>(x, gw, gr, gb) s = Squeeze(h, c1) a = MatMul(s, m) y = Add(a, b32)",
        {
            "gw": weights(1, 96, 32, seed=30),
            "gr": weights(1, 96, 32, seed=31),
            "gb": weights(1, 192, seed=32),
            "c1": ints(1),
        },
    ),
    "conv-lstm": Graph(
        "float[1,32,20] x",
        "float y",
        """a = Conv<pads=[1,1]>(x, cw, b32) r = Relu(a) t = Transpose<perm=[2,0,1]>(r)
           h, lh, lc = LSTM<hidden_size=32>(t, lw, lr, lb) s = Squeeze(h, c1) z = Relu(s) o = MatMul(z, m)
           y = Sigmoid(o)""",
        {
            "cw": weights(32, 32, 3, seed=33),
            "lw": weights(1, 128, 32, seed=34),
            "lr": weights(1, 128, 32, seed=35),
            "lb": weights(1, 256, seed=36),
            "c1": ints(1),
        },
    ),
    "dynamic-tokens": Graph(
        "float[batch,length,32] x",
        "float y",
        """s = Shape(x) n = Gather(s, i1) b1 = Gather(s, i0) q = Concat<axis=0>(b1, n, tail)
           a = MatMul(x, m) b = Add(a, b32) h = Reshape(b, q) t = Transpose<perm=[0,2,1,3]>(h) p = Softmax(t)
           u = Transpose<perm=[0,2,1,3]>(p) z = Reshape(u, keep) y = MatMul(z, m2)""",
        {"i0": ints(0), "i1": ints(1), "tail": ints(4, 8), "keep": ints(0, 0, -1)},
    ),
    "residual-rank-2": Graph(
        _ROWS,
        "float y",
        "a = MatMul(x, m) b = Add(a, x) c = Tanh(b) d = MatMul(c, m2) e = Add(c, d) f = Elu(e) y = Gemm(f, m)",
        schemes=("w8",),
    ),
    "mixed-elementwise": Graph(
        _TOKENS,
        "float y",
        """a = MatMul(x, m) b = Sub(a, b32) c = Mul(b, gain) d = Exp(c) e = Div(b, d) h = Max(e, b) k = Neg(h)
           l = Abs(k) s = Sqrt(l) y = MatMul(s, m2)""",
    ),
    "where-expand": Graph(
        f"{_TOKENS}, bool[1,6,1] mask", "float y", "a = MatMul(x, m) w = Where(mask, a, minus) y = MatMul(w, m2)"
    ),
    "comparisons": Graph(
        _TOKENS,
        "float y, int64 i",
        "a = MatMul(x, m) k = Greater(a, zero) c = Cast<to=1>(k) y = Mul(a, c) i = ArgMax<axis=2>(a)",
    ),
    "instance-norm": Graph(
        _IMAGE,
        "float y",
        f"a = {CONV}(x, w3) n = InstanceNormalization(a, one8, b8) r = Relu(n) y = {CONV}(r, w8)",
        {"one8": np.ones(8, np.float32)},
    ),
    "two-heads": Graph(
        _IMAGE,
        "float y, float z",
        f"""a = {CONV}(x, w3) r = Relu(a) b = {CONV}(r, w8) y = Sigmoid(b) c = {CONV}(r, w8b)
            f = Flatten(c) z = Softmax(f)""",
    ),
    "channels-last": Graph(
        "float[1,16,16,3] x",
        "float y",
        f"""i = Transpose<perm=[0,3,1,2]>(x) a = {CONV}(i, w3) r = Relu(a) b = {CONV}(r, w8)
            y = Transpose<perm=[0,2,3,1]>(b)""",
    ),
    "detection-heads": Graph(
        _IMAGE,
        "float boxes, float scores, int64 best",
        f"""a = {CONV}(x, w3) r = Relu(a) b = {CONV}(r, w8) bt = Transpose<perm=[0,2,3,1]>(b) boxes = Reshape(bt, rows8)
            c = {CONV}(r, w8b) ct = Transpose<perm=[0,2,3,1]>(c) cr = Reshape(ct, rows8) scores = Sigmoid(cr)
            best = ArgMax<axis=1>(c)""",
        {"rows8": ints(1, 256, 8)},
    ),
    "moves-between-floats": Graph(
        _IMAGE,
        "float y",
        f"""a = {CONV}(x, w3) h = Elu(a) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(h) b = {CONV}(p, w8) e = Elu(b)
            t = Transpose<perm=[0,2,3,1]>(e) l = Flatten(t) s = Slice(l, s0, s4, c1) u = Unsqueeze(s, c1) y = Exp(u)""",
        {"s0": ints(0), "s4": ints(4), "c1": ints(1)},
    ),
    "pooled-token": Graph(
        _TOKENS,
        "float y",
        """a = MatMul(x, m) n = LayerNormalization(a, gain, b32) g = Gather<axis=1>(n, first) p = Gemm(g, m2, b32)
           y = Tanh(p)""",
        {"first": np.array(0, np.int64)},
    ),
    "channel-attention": Graph(
        _IMAGE,
        "float y",
        f"""a = {CONV}(x, w3) r = Relu(a) s = Reshape(r, rows) t = Transpose<perm=[0,2,1]>(s) p = MatMul(s, t)
            n = Softmax(p) o = MatMul(n, s) u = Reshape(o, image) y = {CONV}(u, w8)""",
        {"rows": ints(1, 8, 256), "image": ints(1, 8, 16, 16)},
    ),
}


def build(name: str) -> ir.Model:
    """The float model of one of ``GRAPHS``."""
    graph = GRAPHS[name]
    used = {key: value for key, value in {**_COMMON, **graph.constants}.items() if key in _words(graph.body)}
    return parse(f"g ({graph.inputs}) => ({graph.outputs}) {{ {graph.body} }}", graph.opset, **used)


def _words(text: str) -> set[str]:
    return set("".join(c if c.isalnum() or c == "_" else " " for c in text).split())
