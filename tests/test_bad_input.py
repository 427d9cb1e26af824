"""What a user meets who gives something wrong: one error with what, where and what to do, and nothing left behind."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Result, classifier, edgeq, images, noise, save, start_edgeq

from edgeq.resources import data_path
from edgeq.stages.calibrate.cache import load_state

X4 = "g (float[batch,4] x) => (float[batch,4] y)"


class Desk:
    """A folder with a sound model and sound data, an output, and one command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = classifier(folder / "model.onnx")
        self.data = images(folder / "data.npy")
        self.output = folder / "out" / "bundle"
        self.output.parent.mkdir()

    def export(
        self,
        model: Path | str | None = None,
        data: Path | str | None = None,
        *more: str | Path,
        target: str | Path = "",
    ) -> Result:
        source = self.model if model is None else model
        calibration = self.data if data is None else data
        return edgeq(
            *("export", source, "-t", target or "android", "-c", calibration, "-o", self.output),
            *("--no-cache", "--no-measure", *more),
        )

    def array(self, array: np.ndarray, name: str = "bad.npy", *, pickle: bool = False) -> Path:
        np.save(self.folder / name, array, allow_pickle=pickle)
        return self.folder / name

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    @property
    def left(self) -> set[str]:
        """What lies in the output's folder; a temporary folder would begin with a dot."""
        return {path.name for path in self.output.parent.iterdir()}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def refused(desk: Desk, found: Result, code: int, what: str, *, where: str | Path = "", remedy: str = "") -> None:
    """One error, at the end of what was said, and nothing written."""
    assert found.code == code, found.err or found.out
    assert found.out == ""
    assert [line.startswith("Error: ") for line in found.err.splitlines()].count(True) == 1
    assert "Traceback" not in found.err
    assert "failed unexpectedly" not in found.err
    message = found.err.partition("Error: ")[2]
    assert what in message
    assert f"where: {where}" in message if where else True
    assert f"remedy: {remedy}" in message if remedy else True
    assert not desk.left


def test_the_desk_is_sound(desk: Desk) -> None:
    """Without this, every refusal below might be about something else."""
    assert desk.export().code == 0
    assert desk.left == {"bundle"}


# -- models


def test_a_model_that_does_not_parse(desk: Desk) -> None:
    path = desk.file("junk.onnx", b"\x08\x07 a web page, not a model " * 20)
    refused(
        desk,
        desk.export(path),
        3,
        "the file is not a readable ONNX model",
        where=path,
        remedy="check that the download is complete",
    )


def test_a_truncated_model(desk: Desk) -> None:
    path = desk.file("half.onnx", desk.model.read_bytes()[:2000])
    refused(desk, desk.export(path), 3, "the file is not a readable ONNX model", where=path)


def test_an_empty_model_file(desk: Desk) -> None:
    path = desk.file("empty.onnx", b"")
    refused(desk, desk.export(path), 3, "the file holds no graph", where=path)


def test_a_model_that_is_not_there(desk: Desk) -> None:
    path = desk.folder / "none.onnx"
    refused(desk, desk.export(path), 3, "the model file does not exist", where=path, remedy="check the path")


def test_a_source_of_no_known_form(desk: Desk) -> None:
    path = desk.file("weights.bin", b"123")
    refused(desk, desk.export(path), 3, "a file that ends in '.bin'", where=path, remedy="give one of:")


def test_an_unknown_example(desk: Desk) -> None:
    refused(
        desk, desk.export("example:nothing"), 3, "no example 'nothing'", remedy="one of: efficientnet-lite0, minilm"
    )


@pytest.mark.parametrize("operator", ["toy.Frob", "Frob"], ids=["custom domain", "unknown name"])
def test_an_operator_that_nothing_here_can_run(desk: Desk, operator: str) -> None:
    path = save(desk.folder / "odd.onnx", f"{X4} {{ a = {operator}(x) y = MatMul(a, w) }}", w=noise(4, 4))
    found = desk.export(path, desk.array(noise(16, 4)))
    refused(desk, found, 3, "cannot load the model", remedy="check that every operator of the model exists")
    assert "Frob" in found.err


