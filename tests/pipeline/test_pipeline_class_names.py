"""Names of classes that the user gives go into the package, where they are as many as the model's classes."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import edgeq as command
from small_models import parse, weights

import edgeq
from edgeq.bundle import read_bundle
from edgeq.errors import ConfigError
from edgeq.graph import save_model
from edgeq.interface import LogitsOutput
from edgeq.names import read_names


def classifier(folder: Path) -> Path:
    model = parse("g (float[1,8] x) => (float[1,3] logits) { logits = MatMul(x, w) }", w=weights(8, 3))
    save_model(model, folder / "model.onnx")
    return folder / "model.onnx"


def test_names_from_a_file_name_the_classes(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_bytes("\ufeffcat\r\ngreen  sea turtle\r\nd\u00f6g\r\n".encode())
    options = ["--target", "linux-x64", "-p", "w8", "--effort", "0", "--no-measure", "-o", tmp_path / "p"]
    run = command("export", classifier(tmp_path), *options, "--class-names", names)
    assert run.code == 0, run.err
    bundle = read_bundle(tmp_path / "p")
    assert bundle.file("labels.txt").read_text("utf-8").splitlines() == ["cat", "green  sea turtle", "d\u00f6g"]
    assert bundle.manifest.interface.outputs == (LogitsOutput(name="logits", classes=3, labels="labels.txt"),)
    assert command("plan", classifier(tmp_path), "--target", "linux-x64", "-p", "w8", "--class-names", names).code == 0


def test_names_that_are_not_as_many_are_warned_of(tmp_path: Path) -> None:
    options = {"target": "linux-x64", "precision": "w8", "effort": 0, "measure": False, "output": tmp_path / "p"}
    report = edgeq.export(classifier(tmp_path), class_names=["a", "b"], **options).report  # type: ignore[arg-type]
    texts = [finding.text for finding in report.findings if finding.severity == "warning"]
    assert any(text.startswith("there are 2 names of classes, and no output has as many: logits") for text in texts)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"a\n\nb\n", "class 1 has no name"), (b"", "class 0 has no name"), (b"\xff\xfe", "it is not UTF-8 text")],
)
def test_what_is_no_list_of_names_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "names.txt"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        read_names(file)


def test_a_file_that_is_not_there_is_said_before_the_work(tmp_path: Path) -> None:
    run = command("export", classifier(tmp_path), "--target", "linux-x64", "--class-names", tmp_path / "nowhere.txt")
    assert run.code == 2
    assert "the names of classes cannot be read: No such file" in run.err
    with pytest.raises(ConfigError, match="no name of one line"):
        read_names(["a", "b\nc"])
