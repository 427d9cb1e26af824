"""A device without float16 gets the same model in float32, and the outcome says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from small_models import parse, weights

from edgeq.graph import load_model, save_model
from edgeq.runtime import run_model
from edgeq.sandbox.protocol import Outcome, Task
from edgeq.sandbox.widened import say_widened, widen
from edgeq.stages.tune.half import to_float16
from edgeq.target import load_target


def test_only_models_with_float16_are_widened(tmp_path: Path) -> None:
    provider = load_target("web-gpu").provider
    model = parse("g (float[2,4] x) => (float y) { y = MatMul(x, w) }", w=weights(4, 4))
    save_model(model, tmp_path / "plain.onnx")
    save_model(to_float16(model, {}), tmp_path / "half.onnx")
    files = [tmp_path / "plain.onnx", tmp_path / "half.onnx", tmp_path / "missing.onnx"]
    tasks = [Task(file, provider) for file in files]
    changed = widen(tasks, tmp_path)
    assert [task.model for task in (changed[0], changed[2])] == [files[0], files[2]]
    wide = load_model(changed[1].model)
    assert not any(value.dtype.name == "FLOAT16" for value in wide.graph.initializers.values())
    x = weights(2, 4, seed=3)
    np.testing.assert_allclose(run_model(wide, {"x": x})["y"], run_model(files[0], {"x": x})["y"], atol=1e-3)
    told = say_widened(tasks, changed, [Outcome("ran", version="toy 1")] * 3)
    assert [outcome.version for outcome in told] == ["toy 1", "toy 1, floats widened to 32 bits", "toy 1"]
