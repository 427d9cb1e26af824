"""A small network with branches, and its plan: what the tests of refining share."""

from __future__ import annotations

from functools import cache

import numpy as np
from small_models import Chain, parse, quantized, samples, weights

from edgeq.qtypes import Decision, QuantPlan
from edgeq.stages.insert import insert_qdq
from edgeq.stages.refine import Refined, refine

NETWORK = """g (float[1,3,12,12] x) => (float[1,24] y) {
    a = Conv <pads = [1,1,1,1]> (x, w0, b0)
    ar = Relu (a)
    d = Conv <pads = [1,1,1,1], group = 8> (ar, w1, b1)
    dr = Clip (d, low, high)
    p = Conv (dr, w2, b2)
    e = Conv <pads = [1,1,1,1]> (p, w3, b3)
    er = Relu (e)
    f = Conv (er, w4, b4)
    s = Add (p, f)
    m = MaxPool <kernel_shape = [2,2], strides = [2,2]> (s)
    g = Conv <strides = [2,2]> (m, w5, b5)
    v = Flatten (g)
    y = Gemm (v, w6, b6)
}"""


@cache
def network(count: int = 32, scheme: str = "w8a8", target: str = "linux-x64") -> Chain:
    """Quantized with a few samples, which leave something to refine."""
    shapes = {
        "w0": (8, 3, 3, 3),
        "w1": (8, 1, 3, 3),
        "w2": (6, 8, 1, 1),
        "w3": (12, 6, 3, 3),
        "w4": (6, 12, 1, 1),
        "w5": (4, 6, 1, 1),
        "w6": (36, 24),
    }
    constants = {name: weights(*shape, seed=i, scale=0.4) for i, (name, shape) in enumerate(shapes.items())}
    sizes = (8, 8, 6, 12, 6, 4, 24)
    constants.update({f"b{i}": weights(size, seed=20 + i) for i, size in enumerate(sizes)})
    model = parse(NETWORK, low=np.float32(0), high=np.float32(6), **constants)
    return quantized(model, target, scheme, feed=samples(model, count, seed=1))


@cache
def plain(scheme: str = "w8a8", target: str = "linux-x64") -> Refined:
    """The network, refined without any options."""
    return refined(network(scheme=scheme, target=target))


def refined(chain: Chain, **options: object) -> Refined:
    given = {"target": chain.target, "insert": insert_qdq, **options}
    return refine(chain.shaped, chain.plan, chain.feed, **given)  # type: ignore[arg-type]


def identical(one: QuantPlan, other: QuantPlan) -> bool:
    """Whether two plans hold the same decisions, to the bit."""
    arrays = one.weights.keys() == other.weights.keys() and all(
        np.array_equal(one.weights[name], other.weights[name]) for name in one.weights
    )
    return arrays and [_key(d) for d in one] == [_key(d) for d in other]


def _key(decision: Decision) -> tuple[object, ...]:
    q = decision.qparams
    numbers = None if q is None else (q.scale.tobytes(), q.zero_point.tobytes(), q.spec)
    return decision.tensor, decision.role, decision.consumers, decision.shares, decision.skip_reason, numbers