def test_a_graph_that_contradicts_itself(desk: Desk) -> None:
    path = save(desk.folder / "loose.onnx", f"{X4} {{ y = MatMul(nowhere, w) }}", w=noise(4, 4))
    found = desk.export(path, desk.array(noise(16, 4)))
    refused(
        desk,
        found,
        3,
        "node 'y' (MatMul) reads the tensor 'nowhere', which nothing makes",
        where="loose.onnx",
        remedy="export the model again",
    )


def test_a_python_file_that_raises(desk: Desk) -> None:
    path = desk.file("net.py", "def build():\n    raise RuntimeError('no weights here')\n")
    found = desk.export(f"{path}:build")
    refused(desk, found, 3, "no weights here")


# -- calibration data


@pytest.mark.parametrize(
    ("array", "what", "remedy"),
    [
        (noise(10, 3, 8, 8), "expected image: float32[batch, 3, 16, 16], got float32[1, 3, 8, 8]", "give arrays of"),
        (noise(10, 16), "expected image: float32[batch, 3, 16, 16], got shape [10, 16]", "give arrays of"),
        (np.ones((10, 3, 16, 16), np.int64), "input 'image' wants float32, got int64", "preprocess the values"),
        (np.ones((10, 3, 16, 16), complex), "are not numbers: got complex128", "give numeric arrays"),
    ],
    ids=["shape", "rank", "integers", "complex"],
)
def test_data_that_does_not_fit(desk: Desk, array: np.ndarray, what: str, remedy: str) -> None:
    path = desk.array(array)
    refused(desk, desk.export(None, path), 4, what, where=path, remedy=remedy)


def test_pickled_data_is_not_loaded(desk: Desk) -> None:
    path = desk.array(np.array([{}] * 4, object), pickle=True)
    refused(
        desk, desk.export(None, path), 4, "no readable numeric array file", where=path, remedy="write it with numpy"
    )


def test_data_under_another_name(desk: Desk) -> None:
    np.savez(desk.folder / "named.npz", picture=noise(10, 3, 16, 16))
    found = desk.export(None, desk.folder / "named.npz")
    refused(
        desk,
        found,
        4,
        "no data for input image: float32[batch, 3, 16, 16]; got picture",
        remedy="name the arrays as the model's inputs",
    )


def test_an_empty_folder(desk: Desk) -> None:
    (desk.folder / "void").mkdir()
    found = desk.export(None, desk.folder / "void")
    refused(desk, found, 4, "the folder is empty", where=desk.folder / "void", remedy="put pictures or arrays into it")


def test_a_folder_that_is_not_there(desk: Desk) -> None:
    path = desk.folder / "nowhere"
    refused(
        desk, desk.export(None, path), 4, "the calibration data does not exist", where=path, remedy="check the path"
    )


