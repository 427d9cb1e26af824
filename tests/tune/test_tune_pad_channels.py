"""Padding of input channels: the same function, only where the kernel is wrong."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import parse, weights

from edgeq.qtypes import Scheme
from edgeq.runtime import run_model
from edgeq.stages.tune import shape_float
from edgeq.target import load_target


def shaped(
    channels: int, outputs: int = 8, attributes: str = "pads = [1, 1]", kernel: int = 3, target: str = "web-gpu"
):
    text = f"g (float[1,{channels},10] x) => (float y) {{ y = Conv <{attributes}> (x, w, b) }}"
    model = parse(text, opset=18, w=weights(outputs, channels, kernel), b=weights(outputs))
    return model, shape_float(model, load_target(target), Scheme.parse("fp16" if target == "web-gpu" else "w8a8"))


@pytest.mark.parametrize("channels", [6, 9, 33, 129])
def test_multiples_of_three_are_padded_to_multiples_of_four(channels: int) -> None:
    model, made = shaped(channels)
    assert [node.op_type for node in made.graph] == ["Pad", "Conv"]
    assert made.graph[1].inputs[1].shape[1] == made.graph[0].outputs[0].shape[1] == -(-channels // 4) * 4
    feed = {"x": weights(1, channels, 10)}
    assert run_model(made, feed)["y"] == pytest.approx(run_model(model, feed)["y"], abs=1e-5)


@pytest.mark.parametrize(
    "case",
    [
        {"channels": 3},
        {"channels": 12},
        {"channels": 130},
        {"channels": 33, "outputs": 6},
        {"channels": 33, "kernel": 1, "attributes": "strides = [1]"},
        {"channels": 33, "target": "linux-x64"},
    ],
)
def test_what_is_right_stays_as_it_is(case: dict[str, object]) -> None:
    assert [node.op_type for node in shaped(**case)[1].graph] == ["Conv"]


def test_the_real_provider_computes_the_padded_form(tmp_path) -> None:
    from edgeq.graph import save_model
    from edgeq.metrics import sqnr_db
    from edgeq.sandbox import Task
    from edgeq.sandbox.registry import find_sandbox

    sandbox = find_sandbox("webgpu")
    if why := sandbox.missing():
        pytest.skip(why)
    model, made = shaped(33)
    save_model(made, tmp_path / "padded.onnx")
    feed = {"x": np.random.default_rng(0).standard_normal((1, 33, 10)).astype(np.float32)}
    (found,) = sandbox.run([Task(tmp_path / "padded.onnx", load_target("web-gpu").provider, (feed,))])
    assert sqnr_db(run_model(model, feed)["y"], found.outputs[0]["y"]) > 100
