"""Taylor scores of places next to what measuring them alone finds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from small_models import Chain, parse, quantized, samples, weights

from edgeq.errors import ModelError
from edgeq.stages.insert import insert_qdq
from edgeq.stages.mix import Group, Source, activation_sources, measure, weight_sources

pytest.importorskip("torch")

from edgeq.stages.mix.taylor import score

pytestmark = pytest.mark.torch

NET = """g (float[1,3,8,8] x) => (float[1,6] y) {
    c1 = Conv<pads=[1,1,1,1]>(x, w1, b1) r1 = Relu(c1) c2 = Conv<pads=[1,1,1,1]>(r1, w2) a = Add(c2, r1) r2 = Relu(a)
    c3 = Conv<pads=[1,1,1,1]>(r2, w3) r3 = Relu(c3) c4 = Conv(r3, w4, b4) r4 = Relu(c4)
    p = GlobalAveragePool(r4) f = Flatten(p) m = MatMul(f, w5) y = Add(m, b5) }"""


@pytest.fixture(scope="module")
def chain() -> Chain:
    held = {f"w{n}": weights(8, 3 if n == 1 else 8, 3, 3, seed=n) for n in range(1, 5)}
    held["w2"][3] *= 20  # places of different weight
    model = parse(NET, **held, b1=weights(8), b4=weights(8, seed=7), w5=weights(8, 6, seed=5), b5=weights(6, seed=8))
    return quantized(model, feed=samples(model, 16))


def sources(chain: Chain) -> list[Source]:
    groups = [Group(str(node.name), str(node.name), (str(node.name),), ()) for node in chain.shaped.graph]
    return [*weight_sources(chain.plan, groups), *activation_sources(chain.plan, chain.layout.owner)]


def test_the_order_is_that_of_measuring_and_the_size_about_the_same(chain: Chain) -> None:
    places = sources(chain)
    measured = measure(chain.shaped, chain.plan, places, chain.feed, insert=insert_qdq)
    scored = score(chain.shaped, chain.plan, places, chain.feed, draws=40)
    assert len(places) >= 10
    noise = [np.array([effect.noise for effect in found]) for found in (measured, scored)]
    assert spearmanr(*noise)[0] > 0.9
    told = noise[0] > 1e-9
    assert np.abs(10 * np.log10(noise[1][told] / noise[0][told])).max() < 3
    assert noise[1].sum() == pytest.approx(noise[0].sum(), rel=0.3)
    divergence = [np.array([effect.divergence for effect in found]) for found in (measured, scored)]
    assert spearmanr(*divergence)[0] > 0.9
    assert divergence[1].sum() == pytest.approx(divergence[0].sum(), rel=0.5)


def test_a_corrected_bias_counts(chain: Chain) -> None:
    """Also where the layer had none: the correction takes the mean of the weights' error away."""
    place = next(source for source in sources(chain) if source.name == "c2" and source.kind == "weights")
    assert {decision.role for decision in place.decisions} == {"weight", "bias"}
    bare = Source(place.kind, place.name, tuple(d for d in place.decisions if d.role == "weight"))
    with_bias, without = score(chain.shaped, chain.plan, [place, bare], chain.feed, draws=40)
    exact = measure(chain.shaped, chain.plan, [place, bare], chain.feed, insert=insert_qdq)
    assert (with_bias.noise < without.noise) == (exact[0].noise < exact[1].noise)
    assert with_bias.noise != pytest.approx(without.noise, rel=1e-3)


def test_what_is_computed_for_padding_does_not_count() -> None:
    model = parse(
        "g (float[1,4,8] x, int64[1,4] attention_mask) => (float[1,4,8] y) { y = MatMul(x, w) }", w=weights(8, 8)
    )
    chain = quantized(model)
    groups = [Group("y", str(next(iter(chain.shaped.graph)).name), tuple(str(n.name) for n in chain.shaped.graph), ())]
    places = weight_sources(chain.plan, groups)
    feeds = [{**sample, "attention_mask": np.array([[1, 1, 0, 0]])} for sample in chain.feed]
    hidden = [{**sample, "x": sample["x"] * np.array([1, 1, 50, 50], np.float32)[None, :, None]} for sample in feeds]
    one, other = (score(chain.shaped, chain.plan, places, feed)[0] for feed in (feeds, hidden))
    assert one.noise == pytest.approx(other.noise, rel=1e-5)


def test_what_torch_cannot_run_is_said() -> None:
    model = parse("g (float[1,8] x) => (float[1,8] y) { h = MatMul(x, w) y = Foreign(h) }", w=weights(8, 8))
    with pytest.raises(ModelError, match="cannot run in torch"):
        score(model, None, [], [])  # type: ignore[arg-type]
