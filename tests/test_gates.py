"""A build that is told to fail on a gate: exit code, what is left on disk, and the same from Python."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import edgeq as command
from command_line import images, noise, save

import edgeq
from edgeq.bundle import read_bundle
from edgeq.errors import ConfigError
from edgeq.report import Report

BODY = "a = Conv<pads = [1,1,1,1]>(image, w1) b = {op}(a) y = Conv<pads = [1,1,1,1]>(b, w2)"
SYMMETRIC = """
name = "wrong"
inherits = "cpu"
summary = "A profile that promises what the CPU does not do: to clip before it rounds to symmetric integers"
precisions = ["w8a8"]
absorbs = ["Relu"]
sources = ["made up"]
activations = { types = { "8" = "int8" }, symmetric = true, absorption = "kernel", source = "made up" }
verification = { note = "made up" }
"""


def network(folder: Path, op: str) -> Path:
    text = f"g (float[1,3,16,16] image) => (float[1,8,16,16] y) {{ {BODY.format(op=op)} }}"
    return save(folder / f"{op.lower()}.onnx", text, w1=noise(8, 3, 3, 3, scale=0.3), w2=noise(8, 8, 3, 3, scale=0.2))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return images(tmp_path / "data.npy")


def made(source: Path, target: str | Path, data: Path, *more: str | Path):
    out = source.parent / "out"
    return out, command("export", source, "-t", target, "-c", data, "-o", out, "--no-measure", *more)


def test_a_package_that_passes_is_written_under_its_name(tmp_path: Path, data: Path) -> None:
    out, found = made(network(tmp_path, "Relu"), "linux-x64", data, "--gate", "all")
    assert found.code == 0, found.err
    assert read_bundle(out).manifest.gates == edgeq.load_target("linux-x64").gates
    assert not out.with_name("out.not-met").exists()


def test_a_leftover_pair_fails_the_build_and_keeps_the_old_package(tmp_path: Path, data: Path) -> None:
    source = network(tmp_path, "Tanh")
    out, found = made(source, "linux-x64", data, "--gate", "unfused")
    assert found.code == 0, found.err
    before = (out / "manifest.json").read_bytes()
    out, found = made(source, "linux-x64", data, "--gate", "leftover", "--overwrite", "--precision", "w8a8")
    assert found.code == 9
    assert "tanh on linux-x64 does not pass 1 of its gates: leftover: 1 node runs in float" in found.err
    assert "(b)" in found.err
    assert "remedy: nothing, unless their latency matters" in found.err
    assert (out / "manifest.json").read_bytes() == before
    report = Report.from_json((tmp_path / "out.not-met" / "report.json").read_bytes())
    assert [(f.gate, f.severity, f.nodes) for f in report.findings if f.gate] == [("leftover", "error", ("b",))]
    # The same from the bundle: what was predicted travels in its manifest.
    again = command("run", tmp_path / "out.not-met", "--gate", "all", "--report", tmp_path / "report")
    assert again.code == 9
    assert Report.from_json((tmp_path / "report" / "report.json").read_bytes()).agreement == 1.0
    assert command("run", tmp_path / "out.not-met", "--gate", "unfused").code == 0


def test_a_profile_that_promises_too_much_leaves_unfused_convolutions(tmp_path: Path, data: Path) -> None:
    """A convolution that was to run in integers dequantizes weights at every run: slower than the float model."""
    profile = tmp_path / "wrong.toml"
    profile.write_text(SYMMETRIC)
    out, found = made(network(tmp_path, "Relu"), profile, data, "--gate", "unfused", "--json")
    assert found.code == 9
    printed = json.loads(found.out)
    assert printed["error"] == "GateError"
    assert "unfused: 1 node with quantized inputs runs in float behind DequantizeLinear" in printed["what"]
    assert "the Relu behind it cannot be absorbed" in printed["what"]
    assert "(a)" in printed["what"]
    assert not out.exists()
    report = Report.from_json((tmp_path / "out.not-met" / "report.json").read_bytes())
    assert report.agreement < 1
    (finding,) = [f for f in report.findings if "otherwise than predicted" in f.text]
    assert finding.severity == "warning"
    assert set(finding.nodes) == {"a", "b"}


@pytest.mark.slow
def test_a_fallback_fails_the_build_for_an_accelerator(tmp_path: Path, data: Path) -> None:
    pytest.importorskip("onnxruntime_qnn")
    with pytest.raises(
        edgeq.GateError, match=r"fallback: 1 node runs on the CPU, refused by QNNExecutionProvider"
    ) as caught:
        edgeq.export(
            network(tmp_path, "Erf"),
            target="android-npu",
            calibration=np.load(data),
            output=tmp_path / "out",
            precision="w8a8",
            gates=["fallback"],
            fallback=False,
            measure=False,
        )
    assert caught.value.exit_code == 9
    assert caught.value.exported.path == tmp_path / "out.not-met"
    assert caught.value.report.agreement == 1.0
    placed = {place.node: place for place in caught.value.report.placement}
    assert (placed["b"].provider, placed["b"].predicted_provider) == ("CPUExecutionProvider",) * 2
    with pytest.raises(edgeq.GateError) as caught:
        edgeq.run(tmp_path / "out.not-met", gates=["all"])
    assert caught.value.exported is None
    assert [f.nodes for f in caught.value.report.findings if f.gate == "fallback"] == [("b",)]


def test_an_unknown_gate_is_named(tmp_path: Path, data: Path) -> None:
    assert made(network(tmp_path, "Relu"), "linux-x64", data, "--gate", "fused")[1].code == 2
    with pytest.raises(ConfigError, match="there is no gate 'fused'"):
        edgeq.run(tmp_path, gates=["fused"])


def test_inspect_says_before_the_work_what_would_fall_back(tmp_path: Path) -> None:
    found = command("inspect", network(tmp_path, "Erf"), "-t", "android-npu", "-p", "w8a8")
    assert "nodes on QNNExecutionProvider: 2 integer, 1 float on the CPU" in found.out
    assert "QNNExecutionProvider runs no Erf in floats, so it falls to the CPU" in " ".join(found.out.split())
    printed = json.loads(command("inspect", network(tmp_path, "Erf"), "-t", "android-npu", "--json").out)
    assert printed["provider"] == "QNNExecutionProvider"
    assert [(n["node"], n["kind"], n["provider"]) for n in printed["forecast"]] == [
        ("a", "integer", "QNNExecutionProvider"),
        ("b", "float", "CPUExecutionProvider"),
        ("y", "integer", "QNNExecutionProvider"),
    ]
