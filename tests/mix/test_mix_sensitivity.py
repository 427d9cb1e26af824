"""What each place does to the output: alone as in the whole, in parallel as one after another."""

from __future__ import annotations

import pickle
from dataclasses import replace

import joblib
import numpy as np
import pytest
from small_models import Chain, parse, quantized, samples, weights

from edgeq.affine import fake_quantize
from edgeq.metrics import sqnr_db
from edgeq.runtime import run_model
from edgeq.stages.insert import insert_qdq
from edgeq.stages.mix import Group, activation_sources, measure, sensitivity, weight_sources
from edgeq.stages.mix.sensitivity import Effect

NET = """g (float[1,3,8,8] x) => (float[1,6] y) {
    c1 = Conv<pads=[1,1,1,1]>(x, w1, b1) r1 = Relu(c1) c2 = Conv<pads=[1,1,1,1]>(r1, w2) a = Add(c2, r1) r2 = Relu(a)
    p = GlobalAveragePool(r2) f = Flatten(p) y = Gemm(f, w3) }"""


@pytest.fixture(scope="module")
def chain() -> Chain:
    model = parse(
        NET, w1=weights(8, 3, 3, 3), b1=weights(8), w2=weights(8, 8, 3, 3, seed=1), w3=weights(8, 6, seed=2, scale=1.0)
    )
    return quantized(model, feed=samples(model, 16))


def groups(chain: Chain) -> list[Group]:
    return [Group(str(node.name), str(node.name), (str(node.name),), ()) for node in chain.shaped.graph]


def effects(chain: Chain) -> dict[tuple[str, str], Effect]:
    sources = [*weight_sources(chain.plan, groups(chain)), *activation_sources(chain.plan, chain.layout.owner)]
    found = measure(chain.shaped, chain.plan, sources, chain.feed, insert=insert_qdq)
    return {(source.kind, source.name): effect for source, effect in zip(sources, found, strict=True)}


def test_one_place_alone_is_what_a_model_with_it_alone_quantized_shows(chain: Chain) -> None:
    found = effects(chain)
    decisions = tuple(d for d in chain.plan.decisions if d.consumers == ("c2",) and d.role in ("weight", "bias"))
    assert len(decisions) == 2, "the weight, and a bias that makes up for its mean error"
    alone = insert_qdq(chain.shaped, replace(chain.plan, decisions=decisions, produced=frozenset()))
    pairs = [(run_model(chain.shaped, s)["y"], run_model(alone, s)["y"]) for s in chain.feed]
    expected = sqnr_db(np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs]))
    assert -10 * np.log10(found["weights", "c2"].noise) == pytest.approx(expected, abs=0.05)


def test_trials_that_are_handed_out_carry_all_they_need(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """The form in which they travel to a cluster, whose machines see no file of this one."""
    handed = []

    def run(function, items, **_):  # type: ignore[no-untyped-def]
        handed.extend(items)
        return [function(pickle.loads(pickle.dumps(item))) for item in items]

    here = effects(chain)
    monkeypatch.setattr(sensitivity, "cluster_named", lambda: True)
    monkeypatch.setattr(sensitivity, "_SHARES", 3)
    monkeypatch.setattr(sensitivity, "map_trials", run)
    assert effects(chain) == here
    assert len(handed) == 3
    assert len(here) > 6


@pytest.mark.slow
def test_a_dask_cluster_finds_the_same(chain: Chain) -> None:
    distributed = pytest.importorskip("distributed")
    here = effects(chain)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config("dask"),
    ):
        assert effects(chain) == here


def test_the_runtime_adds_no_rounding_of_its_own() -> None:
    """A DequantizeLinear in front of a MatMul becomes a product that rounds its activations, too, if it may."""
    model = parse("g (float[1,64] x) => (float[1,64] y) { y = MatMul(x, w) }", w=weights(64, 64))
    chain = quantized(model, feed=samples(model, 16))
    (place,) = weight_sources(chain.plan, groups(chain))
    (found,) = measure(chain.shaped, chain.plan, [place], chain.feed, insert=insert_qdq)
    decision = next(d for d in place.decisions if d.role == "weight")
    assert decision.qparams is not None
    rounded = fake_quantize(weights(64, 64), decision.qparams)
    pairs = [(sample["x"] @ weights(64, 64), sample["x"] @ rounded) for sample in chain.feed]
    noise = sum(float(np.square(a - b).sum()) for a, b in pairs) / sum(float(np.square(a).sum()) for a, _ in pairs)
    assert found.noise == pytest.approx(noise, rel=0.05)


def test_tensors_that_share_a_scale_are_one_place(chain: Chain) -> None:
    names = [name for kind, name in effects(chain) if kind == "activations"]
    assert "p" in names
    assert "f" not in names, "Flatten only moves what GlobalAveragePool computed"


def test_the_noise_of_all_places_adds_up_to_that_of_the_whole(chain: Chain) -> None:
    predicted = -10 * np.log10(sum(effect.noise for effect in effects(chain).values()))
    pairs = [(run_model(chain.shaped, s)["y"], chain.run(s)["y"]) for s in chain.feed]
    real = sqnr_db(np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs]))
    assert predicted == pytest.approx(real, abs=3.0)


def test_what_nobody_reads_does_not_count() -> None:
    model = parse(
        "g (float[1,4,8] x, int64[1,4] attention_mask) => (float[1,4,8] y) { y = MatMul(x, w) }", w=weights(8, 8)
    )
    chain = quantized(model)
    sources = weight_sources(chain.plan, groups(chain))
    feeds = [{**sample, "attention_mask": np.array([[1, 1, 0, 0]])} for sample in chain.feed]
    hidden = [{**sample, "x": sample["x"] * np.array([1, 1, 50, 50], np.float32)[None, :, None]} for sample in feeds]
    # Noise of hidden tokens 50 times as large changes nothing.
    (one,), (other,) = (measure(chain.shaped, chain.plan, sources, f, insert=insert_qdq) for f in (feeds, hidden))
    assert one.noise == pytest.approx(other.noise, rel=1e-6)


def test_a_classifier_has_a_divergence_and_it_is_small_where_the_noise_is(chain: Chain) -> None:
    found = [effect for effect in effects(chain).values() if effect.divergence is not None]
    assert len(found) == len(effects(chain))
    order = sorted(found, key=lambda effect: effect.noise)
    assert order[0].divergence < order[-1].divergence  # type: ignore[operator]
    assert all(effect.divergence >= 0 for effect in found)  # type: ignore[operator]
