"""A Relu or Clip that only rounding and saturation repeat is left out, and no number changes."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from small_models import Chain, parse, quantized, weights

from edgeq.graph import constant_array, set_initializer
from edgeq.stages.tune.drop_absorbed import drop_absorbed
from edgeq.target import TargetProfile, load_target

CONV = "Conv<pads=[1,1,1,1]>"
TEXT = f"""g (float[1,3,8,8] x) => (float y) {{
    a = {CONV}(x, w) r = Relu(a) b = {CONV}(r, w2) c = Clip(b, low, high) y = {CONV}(c, w2) }}"""


def chain(target: str | TargetProfile, low: float = 0.0, high: float = 0.5) -> Chain:
    constants = {"low": np.float32(low), "high": np.float32(high)}
    return quantized(parse(TEXT, w=weights(8, 3, 3, 3), w2=weights(8, 8, 3, 3), **constants), target)


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph if "Linear" not in node.op_type]


@pytest.mark.parametrize("bounds", [(0.0, 0.5), (-0.2, 0.5), (0.0, 1e9), (-1e9, 1e9)])
def test_nothing_stands_between_the_convolution_and_its_quantizer(bounds: tuple[float, float]) -> None:
    dropped, kept = chain("android-xnnpack", *bounds), chain("android", *bounds)
    assert ops(kept.model) == ["Conv", "Relu", "Conv", "Clip", "Conv"]
    assert ops(dropped.model) == ["Conv", "Conv", "Conv"]
    assert dict(dropped.layout.absorbed) == {"r": "a", "c": "b"}
    for sample in dropped.feed:
        assert np.array_equal(dropped.run(sample)["y"], kept.run(sample)["y"])


def test_what_cuts_more_than_the_integers_stays() -> None:
    def widened(name: str, factor: float, base: Chain) -> list[str]:
        model = base.model.clone()
        scale = constant_array(model.graph.initializers[name])
        set_initializer(model, name, np.asarray(scale * factor, np.float32))
        drop_absorbed(model)
        return ops(model)

    made = chain("android")
    assert widened("c_scale", 1.0, made) == ["Conv", "Conv", "Conv"]
    assert widened("c_scale", 1.02, made) == ["Conv", "Conv", "Clip", "Conv"]  # 0.51 would fit into the integers
    assert widened("r_scale", 1.02, made) == ["Conv", "Conv", "Conv"]  # nothing cuts Relu above


def test_a_second_reader_or_symmetric_integers_keep_it() -> None:
    target = load_target("android-xnnpack")
    symmetric = msgspec.structs.replace(target.activations, symmetric=True)
    assert ops(chain(msgspec.structs.replace(target, activations=symmetric)).model) == [
        "Conv", "Relu", "Conv", "Clip", "Conv",
    ]  # fmt: skip
    model = parse(
        f"g (float[1,3,8,8] x) => (float r, float y) {{ a = {CONV}(x, w) r = Relu(a) y = {CONV}(r, w2) }}",
        w=weights(8, 3, 3, 3),
        w2=weights(8, 8, 3, 3),
    )
    model = quantized(model, "android-xnnpack")
    assert ops(model.model) == ["Conv", "Conv"]
    for sample in model.feed:
        assert (model.run(sample)["r"] >= 0).all()