def test_a_folder_that_cannot_be_read(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    path = desk.folder / "locked"
    path.mkdir()
    listing = Path.iterdir

    def iterdir(self: Path) -> Any:
        if self == path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return listing(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    refused(desk, desk.export(None, path), 4, "the folder cannot be read: Permission denied", where=path)


def test_a_folder_with_nothing_useful(desk: Desk) -> None:
    (desk.folder / "notes").mkdir()
    desk.file("notes/todo.txt", "buy milk")
    found = desk.export(None, desk.folder / "notes")
    assert found.code == 4
    assert str(desk.folder / "notes") in found.err
    assert not desk.left


def test_pictures_for_a_model_of_unknown_preprocessing(desk: Desk) -> None:
    (desk.folder / "pictures").mkdir()
    desk.file("pictures/a.jpg", b"x")
    refused(
        desk,
        desk.export(None, desk.folder / "pictures"),
        4,
        "it is not known how the model wants its pictures prepared",
        remedy='write a recipe with a [preprocess] table of kind = "image"',
    )


def test_a_broken_picture(desk: Desk) -> None:
    (desk.folder / "pictures").mkdir()
    desk.file("pictures/a.jpg", b"not a jpeg")
    desk.file("pictures/b.jpg", b"not a jpeg either")
    recipe = desk.file(
        "own.toml",
        'summary = "x"\n[source]\nkind = "images"\npath = "pictures"\nlicence = "x"\n'
        '[preprocess]\nkind = "image"\ncrop = [16, 16]\n',
    )
    found = desk.export(None, recipe)
    refused(desk, found, 4, "picture", where=desk.folder / "pictures")
    assert ".jpg" in found.err


def test_no_data_at_all(desk: Desk) -> None:
    found = edgeq("export", desk.model, "-t", "android", "-o", desk.output)
    refused(desk, found, 4, "precision w8a8 needs calibration data, and none was given", remedy="give --calibration")


def test_too_few_samples(desk: Desk) -> None:
    found = desk.export(None, None, "--samples", "1")
    refused(desk, found, 4, "1 sample cannot be split", remedy="give more calibration data")


def test_nan_in_the_data(desk: Desk) -> None:
    array = noise(10, 3, 16, 16)
    array[0, 0, 0, 0] = np.nan
    path = desk.array(array)
    refused(desk, desk.export(None, path), 4, "input 'image' holds NaN", where=f"{path}[0]", remedy="remove or repair")


# -- activations that are no numbers


def test_the_logarithm_of_a_negative_number(desk: Desk) -> None:
    path = save(desk.folder / "log.onnx", f"{X4} {{ a = Log(x) y = MatMul(a, w) }}", w=noise(4, 4))
    found = desk.export(path, desk.array(-np.abs(noise(16, 4))))
    refused(
        desk,
        found,
        4,
        "tensor 'a' (output of node 'a', Log) holds NaN",
        where="sample number 0 of the calibration data",
        remedy="check this sample, and that the float model gives finite results on it",
    )


def test_a_division_by_zero(desk: Desk) -> None:
    graph = f"{X4} {{ a = Div(one, x) y = MatMul(a, w) }}"
    path = save(desk.folder / "div.onnx", graph, w=noise(4, 4), one=np.ones((), np.float32))
    array = np.abs(noise(16, 4)) + 0.1
    array[0] = 0
    found = desk.export(path, desk.array(array))
    refused(desk, found, 4, "tensor 'a' (output of node 'a', Div) holds +infinity", remedy="check this sample")


def test_a_division_by_zero_in_the_held_out_part(desk: Desk) -> None:
    """Calibration never sees it, but there is nothing to compare the quantized model with."""
    graph = f"{X4} {{ a = Div(one, x) y = MatMul(a, w) }}"
    path = save(desk.folder / "div.onnx", graph, w=noise(4, 4), one=np.ones((), np.float32))
    sound, broken = np.abs(noise(16, 4)) + 0.1, np.zeros((2, 4), np.float32)
    found = desk.export(path, desk.array(sound), "--evaluation", desk.array(broken, "held.npy"))
    refused(desk, found, 4, "output 'y' of the float model holds", remedy="find the sample that gives it")


# -- options, targets, recipes


def test_an_unknown_target(desk: Desk) -> None:
    found = desk.export(target="nokia-3310")
    refused(desk, found, 2, "unknown target 'nokia-3310'", remedy="choose one of: amd-npu, android, ")


def test_an_unknown_key_in_a_target(desk: Desk) -> None:
    text = data_path("targets", "android").read_text(encoding="utf-8")
    path = desk.file("mine.toml", 'speed = "high"\n' + text)
    refused(
        desk,
        desk.export(target=path),
        2,
        "target profile 'mine' is not valid: Object contains unknown field `speed`",
        where=path,
        remedy="compare the key with docs/targets.md",
    )


def test_an_unknown_recipe(desk: Desk) -> None:
    found = desk.export(None, "fotos")
    refused(
        desk, found, 4, "the calibration data does not exist", remedy="check the path, or use a bundled recipe: photos"
    )


def test_an_unknown_key_in_a_recipe(desk: Desk) -> None:
    recipe = desk.file(
        "mine.toml", 'summary = "x"\n[source]\nkind = "arrays"\npath = "data.npy"\nlicence = "x"\nshuffle = true\n'
    )
    refused(
        desk,
        desk.export(None, recipe),
        2,
        "recipe 'mine' is not valid: Object contains unknown field `shuffle` - at `$.source`",
        where=recipe,
        remedy="compare the key with docs/calibration.md",
    )


@pytest.mark.parametrize(
    ("option", "value", "what", "remedy"),
    [
        ("--precision", "w3a8", "unknown precision 'w3a8'", "android suggests: w8a8"),
        ("--precision", "w8a16", "android has no 16-bit activations", "android suggests: w8a8"),
        ("--max-size", "small", "'small' is not a size", "write bytes, or a number with kB, MB, GB or MiB"),
        ("--fix", "batch", "'batch' fixes no dimension", "write NAME=SIZE"),
        ("--fix", "height=3", "no input has one dynamic dimension 'height'", "choose among: image:0 (batch)"),
        ("--metric", "none.py:f", "no metric at 'none.py:f'", "write it as path/to/metric.py:function"),
    ],
)
def test_wrong_values_of_options(desk: Desk, option: str, value: str, what: str, remedy: str) -> None:
    refused(desk, desk.export(None, None, option, value), 2, what, remedy=remedy)


def test_missing_labels_are_noticed_before_the_work(desk: Desk) -> None:
    found = desk.export(None, None, "--labels", desk.folder / "labels.csv")
    refused(desk, found, 4, "--labels names no file or folder", where=desk.folder / "labels.csv")
    assert "calibrate" not in found.err


def test_labels_for_other_files(desk: Desk) -> None:
    labels = desk.file("labels.csv", "file,id\nother.jpg,1\n")
    found = desk.export(None, None, "--labels", labels)
    refused(desk, found, 4, "8 of 8 files have no label, such as 'data.npy[", where=labels, remedy="add them")


def test_a_metric_that_raises(desk: Desk) -> None:
    metric = desk.file("metric.py", "def score(predict):\n    return 1 / 0\n")
    found = desk.export(None, None, "--metric", f"{metric}:score")
    refused(desk, found, 2, "the metric raised ZeroDivisionError: division by zero", remedy="correct the function")


@pytest.mark.parametrize("option", ["-c", "-e"])
def test_missing_data_is_noticed_before_the_work(desk: Desk, monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    def load(*arguments: object, **options: object) -> None:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr("edgeq.pipeline.job.load_source", load)
    found = desk.export(None, None, option, desk.folder / "nowhere")
    assert found.code == 4
    assert "the calibration data does not exist" in found.err


def test_a_fault_of_our_own_is_told_as_one(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("edgeq.request.Data.check", broken)
    found = desk.export()
    assert found.code == 1
    assert "Error: edgeq failed unexpectedly: ZeroDivisionError: division by zero" in found.err
    assert "where: test_bad_input.py, line " in found.err
    assert "remedy: this is a bug: run the same command with --verbose" in found.err
    assert "Traceback" not in found.err
    assert not desk.left


def test_an_unknown_node_to_explain(desk: Desk) -> None:
    found = edgeq("plan", desk.model, "-t", "android", "-c", desk.data, "--no-cache", "--explain", "conv9")
    refused(desk, found, 2, "the plan knows no node or tensor 'conv9'", remedy="run `edgeq plan` without --explain")


def test_errors_as_json(desk: Desk) -> None:
    found = edgeq("export", desk.model, "-t", "nokia", "-o", desk.output, "--json")
    assert found.code == 2
    assert found.err == ""
    told = json.loads(found.out)
    assert told["error"] == "ConfigError"
    assert told["what"] == "unknown target 'nokia'"
    assert told["remedy"].startswith("choose one of: ")


# -- outputs


def test_an_output_that_exists(desk: Desk) -> None:
    assert desk.export().code == 0
    before = (desk.output / "manifest.json").read_bytes()
    found = desk.export()
    assert found.code == 8
    assert "the output exists already" in found.err
    assert "remedy: give another --output, or --overwrite" in found.err
    assert "calibrate" not in found.err
    assert (desk.output / "manifest.json").read_bytes() == before
    assert desk.export(None, None, "--overwrite").code == 0


def test_overwrite_spares_what_is_no_bundle(desk: Desk) -> None:
    desk.output.mkdir()
    (desk.output / "thesis.tex").write_text("years of work")
    found = desk.export(None, None, "--overwrite")
    assert found.code == 8
    assert "is not an edgeq bundle, so --overwrite leaves it alone" in found.err
    assert (desk.output / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("method", ["write_bytes", "write_text"])
def test_a_full_disk(desk: Desk, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    original = getattr(Path, method)

    def write(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.is_relative_to(desk.output.parent):
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, *arguments, **options)

    monkeypatch.setattr(Path, method, write)
    refused(desk, desk.export(), 8, "No space left on device", where=desk.output.parent)


def test_a_full_disk_keeps_the_old_bundle(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    assert desk.export().code == 0
    before = {path.name: path.stat().st_mtime_ns for path in desk.output.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", _no_space)
        assert desk.export(None, None, "--overwrite").code == 8
    assert {path.name: path.stat().st_mtime_ns for path in desk.output.iterdir()} == before
    assert desk.left == {"bundle"}


def _no_space(self: Path, data: bytes) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small file system")
def test_a_disk_that_really_is_full(desk: Desk) -> None:
    small = desk.folder / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(small)], check=False)
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    try:
        desk.output = small / "bundle"
        refused(desk, desk.export(), 8, "No space left on device")
    finally:
        subprocess.run(["umount", str(small)], check=True)


# -- contracts


@pytest.mark.parametrize(
    ("option", "value", "what"),
    [
        ("--max-drop", "-1", "--max-drop -1 points: the best found has 0.0"),
        ("--min-sqnr", "90", "--min-sqnr 90 dB: the best found has 4"),
        ("--max-size", "1kB", "--max-size 1,000 bytes: the best found has 5,"),
    ],
)
def test_a_contract_that_is_not_met(desk: Desk, option: str, value: str, what: str) -> None:
    found = desk.export(None, None, option, value, "-p", "w8a8")
    assert found.code == 7
    assert found.out == ""
    assert f"the contract is not met with w8a8 on android: {what}" in found.err
    assert " off" in found.err
    best = desk.output.with_name("bundle.not-met")
    assert f"where: the best result is in {best}" in found.err
    assert "remedy: " in found.err
    assert desk.left == {"bundle.not-met"}
    contract = json.loads((best / "report.json").read_text())["contract"]
    assert contract["met"] is False
    assert contract["clauses"][0]["option"] == option
    assert edgeq("run", best).code == 0


def test_a_contract_that_is_met(desk: Desk) -> None:
    found = desk.export(None, None, "--max-drop", "5", "--min-sqnr", "20", "--max-size", "1MB")
    assert found.code == 0
    assert "contract met" in found.out
    assert desk.left == {"bundle"}


def test_a_second_miss_replaces_the_first(desk: Desk) -> None:
    assert desk.export(None, None, "--min-sqnr", "90").code == 7
    assert desk.export(None, None, "--min-sqnr", "95").code == 7
    assert desk.left == {"bundle.not-met"}


def test_of_several_that_miss_the_best_for_the_limit_is_kept(desk: Desk) -> None:
    """w8 loses least, but w4 is smaller: it is the best where the size is what is missed."""
    found = desk.export(None, None, "--max-size", "1kB")
    assert found.code == 7
    assert "not met with w4_b32" in found.err


def test_a_miss_does_not_replace_what_is_no_bundle(desk: Desk) -> None:
    kept = desk.output.with_name("bundle.not-met")
    kept.mkdir(parents=True)
    (kept / "notes.txt").write_text("dear")
    found = desk.export(None, None, "--min-sqnr", "90")
    assert found.code == 8
    assert "is not an edgeq bundle" in found.err
    assert f"where: {kept}" in found.err
    assert "calibrate" not in found.err  # said before the work, not after it


# -- bundles


def test_a_bundle_that_was_tampered_with(desk: Desk) -> None:
    assert desk.export().code == 0
    file = desk.output / "model.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    found = edgeq("run", desk.output)
    assert found.code == 6
    assert found.out == ""
    assert "Error: 'model.onnx' has another sha256 than the manifest says" in found.err
    assert f"where: {desk.output}" in found.err
    assert "remedy: copy or make the package again" in found.err


def test_a_bundle_that_lacks_a_file(desk: Desk) -> None:
    assert desk.export().code == 0
    (desk.output / "samples" / "input_0.npy").unlink()
    found = edgeq("run", desk.output)
    assert found.code == 6
    assert "'samples/input_0.npy' is missing" in found.err


def test_a_manifest_that_points_outside(desk: Desk) -> None:
    assert desk.export().code == 0
    manifest = desk.output / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"README.md"', '"../../README.md"'))
    found = edgeq("run", desk.output)
    assert found.code == 6
    assert "which is not a plain path inside the bundle" in found.err
    assert "remedy: do not trust this bundle" in found.err


def test_run_on_something_else(desk: Desk) -> None:
    found = edgeq("run", desk.folder)
    refused(
        desk, found, 2, "not an edgeq bundle", where=desk.folder, remedy="give the folder that `edgeq export` wrote"
    )


# -- interruption


def test_ctrl_c_during_calibration(tmp_path: Path) -> None:
    graph = """g (float[batch,3,64,64] x) => (float[batch,16,64,64] y) {
        a = Conv<pads = [1,1,1,1]>(x, w1)
        b = Relu(a)
        c = Conv<pads = [1,1,1,1]>(b, w2)
        d = Relu(c)
        y = Conv<pads = [1,1,1,1]>(d, w2)
    }"""
    model = save(tmp_path / "m.onnx", graph, w1=noise(16, 3, 3, 3, scale=0.3), w2=noise(16, 16, 3, 3, scale=0.1))
    data = tmp_path / "d.npy"
    np.save(data, noise(1500, 3, 64, 64))
    output, cache = tmp_path / "out" / "bundle", tmp_path / "cache"
    arguments = (model, "-t", "android", "-c", data)
    process = start_edgeq(
        *("export", *arguments, "-o", output, "--cache", cache),
        before="import edgeq.stages.calibrate.observe as o; o._CHECKPOINT_SECONDS = 0.2",
    )
    deadline = time.monotonic() + 60
    while not list(cache.glob("*.stats")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "Interrupted: nothing was written. Calibration goes on from its cache next time." in err
    assert "Traceback" not in err
    assert not output.parent.exists() or not list(output.parent.iterdir())

    (kept,) = cache.glob("*.stats")
    state = load_state(kept)
    assert state is not None
    assert 0 < state[0] < 1200
    resumed = edgeq("calibrate", *arguments, "--json", "--cache", cache)
    assert resumed.code == 0, resumed.out
    assert list(cache.iterdir()) == [kept]
    state = load_state(kept)
    assert state is not None
    assert state[0] == 1200
    assert resumed.out == edgeq("calibrate", *arguments, "--json", "--no-cache").out
