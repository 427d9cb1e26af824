"""Packages whose ranges of activations are found at run time: without any data, and on a real text encoder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import edgeq, save
from small_models import weights

from edgeq.pipeline import Job
from edgeq.pipeline.choosing import best_attempt
from edgeq.qtypes import Scheme
from edgeq.request import Data, Limits
from edgeq.stages.run.placement import read_placement

CHAIN = "g (float[1,8,64] x) => (float[1,8,32] y) { m = MatMul(x, k) r = Relu(m) y = MatMul(r, t) }"


def test_a_package_needs_no_calibration(tmp_path: Path) -> None:
    source = save(tmp_path / "model.onnx", CHAIN, k=weights(64, 64), t=weights(64, 32))
    made = edgeq(
        "export", source, "--target", "linux-x64", "--precision", "w8a8_dynamic", "--output", tmp_path / "out", "--json"
    )
    assert made.code == 0, made.err
    report = json.loads(made.out)["report"]
    assert report["precision"] == "w8a8_dynamic"
    kinds = {node["node"]: node["kind"] for node in report["placement"]}
    assert kinds["m"] == kinds["y"] == "integer"


def test_other_widths_are_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "model.onnx", CHAIN, k=weights(64, 64), t=weights(64, 32))
    for target, precision in (("android-npu", "w8a8_dynamic"), ("linux-x64", "w4a8_dynamic"), ("linux-x64", "w4a4")):
        made = edgeq("export", source, "--target", target, "--precision", precision, "--output", tmp_path / "out")
        assert made.code == 2, (target, precision, made.err)
        assert precision in made.err


def test_refining_fits_weights_to_the_floats_that_are_ranged(tmp_path: Path) -> None:
    """Not to their integers, which the product reads in the graph."""
    source = save(tmp_path / "model.onnx", CHAIN, k=weights(64, 64), t=weights(64, 32))
    rng = np.random.default_rng(0)
    spread = np.exp(rng.standard_normal(64))
    np.savez(tmp_path / "data.npz", x=(rng.standard_normal((32, 8, 64)) * spread).astype(np.float32))
    job = Job(source, "linux-x64", Data(calibration=tmp_path / "data.npz"), effort=1, smoothing=False)
    _, plan, _ = job.quantize(Scheme.parse("w8a8_dynamic"))
    rounded = [trial for trial in plan.trials if trial.method.startswith("rounding")]
    assert rounded
    assert all((trial.after_db or 0) > (trial.before_db or 0) - 1 for trial in rounded), rounded


def test_it_is_chosen_where_no_single_range_suits_all_samples(tmp_path: Path) -> None:
    source = save(tmp_path / "model.onnx", CHAIN, k=weights(64, 64), t=weights(64, 32))
    rng = np.random.default_rng(0)
    sizes = np.geomspace(1e-3, 10, 32)[rng.permutation(32), None, None]
    np.savez(tmp_path / "data.npz", x=(rng.standard_normal((32, 8, 64)) * sizes).astype(np.float32))
    job = Job(source, "linux-x64", Data(calibration=tmp_path / "data.npz"), effort=0, measure=False)
    best, rejected = best_attempt(job, Limits(max_drop=0.5))
    assert best.precision == "w8a8_dynamic"
    assert [verdict.precision for verdict in rejected] == ["w8a8"]


def test_it_is_passed_over_where_convolutions_do_the_work(tmp_path: Path) -> None:
    text = (
        "g (float[1,4,8,8] x) => (float[1,3] y) "
        "{ c = Conv(x, k) m = GlobalAveragePool(c) f = Flatten(m) y = Gemm(f, t) }"
    )
    source = save(tmp_path / "model.onnx", text, k=weights(16, 4, 3, 3), t=weights(16, 3))
    data = np.random.default_rng(0).standard_normal((16, 4, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=data)
    job = Job(source, "linux-x64", Data(calibration=tmp_path / "data.npz"), effort=0, measure=False)
    _, rejected = best_attempt(job, Limits(min_sqnr_db=200.0))
    lost = {verdict.precision: verdict.lost for verdict in rejected}
    assert "only 8% of the weights" in lost["w8a8_dynamic"]


@pytest.mark.slow
def test_minilm_with_ranges_found_at_run_time() -> None:
    job = Job("example:minilm", "linux-x64", precision="w8a8_dynamic", effort=0)
    _, plan, model = job.quantize(Scheme.parse("w8a8_dynamic"))
    assert len(plan.dynamic) == 36
    ops = [node.op_type for node in model.graph]
    assert ops.count("MatMulInteger") == 36
    assert ops.count("DynamicQuantizeLinear") == 24  # queries, keys and values read one
    assert ops.count("Sum") == 13
    placement = {node.node: node for node in read_placement(model, job.target.provider, expected=plan.nodes).nodes}
    assert {placement[name].kind for name in plan.dynamic} == {"integer"}
