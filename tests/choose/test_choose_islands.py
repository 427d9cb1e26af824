"""Which nodes of a float16 graph stay float32: range, digits, tiny constants, and what places or counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from small_models import parse, samples, weights

from edgeq.float16 import with_rounding
from edgeq.metrics import sqnr_db
from edgeq.runtime import run_model
from edgeq.stages.calibrate.peaks import PEAK_SAMPLES, observe_peaks
from edgeq.stages.choose import find_islands
from edgeq.stages.tune.half import to_float16
from edgeq.target import TargetProfile, load_target


@pytest.fixture(scope="module")
def target() -> TargetProfile:
    return load_target("nvidia-cuda")


def islands(text: str, target: TargetProfile, feed: Sequence[dict[str, np.ndarray]] = (), **constants: np.ndarray):
    model = parse(text, **constants)
    return find_islands(model, observe_peaks(model, feed or samples(model)), target)


def test_an_ordinary_network_has_none(target: TargetProfile) -> None:
    text = """g (float[2,64] x) => (float y) { a = MatMul(x, w) b = LayerNormalization(a, s, s) c = Gelu(b)
        m = ReduceMean<keepdims=1>(c) d = Div(c, e) f = Sub(d, m) y = Softmax(f) }"""
    assert not islands(text, target, w=weights(64, 32), s=np.ones(32, np.float32), e=np.float32(1e-2))


@pytest.mark.parametrize(
    ("text", "constants", "kept"),
    [
        ("y = Mul(x, k)", {"k": np.float32(1e5)}, {"y"}),
        ("a = Mul(x, k) b = Add(a, x) y = Div(b, k)", {"k": np.float32(30000)}, {"a", "b", "y"}),
        ("a = Exp(x) y = Add(a, k)", {"k": np.float32(1e-12)}, {"y"}),
        ("y = Div(x, k)", {"k": np.float32([1, 1, 1, 1e-9])}, {"y"}),
        ("y = Mul(x, k)", {"k": np.float32([1, 1, 1, 1e-9])}, set()),
        ("a = Mul(x, k) y = LayerNormalization(a, s)", {"k": np.float32(300), "s": np.ones(4, np.float32)}, {"y"}),
        ("y = CumSum(x, k)", {"k": np.int64(0)}, {"y"}),
        ("a = Mul(x, k) y = ReduceMean<keepdims=0>(a)", {"k": np.float32(12000)}, {"y"}),
        ("a = Mul(x, k) y = Sin(a)", {"k": np.float32(100)}, {"a", "y"}),
        ("a = Mul(x, k) b = Floor(a) y = Cast<to=7>(b)", {"k": np.float32(3)}, {"a", "b", "y"}),
        (
            "p = Pow(x, k) m = ReduceMean<keepdims=1>(p) r = Sqrt(m) y = Div(x, r)",
            {"k": np.float32(2)},
            {"p", "m", "r"},
        ),
        ("p = Mul(x, x) y = Tanh(p)", {}, set()),
    ],
)
def test_what_float16_cannot_hold(
    text: str, constants: dict[str, np.ndarray], kept: set[str], target: TargetProfile
) -> None:
    kind = "int64" if "to=7" in text else "float"
    found = islands(f"g (float[8,4] x) => ({kind} y) {{ {text} }}", target, **constants)
    # The last of a chain that makes integers reads float32, whether it is named or not.
    assert set(found) | ({"y"} & kept) == kept, found
    assert all(len(reason) > 10 for reason in found.values())


def test_an_overflow_on_the_way_is_found_and_mended(target: TargetProfile) -> None:
    model = parse("g (float[2,16] x) => (float y) { a = Mul(x, k) b = Mul(a, k) c = Div(b, k) y = Div(c, k) }",
                  k=np.float32(1000))  # fmt: skip
    feed = samples(model)
    found = find_islands(model, observe_peaks(model, feed), target)
    assert {"b", "c"} <= set(found)
    exact = run_model(model, feed[0])["y"]
    overflowing = with_rounding(to_float16(model.clone(), {}))
    assert not np.isfinite(run_model(overflowing, feed[0])["y"]).all()
    assert sqnr_db(exact, run_model(with_rounding(to_float16(model, found)), feed[0])["y"]) > 55


def test_masks_are_no_reason(target: TargetProfile) -> None:
    text = "g (float[4,4] x, bool[4,4] m) => (float y) { a = Where(m, z, n) b = Add(x, a) y = Softmax(b) }"
    assert not islands(text, target, z=np.float32(0), n=np.float32(-3.4e38))


def test_integers_that_float16_cannot_count(target: TargetProfile) -> None:
    text = "g (int64[4] i, float[4] x) => (float y) { f = Cast<to=1>(i) y = Mul(f, x) }"
    small, large = ({"i": np.array([1, 2, 3, n]), "x": np.ones(4, np.float32)} for n in (2000, 5000))
    assert not islands(text, target, [small])
    assert "exact to 2048" in islands(text, target, [large])["f"]


def test_what_a_provider_runs_in_float32_alone(target: TargetProfile) -> None:
    text = "g (float[4] x) => (float y) { a = Abs(x) y = Pow(a, k) }"
    assert not islands(text, target, k=np.float32(1.5))
    found = islands(text, load_target("ios-npu"), k=np.float32(1.5))
    assert found == {"y": "CoreMLExecutionProvider runs Pow in float32 only"}


def test_peaks_are_the_largest_finite_magnitudes_of_the_first_samples() -> None:
    model = parse("g (float[3] x, int64[3] i) => (float y, int64 j) { y = Mul(x, k) j = Neg(i) }", k=np.float32(-2))
    feed = [{"x": np.float32([n, -n, 0]), "i": np.arange(3)} for n in range(1, PEAK_SAMPLES + 5)]
    assert observe_peaks(model, feed) == {"x": PEAK_SAMPLES, "y": 2 * PEAK_SAMPLES}
    assert [v.name for v in model.graph.outputs] == ["y", "j"]


def test_outputs_without_a_name_are_neither_looked_at_nor_rounded() -> None:
    """An LSTM whose states nobody reads leaves them out."""
    weights = {
        "w": np.full((1, 16, 3), 0.1, np.float32),
        "r": np.full((1, 16, 4), 0.1, np.float32),
    }
    model = parse(
        "g (float[2,1,3] x) => (float[1,1,4] h) { unread, h = LSTM <hidden_size = 4> (x, w, r) }",
        **weights,
    )
    model.graph[0].outputs[0].name = ""
    feed = {"x": np.ones((2, 1, 3), np.float32)}
    assert set(observe_peaks(model, [feed])) == {"x", "h"}
    exact = run_model(model, feed)["h"]
    rounded = run_model(with_rounding(to_float16(model, {})), feed)["h"]
    assert sqnr_db(exact, rounded) > 55
