"""Two graphs and their places as a user asks for them on the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from command_line import classifier, edgeq, noise

from edgeq.sandbox import find_sandbox

PROFILE = """
name = "first"
inherits = "cpu"
summary = "a profile of this test"
precisions = ["w8a8"]
absorbs = ["Relu", "Clip"]
sources = ["this test"]
fallback = "android"

[activations]
types = { "8" = "uint8" }
source = "this test"

[verification]
note = "a test"
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    (folder / "first.toml").write_text(PROFILE)
    np.savez(folder / "data.npz", image=noise(40, 3, 16, 16))
    classifier(folder / "net.onnx")
    return folder


def options(made: Path, output: str) -> list[str | Path]:
    shared = ["-t", made / "first.toml", "-c", made / "data.npz", "-o", made / output, "--no-measure", "--no-cache"]
    return ["export", made / "net.onnx", *shared, "--task", "image-classification"]


def test_the_summary_shows_both_graphs_and_every_place(made: Path) -> None:
    found = edgeq(*options(made, "both"), "--on", "cpu")
    assert found.code == 0, found.err
    flat = " ".join(found.out.split())
    assert re.search(r"on cpu SQNR [\d.]+ dB ran; CPUExecutionProvider took all 7 nodes; its outputs are this", flat)
    assert "fallback for android in w8a8 (CPUExecutionProvider)" in flat
    assert "not verified on arm64" in flat
    found = edgeq("run", made / "both", "--on", "cpu", "--json")
    assert found.code == 0, found.err
    report = json.loads(found.out)
    assert [check["place"] for check in report["checks"]] == ["cpu"]
    assert report["fallback"]["target"] == "android"


def test_no_fallback_leaves_it_out(made: Path) -> None:
    found = edgeq(*options(made, "one"), "--no-fallback", "--json")
    assert found.code == 0, found.err
    assert json.loads(found.out)["report"]["fallback"] is None
    assert not (made / "one" / "fallback").exists()


@pytest.mark.parametrize("command", ["export", "run"])
def test_a_place_that_does_not_exist_is_said_before_the_work(made: Path, command: str) -> None:
    start = options(made, "never") if command == "export" else ["run", made / "nothing"]
    found = edgeq(*start, "--on", "nowhere")
    assert found.code == 2
    assert "there is no sandbox 'nowhere'" in found.err
    assert "choose one of: cpu" in found.err


def test_the_report_names_the_place_to_ask_for(made: Path) -> None:
    found = edgeq(*options(made, "named"), "--json")
    (check,) = json.loads(found.out)["report"]["fallback"]["checks"]
    if find_sandbox("arm64").missing():
        assert check["remedy"] == "edgeq doctor --install-provider arm64"
    else:
        assert check["remedy"] == f"edgeq run BUNDLE --on {check['place']}"
