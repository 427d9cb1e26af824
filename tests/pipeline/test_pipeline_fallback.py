"""Bundles with two graphs: made from one source and one set of data, each judged on its own."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from small_models import parse, weights

from edgeq import export, read_bundle, run
from edgeq.errors import ContractError, ValidationError
from edgeq.graph import input_infos, load_model, output_infos
from edgeq.metrics import sqnr_db
from edgeq.pipeline import Job
from edgeq.pipeline.choosing import best_attempt
from edgeq.request import Data, Limits
from edgeq.runtime import run_model

PROFILE = """
name = "{name}"
inherits = "cpu"
summary = "a profile of this test"
precisions = {precisions}
absorbs = ["Relu", "Clip"]
sources = ["this test"]
{fallback}

[graph]
shapes = "static"
source = "this test"

[activations]
types = {{ "8" = "uint8" }}
source = "this test"

[verification]
accuracy = "specification"
note = "a test"
"""

NETWORK = """g (float[batch,8,12,12] x) => (float[batch,10] y) {
    c = Conv<pads=[1,1,1,1]>(x, conv, bias) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p)
    y = Gemm<transB=1>(f, matrix, row) }"""


def profile(folder: Path, name: str, precisions: str = '["w8a8"]', fallback: str | Path | None = "android") -> Path:
    line = "" if fallback is None else f'fallback = "{fallback}"'
    text = PROFILE.format(name=name, precisions=precisions, fallback=line)
    (folder / f"{name}.toml").write_text(text)
    return folder / f"{name}.toml"


def network() -> ir.Model:
    return parse(NETWORK, conv=weights(16, 8, 3, 3), bias=weights(16), matrix=weights(10, 16), row=weights(10))


def data(count: int = 40) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((1, 8, 12, 12)).astype(np.float32)} for _ in range(count)]


def make(folder: Path, target: Path, **options: object):
    return export(network(), target=target, output=folder / "out", measure=False, **{"calibration": data(), **options})


def test_both_graphs_come_from_one_source_and_take_the_same_inputs(tmp_path: Path) -> None:
    result = make(tmp_path, profile(tmp_path, "first"))
    bundle = read_bundle(result.path)
    first, second = bundle.manifest.graphs
    assert (first.model, first.target, second.model, second.target) == (
        "model.onnx",
        "first",
        "fallback/model.onnx",
        "android",
    )
    assert second.provider.session["session.qdqisint8allowed"] == "1"
    models = [load_model(bundle.path / graph.model) for graph in (first, second)]
    assert input_infos(models[0]) == input_infos(models[1])
    assert output_infos(models[0]) == output_infos(models[1])
    assert input_infos(models[1])[0].shape == (1, 8, 12, 12), "one target with static shapes makes both static"
    types = [{str(v.dtype) for v in m.graph.initializers.values()} for m in models]
    assert "UINT8" in types[0], "each in its own target's types"
    assert "UINT8" not in types[1]
    for row, graph in (("uint8", first), ("int8", second)):
        assert {r.dtype for r in graph.plan if r.role == "activation" and r.dtype} == {row}


def test_the_figures_of_both_graphs_are_those_of_their_files(tmp_path: Path) -> None:
    result = make(tmp_path, profile(tmp_path, "first"))
    manifest = read_bundle(result.path).manifest
    inputs = np.load(result.path / manifest.samples.inputs["x"])
    expected = np.load(result.path / manifest.samples.outputs["y"])
    for graph, optimization in zip(manifest.graphs, ("none", "all"), strict=True):
        found = [
            run_model(result.path / graph.model, {"x": x}, optimization=optimization, config=graph.provider.session)[
                "y"
            ]
            for x in inputs
        ]
        assert graph.sqnr_db["y"] == pytest.approx(sqnr_db(expected, np.stack(found)), abs=0.01)
        assert graph.size.quantized_bytes == (result.path / graph.model).stat().st_size
    report = result.report.fallback
    assert report.target == "android"
    assert sum(report.kinds.values()) == 5
    assert report.kinds["integer"] >= 3
    assert next(m.value for m in report.metrics if m.name == "SQNR") > 30


def test_a_bundle_of_two_graphs_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    target = profile(tmp_path, "first")
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        path = make(tmp_path / name, target).path
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.stem != "report")
        contents.append({str(p.relative_to(path)): p.read_bytes() for p in files})
    assert contents[0] == contents[1]
    assert "fallback/model.onnx" in contents[0]
    assert str(tmp_path).encode() not in contents[0]["manifest.json"]


def test_both_graphs_are_validated(tmp_path: Path) -> None:
    path = make(tmp_path, profile(tmp_path, "first")).path
    report = run(path)
    assert report.contract.met
    assert [clause.option for clause in report.contract.clauses] == ["SQNR of y", "SQNR of y of the fallback (android)"]
    assert report.metric("SQNR").source == "the bundle's 4 samples, by the specification's arithmetic"
    assert report.fallback.metrics[1].source == "the bundle's 4 samples"
    assert report.fallback.checks[0].place.startswith("arm64")
    assert report.fallback.checks[0].status in ("left out", "absent")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["fallback"]["sqnr_db"]["y"] = 99.5
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        ValidationError, match=r"SQNR of y of the fallback \(android\) is .* but the manifest says 99\.5"
    ):
        run(path)


def test_nothing_is_exported_or_prepared_twice(tmp_path: Path) -> None:
    job = Job(network(), profile(tmp_path, "first"), data=Data(data()))
    assert job.fallback.source is job.source
    assert job.fallback.prepared is job.prepared
    assert job.fallback.feeds is job.feeds
    assert job.fallback.fallback is None


def test_a_fallback_can_be_left_out(tmp_path: Path) -> None:
    result = make(tmp_path, profile(tmp_path, "first"), fallback=False)
    assert result.report.fallback is None
    assert read_bundle(result.path).manifest.fallback is None
    assert not (result.path / "fallback").exists()


def test_a_drop_of_the_fallback_breaks_the_contract_and_is_named(tmp_path: Path) -> None:
    poor = profile(tmp_path, "poor", '["w4"]', fallback=None)
    target = profile(tmp_path, "first", '["w8a8"]', fallback=poor)
    with pytest.raises(ContractError) as raised:
        make(tmp_path, target, max_drop=0.05, max_size="1MB", effort=0)
    assert "--max-drop for the fallback (poor) 0.05 points" in raised.value.what
    clauses = {clause.option: clause.met for clause in raised.value.exported.report.contract.clauses}
    assert clauses == {"--max-drop": True, "--max-size": True, "--max-drop for the fallback (poor)": False}
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.not-met" / "fallback" / "model.onnx").exists()


def test_a_fallback_without_calibration_data_takes_a_precision_that_needs_none(tmp_path: Path) -> None:
    result = make(tmp_path, profile(tmp_path, "first", '["w8"]'), calibration=None)
    assert result.bundle.manifest.fallback.precision == "w8_b32"
    text = "the fallback for android cannot be w8a8 without calibration data"
    assert text in [finding.text for finding in result.report.fallback.findings]


def test_a_fallback_that_cannot_be_made_is_a_warning_not_a_failure(tmp_path: Path) -> None:
    only = profile(tmp_path, "only", '["w8a8"]', fallback=None)
    result = make(tmp_path, profile(tmp_path, "first", '["w8"]', fallback=only), calibration=None)
    assert result.bundle.manifest.fallback is None
    found = next(f for f in result.report.findings if "no fallback" in f.text)
    assert found.severity == "warning"
    assert "needs calibration data" in found.text


def test_of_rejected_precisions_only_the_verdict_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(network(), profile(tmp_path, "first", '["w4_b32", "w4_b16", "w8_b32"]'))
    made: list[weakref.ref[ir.Model]] = []
    quantize = job.quantize

    def remember(scheme, formats):
        shaped, plan, model = quantize(scheme, formats)
        made.append(weakref.ref(model))
        gc.collect()
        assert sum(ref() is not None for ref in made) <= 2, "the best so far and the one in hand"
        return shaped, plan, model

    monkeypatch.setattr(job, "quantize", remember)
    best, rejected = best_attempt(job, Limits(min_sqnr_db=150))
    gc.collect()
    assert best.scheme.name == "w8_b32"
    assert [verdict.scheme.name for verdict in rejected] == ["w4_b32", "w4_b16"]
    assert [ref() is not None for ref in made] == [False, False, True]


def test_the_cpu_shortcut_for_4_bits_is_not_taken_for_another_providers_accuracy(tmp_path: Path) -> None:
    result = make(tmp_path, profile(tmp_path, "first", '["w4"]', fallback=None))
    manifest = read_bundle(result.path).manifest
    inputs, expected = (
        np.load(result.path / file) for file in (manifest.samples.inputs["x"], manifest.samples.outputs["y"])
    )
    by_optimization = {
        optimization: sqnr_db(
            expected,
            np.stack([run_model(result.path / "model.onnx", {"x": x}, optimization=optimization)["y"] for x in inputs]),
        )
        for optimization in ("none", "all")
    }
    assert abs(by_optimization["none"] - by_optimization["all"]) > 0.05, "MatMulNBits rounds activations to 8 bits"
    assert manifest.main.sqnr_db["y"] == pytest.approx(by_optimization["none"], abs=0.01)
    assert run(result.path).metric("SQNR").value == pytest.approx(by_optimization["none"], abs=0.01)
