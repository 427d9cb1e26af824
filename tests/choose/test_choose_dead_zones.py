"""What the readers of a tensor do not tell apart gets no levels."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import parse, quantized, weights

from edgeq.graph import output_infos
from edgeq.metrics import sqnr_db
from edgeq.runtime import run_model
from edgeq.stages.choose.dead_zones import live_range

GATE = "HardSigmoid<alpha=0.25, beta=0.5>"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (f"g = {GATE}(a) y = Mul(a, g)", (-2, np.inf)),
        (f"y = {GATE}(a)", (-2, 2)),
        (f"g = {GATE}(a) h = HardSigmoid<alpha=0.1, beta=0.5>(a) y = Mul(g, h)", (-5, 5)),
        (f"g = {GATE}(a) y = Add(a, g)", (-np.inf, np.inf)),
        (f"g = {GATE}(a) m = Mul(a, g) n = Neg(a) y = Add(m, n)", (-np.inf, np.inf)),
        ("y = Relu(a)", (-np.inf, np.inf)),
    ],
)
def test_where_readers_look(body: str, expected: tuple[float, float]) -> None:
    model = parse(f"g (float[1,4] x) => (float y) {{ a = Neg(x) {body} }}")
    value = model.graph.node(0).outputs[0]
    low, high = live_range(value)
    assert (low, high) == pytest.approx(expected, rel=1e-6)
    # The definition: values beyond the ends change nothing.
    x = np.linspace(-40, 40, 401, dtype=np.float32).reshape(1, -1)[:, :400].reshape(100, 4)
    for row in x:
        there, cut = (run_model(model, {"x": -a[None]})["y"] for a in (row, np.clip(row, low, high).astype(np.float32)))
        np.testing.assert_allclose(there, cut, atol=1e-5)
    assert output_infos(model)


def test_an_output_is_seen_by_the_caller() -> None:
    model = parse(f"g (float[1,4] x) => (float a, float y) {{ a = Neg(x) y = {GATE}(a) }}")
    assert live_range(model.graph.node(0).outputs[0]) == (-np.inf, np.inf)


def test_hard_swish_spends_its_levels_where_it_is_not_zero() -> None:
    text = """g (float[1,3,8,8] x) => (float y) {
        a = Conv<pads=[1,1,1,1]>(x, w) g = HardSigmoid<alpha=0.16666667, beta=0.5>(a) h = Mul(a, g)
        y = Conv<pads=[1,1,1,1]>(h, w2) }"""
    model = parse(text, w=weights(8, 3, 3, 3, scale=2.0), w2=weights(8, 8, 3, 3))
    chain = quantized(model)
    (decision,) = [d for d in chain.plan if d.tensor == "a"]
    assert decision.qparams is not None
    low, high = decision.qparams.real_range
    assert low == pytest.approx(-3, abs=0.1)
    assert high > 8
    assert "cut to -3 .. " in decision.rule
    assert "constant beyond" in decision.rule
    sample = chain.feed[0]
    assert sqnr_db(run_model(model, sample)["y"], chain.run(sample)["y"]) > 30
