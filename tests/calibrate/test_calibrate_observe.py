from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from calibrate_models import CONV, parse

from edgeq import graph, runtime
from edgeq.errors import CalibrationError
from edgeq.qtypes import TensorStats
from edgeq.stages.calibrate import observe
from edgeq.stages.calibrate.feeds import Feed, load_feed
from edgeq.stages.calibrate.observe import calibrate

NAMES = ["image", "conv", "relu", "out"]


def feed_of(model: ir.Model, data: Any, **options: Any) -> Feed:
    return load_feed(data, graph.input_infos(model), **options)


def assert_identical(left: dict[str, TensorStats], right: dict[str, TensorStats]) -> None:
    assert list(left) == list(right)
    for name, stats in left.items():
        for field in stats.__dataclass_fields__:
            a, b = getattr(stats, field), getattr(right[name], field)
            if field == "histogram":
                assert (a.width, a.start) == (b.width, b.start)
                assert a.counts.tobytes() == b.counts.tobytes()
            elif isinstance(a, np.ndarray):
                assert a.tobytes() == b.tobytes(), (name, field)
            else:
                assert a == b, (name, field)


def test_statistics_are_those_of_the_tensors(conv: ir.Model, pictures: list[np.ndarray]) -> None:
    before = graph.to_bytes(conv)
    stats = calibrate(conv, feed_of(conv, pictures), NAMES, channel_axis={"conv": 1})
    images = np.concatenate(pictures).astype(np.float64)
    weight = graph.constant_array(conv.graph.initializers["w"])
    assert weight is not None
    wanted = np.einsum("nchw,oc->nohw", images, weight[:, :, 0, 0])
    assert list(stats) == NAMES
    assert stats["image"].lo == images.min()
    assert stats["conv"].hi == pytest.approx(wanted.max(), rel=1e-6)
    np.testing.assert_allclose(stats["conv"].channel_lo, wanted.min(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(stats["conv"].channel_mean, wanted.mean(axis=(0, 2, 3)), atol=1e-5)
    assert stats["relu"].lo == 0
    assert stats["relu"].hi == stats["conv"].hi
    assert stats["relu"].channel_lo is None
    assert stats["out"].hi <= 1
    assert stats["conv"].batches == 12
    assert stats["conv"].values == 12 * 4 * 64
    assert graph.to_bytes(conv) == before


def test_graph_inputs_alone_need_no_outputs(conv: ir.Model, pictures: list[np.ndarray]) -> None:
    assert calibrate(conv, feed_of(conv, pictures), ["image"])["image"].values == 12 * 192


@pytest.mark.parametrize(
    ("name", "text"),
    [("w", "is a constant"), ("nonsense", "no tensor 'nonsense'"), ("shape", "only float tensors")],
)
def test_tensors_that_cannot_be_observed(name: str, text: str, pictures: list[np.ndarray]) -> None:
    model = parse(CONV.format(batch="N").replace("relu = Relu", "shape = Shape(image) relu = Relu").replace("} }", "}"))
    node = next(n for n in model.graph if n.op_type == "Shape")
    node.outputs[0].dtype = ir.DataType.INT64
    with pytest.raises(CalibrationError, match=text):
        calibrate(model, feed_of(model, pictures), [name])


def test_nan_names_tensor_node_and_sample(pictures: list[np.ndarray]) -> None:
    model = parse(CONV.format(batch="N").replace("Relu(conv)", "Log(conv)"))
    with pytest.raises(CalibrationError) as caught:
        calibrate(model, feed_of(model, pictures), ["conv", "relu"])
    assert "tensor 'relu'" in str(caught.value)
    assert "Log" in str(caught.value)
    assert "NaN for item 0" in str(caught.value)


def test_infinity_is_an_overflow(conv: ir.Model, pictures: list[np.ndarray]) -> None:
    model = parse(CONV.format(batch="N").replace("Relu(conv)", "Exp(conv)"))
    samples = [pictures[0], np.full((1, 3, 8, 8), 1000, np.float32)]
    with pytest.raises(CalibrationError, match=r"'relu' \(output of node .*, Exp\) holds \+infinity for item 1"):
        calibrate(model, feed_of(model, samples), ["relu"])


def test_a_finite_mask_does_not_break_the_histogram() -> None:
    model = parse("""
    <ir_version: 9, opset_import: ["" : 17]>
    g (float[N,4] x, float[N,4] mask) => (float[N,4] out)
    <float big = {-3.4028235e38}> { hide = Mul(mask, big)  sum = Add(x, hide)  out = Softmax(sum) }
    """)
    samples = [{"x": np.array([[1, -2, 3, 4]], np.float32), "mask": np.array([[0, 0, 0, 1]], np.float32)}] * 3
    stats = calibrate(model, feed_of(model, samples), ["hide", "sum", "out"])
    assert stats["sum"].masked == 3
    assert stats["sum"].lo < -3.4e38
    assert stats["sum"].histogram.counts.sum() == 9
    assert stats["sum"].histogram.centers.min() > -2.1
    assert stats["out"].masked == 0


def test_a_model_that_fails_names_the_sample() -> None:
    model = parse("""
    <ir_version: 9, opset_import: ["" : 17]>
    g (float[N,M] x) => (float[N,K] out) <float[3,2] w = {1,2,3,4,5,6}> { out = MatMul(x, w) }
    """)
    samples = [np.ones((1, 3), np.float32), np.ones((1, 5), np.float32)]
    with pytest.raises(CalibrationError, match="the model fails on item 1"):
        calibrate(model, feed_of(model, samples), ["out"])


class Interrupting:
    """A progress that raises Ctrl-C after some samples, where a user's Ctrl-C would arrive."""

    def __init__(self, after: int) -> None:
        self.left = after

    def start(self, step: str, total: int | None) -> None:
        assert (step, total) == ("calibrate", 12)

    def advance(self, units: int = 1) -> None:
        self.left -= units
        if self.left <= 0:
            raise KeyboardInterrupt

    def finish(self) -> None:
        pass


def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    runs: list[int] = []
    original = Feed.samples

    def samples(self: Feed, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        for sample in original(self, start):
            runs.append(1)
            yield sample

    monkeypatch.setattr(Feed, "samples", samples)
    return runs


@pytest.mark.parametrize("after", [1, 5, 11])
def test_an_interrupted_calibration_resumes_bit_for_bit(
    after: int, conv: ir.Model, pictures: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = {"conv": 1, "image": 1}
    whole = calibrate(conv, feed_of(conv, pictures), NAMES, channel_axis=axes)
    with pytest.raises(KeyboardInterrupt):
        calibrate(conv, feed_of(conv, pictures), NAMES, channel_axis=axes, cache=tmp_path, progress=Interrupting(after))
    assert len(list(tmp_path.iterdir())) == 1
    runs = count_runs(monkeypatch)
    resumed = calibrate(conv, feed_of(conv, pictures), NAMES, channel_axis=axes, cache=tmp_path)
    assert len(runs) == 12 - after
    assert_identical(whole, resumed)


def test_a_sample_folded_in_part_is_not_saved(
    conv: ir.Model, pictures: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = calibrate(conv, feed_of(conv, pictures), NAMES)
    original, calls = observe.Accumulator.update, []

    def update(self: observe.Accumulator, array: np.ndarray, index: int = 0) -> None:
        calls.append(1)
        if len(calls) == 4 * 7 + 2:
            raise KeyboardInterrupt
        original(self, array, index)

    monkeypatch.setattr(observe.Accumulator, "update", update)
    with pytest.raises(KeyboardInterrupt):
        calibrate(conv, feed_of(conv, pictures), NAMES, cache=tmp_path)
    monkeypatch.undo()
    assert_identical(whole, calibrate(conv, feed_of(conv, pictures), NAMES, cache=tmp_path))


def test_checkpoints_survive_a_kill(
    conv: ir.Model, pictures: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe, "_CHECKPOINT_SECONDS", -1.0)
    seen: list[int] = []
    original = observe.save_state
    monkeypatch.setattr(
        observe, "save_state", lambda path, samples, state: (seen.append(samples), original(path, samples, state))
    )
    calibrate(conv, feed_of(conv, pictures), NAMES, cache=tmp_path)
    assert seen == [*range(1, 13), 12]


def test_a_cache_hit_does_not_run_the_model(
    conv: ir.Model, pictures: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = calibrate(conv, feed_of(conv, pictures), NAMES, cache=tmp_path)
    content = [file.read_bytes() for file in tmp_path.iterdir()]
    monkeypatch.setattr(runtime.ort, "InferenceSession", lambda *_, **__: pytest.fail("the model was run"))
    assert_identical(first, calibrate(conv, feed_of(conv, pictures), NAMES, cache=tmp_path))
    assert [file.read_bytes() for file in tmp_path.iterdir()] == content


def test_anything_that_matters_changes_the_key(conv: ir.Model, pictures: list[np.ndarray], tmp_path: Path) -> None:
    calibrate(conv, feed_of(conv, pictures), ["conv"], cache=tmp_path)
    calibrate(conv, feed_of(conv, pictures[:-1]), ["conv"], cache=tmp_path)
    calibrate(conv, feed_of(conv, pictures), ["relu"], cache=tmp_path)
    calibrate(conv, feed_of(conv, pictures), ["conv"], channel_axis={"conv": 1}, cache=tmp_path)
    calibrate(conv, feed_of(conv, pictures, batch=2), ["conv"], cache=tmp_path)
    graph.set_initializer(conv, "w", np.ones((4, 3, 1, 1), np.float32))
    calibrate(conv, feed_of(conv, pictures), ["conv"], cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "header"])
def test_a_damaged_cache_is_computed_again(
    damage: str, conv: ir.Model, pictures: list[np.ndarray], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = calibrate(conv, feed_of(conv, pictures), NAMES, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    data = bytearray(good := file.read_bytes())
    data[-9] ^= 1
    header = good[:30] + b"}" + good[31:]
    file.write_bytes({"truncate": good[:-100], "flip": bytes(data), "empty": b"", "header": header}[damage])
    with caplog.at_level(logging.WARNING):
        again = calibrate(conv, feed_of(conv, pictures), NAMES, cache=tmp_path)
    assert "damaged" in caplog.text
    assert_identical(first, again)
    assert file.read_bytes() == good


def test_an_unwritable_cache_costs_a_warning(
    conv: ir.Model, pictures: list[np.ndarray], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        stats = calibrate(conv, feed_of(conv, pictures), ["conv"], cache=tmp_path / "file" / "cache")
    assert stats["conv"].batches == 12
    assert "cache" in caplog.text


MEMORY = """
import resource, sys
import numpy as np
sys.path.insert(0, {tests!r})
from calibrate_models import CONV, parse
from edgeq import graph
from edgeq.stages.calibrate.feeds import load_feed
from edgeq.stages.calibrate.observe import calibrate
model = parse(CONV.format(batch="N").replace("8,8", "256,256"))
def samples():
    rng = np.random.default_rng(0)
    for _ in range(int(sys.argv[1])):
        yield rng.random((1, 3, 256, 256), np.float32)
calibrate(model, load_feed(samples(), graph.input_infos(model)), ["image", "conv", "relu", "out"])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_samples() -> None:
    code = textwrap.dedent(MEMORY).format(tests=str(Path(__file__).parent))
    few, many = (
        int(subprocess.run([sys.executable, "-c", code, n], capture_output=True, text=True, check=True).stdout)
        for n in ("20", "200")
    )
    assert many - few < 10_000, f"{few} KB for 20 samples, {many} KB for 200"  # 180 samples are 140 MB


@pytest.mark.parametrize("count_padding", [False, True])
def test_padding_is_left_out_unless_it_matters(count_padding: bool) -> None:
    model = parse("""
        <ir_version: 10, opset_import: ["": 21]>
        g (float[1, 4, 2] hidden, int64[1, 4] attention_mask) => (float[1, 4, 2] out) { out = Neg(hidden) }
    """)
    sample = {
        "hidden": np.array([[[1, 2], [3, 4], [50, 60], [-70, 80]]], np.float32),
        "attention_mask": np.array([[1, 1, 0, 0]]),
    }
    stats = calibrate(model, feed_of(model, [sample]), ["hidden", "out"], count_padding=count_padding)
    assert (stats["hidden"].lo, stats["hidden"].hi) == ((-70, 80) if count_padding else (1, 4))
    assert stats["out"].lo == (-80 if count_padding else -4)
