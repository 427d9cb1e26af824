"""Small blocks of networks as float models: what goes wrong between operators, not in one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BLOCKS", "Block"]

_IMAGE, _WIDE, _ROWS = "float[1,8,12,12]", "float[1,16,12,12]", "float[1,16,32]"


@dataclass(frozen=True)
class Block:
    """A float graph in ONNX's textual form; constants come from the table in ``edgeq.checks.forms``."""

    name: str
    text: str
    spans: Mapping[str, tuple[float, float]] = field(default_factory=dict)


BLOCKS: tuple[Block, ...] = (
    Block(
        "Conv + Relu",
        f"({_IMAGE} x) => ({_WIDE} y) {{ c = Conv<pads=[1,1,1,1]>(x, conv, bias16) y = Relu(c) }}",
    ),
    Block(
        "Conv + Clip(0, 6)",
        f"({_IMAGE} x) => ({_WIDE} y) {{ c = Conv<pads=[1,1,1,1]>(x, conv, bias16) y = Clip(c, zero_f, six_f) }}",
    ),
    Block(
        "Conv + Sigmoid * x (SiLU)",
        f"({_IMAGE} x) => ({_WIDE} y) {{ c = Conv<pads=[1,1,1,1]>(x, conv, bias16) s = Sigmoid(c) y = Mul(c, s) }}",
    ),
    Block(
        "MatMul + bias",
        f"({_ROWS} x) => (float[1,16,16] y) {{ m = MatMul(x, columns) y = Add(m, bias16) }}",
    ),
    Block(
        "MatMul + bias + Relu",
        f"({_ROWS} x) => (float[1,16,16] y) {{ m = MatMul(x, columns) a = Add(m, bias16) y = Relu(a) }}",
    ),
    Block(
        "Gemm transB + Relu + Gemm",
        "(float[4,32] x) => (float[4,32] y) "
        "{ g = Gemm<transB=1>(x, matrix, bias16) r = Relu(g) y = Gemm(r, matrix, row) }",
    ),
    Block(
        "residual Add + Relu",
        f"({_IMAGE} x) => ({_IMAGE} y) "
        "{ c = Conv<pads=[1,1,1,1], group=8>(x, depthwise, bias8) a = Add(c, x) y = Relu(a) }",
    ),
    Block(
        "depthwise separable Conv",
        f"({_IMAGE} x) => ({_WIDE} y) "
        "{ d = Conv<pads=[1,1,1,1], group=8>(x, depthwise, bias8) r = Clip(d, zero_f, six_f) "
        "y = Conv(r, point, bias16) }",
    ),
    Block(
        "squeeze and excite",
        f"({_IMAGE} x) => ({_IMAGE} y) "
        "{ c = Conv<pads=[1,1,1,1], group=8>(x, depthwise, bias8) p = GlobalAveragePool(c) "
        "d = Conv(p, point, bias16) r = Relu(d) u = Conv(r, point_up, bias8) s = HardSigmoid(u) y = Mul(c, s) }",
    ),
    Block(
        "Concat of different scales",
        f"({_IMAGE} x, {_IMAGE} z) => (float[1,32,12,12] y) "
        "{ a = Conv<pads=[1,1,1,1]>(x, conv, bias16) b = Conv<pads=[1,1,1,1]>(z, conv, bias16) "
        "y = Concat<axis=1>(a, b) }",
        {"z": (0.0, 0.2)},
    ),
    Block(
        "Resize + Concat + Conv",
        f"({_IMAGE} x, float[1,8,24,24] z) => (float[1,16,24,24] y) "
        '{ c = Conv<pads=[1,1,1,1], group=8>(x, depthwise, bias8) r = Resize<mode="nearest", '
        'coordinate_transformation_mode="asymmetric", nearest_mode="floor">(c, , double) '
        "d = Conv<pads=[1,1,1,1], group=8>(z, depthwise, bias8) k = Concat<axis=1>(r, d) y = Conv(k, square, bias16) }",
    ),
    Block(
        "Conv + MaxPool + Flatten + Gemm",
        f"({_IMAGE} x) => (float[1,10] y) "
        "{ c = Conv<pads=[1,1,1,1]>(x, conv, bias16) r = Relu(c) p = MaxPool<kernel_shape=[12,12]>(r) "
        "f = Flatten(p) y = Gemm(f, classes, bias10) }",
    ),
    Block(
        "ConvTranspose + Relu",
        f"({_IMAGE} x) => (float[1,16,24,24] y) "
        "{ c = ConvTranspose<strides=[2,2], kernel_shape=[2,2]>(x, deconv2, bias16) y = Relu(c) }",
    ),
    Block(
        "attention with a mask",
        f"({_ROWS} x, int64[1,16] mask) => ({_ROWS} y) "
        "{ q = MatMul(x, square32) k = MatMul(x, square32b) v = MatMul(x, square32c) "
        "qh = Reshape(q, split_heads) kh = Reshape(k, split_heads) vh = Reshape(v, split_heads) "
        "qt = Transpose<perm=[0,2,1,3]>(qh) kt = Transpose<perm=[0,2,3,1]>(kh) vt = Transpose<perm=[0,2,1,3]>(vh) "
        "s = MatMul(qt, kt) d = Div(s, root8) u = Unsqueeze(mask, inner) m = Cast<to=1>(u) n = Sub(one_f, m) "
        "f = Mul(n, never) a = Add(d, f) p = Softmax<axis=-1>(a) o = MatMul(p, vt) "
        "t = Transpose<perm=[0,2,1,3]>(o) j = Reshape(t, join_heads) y = MatMul(j, square32) }",
    ),
    Block(
        "LayerNorm + MatMul + Gelu",
        f"({_ROWS} x) => (float[1,16,16] y) "
        "{ l = LayerNormalization<axis=-1>(x, gamma32, row) m = MatMul(l, columns) a = Add(m, bias16) "
        "e = Div(a, root2) r = Erf(e) o = Add(r, one_f) h = Mul(a, o) y = Mul(h, half) }",
    ),
    Block(
        "embeddings + LayerNorm",
        "(int64[1,12] ids) => (float[1,12,16] y) "
        "{ e = Gather(table, ids) l = LayerNormalization<axis=-1>(e, gamma32, row) y = MatMul(l, columns) }",
    ),
    Block(
        "Sigmoid and Tanh gates",
        f"({_ROWS} x) => (float[1,16,16] y) "
        "{ a = MatMul(x, columns) b = MatMul(x, columns2) s = Sigmoid(a) t = Tanh(b) y = Mul(s, t) }",
    ),
    Block("MatMul + Tanh", f"({_ROWS} x) => (float[1,16,16] y) {{ m = MatMul(x, columns) y = Tanh(m) }}"),
    Block(
        "MatMul + Softmax",
        f"({_ROWS} x) => (float[1,16,16] y) {{ m = MatMul(x, columns) y = Softmax<axis=-1>(m) }}",
    ),
)
