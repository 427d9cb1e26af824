"""The commands: what they print, as text and as JSON, and the exit codes a build can gate on."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from command_line import classifier, edgeq, images, noise, start_edgeq

from edgeq import __version__, load_target, read_bundle, target_names
from edgeq.cli.main import cli
from edgeq.cli.options import default_cache
from edgeq.report import Report


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return classifier(folder / "tiny.onnx")


@pytest.fixture(scope="module")
def data(folder: Path) -> Path:
    return images(folder / "data.npy")


@pytest.fixture(scope="module")
def bundle(folder: Path, model: Path, data: Path) -> Path:
    output = folder / "bundle"
    found = edgeq("export", model, "-t", "android", "-c", data, "-o", output, "--no-cache", "--no-measure")
    assert found.code == 0, found.err
    return output


@pytest.fixture(scope="module", autouse=True)
def own_cache(folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEQ_CACHE", str(folder / "cache"))
        yield


def commands(group: click.Group = cli, prefix: str = "edgeq") -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = []
    for name, command in group.commands.items():
        found.append((f"{prefix} {name}", command))
        if isinstance(command, click.Group):
            found += commands(command, f"{prefix} {name}")
    return found


# -- all commands


def test_the_commands() -> None:
    assert [name for name, _ in commands()] == [
        "edgeq export",
        "edgeq plan",
        "edgeq inspect",
        "edgeq calibrate",
        "edgeq run",
        "edgeq embed",
        "edgeq targets",
        "edgeq targets show",
        "edgeq targets check",
        "edgeq compare",
        "edgeq devices",
        "edgeq doctor",
    ]


COMMANDS = [("edgeq", cli), *commands()]


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_every_command_has_help_that_ends_in_an_example(name: str, command: click.Command) -> None:
    found = edgeq(*name.split()[1:], "--help")
    assert found.code == 0
    body, _, example = str(command.help).partition("Example:\n")
    assert len(body.strip()) > 20
    assert example.strip().startswith(name)
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{name} {option.name} has no help"
    options = {flag for option in command.params for flag in option.opts}
    assert "--json" in options or name == "edgeq"
    shown = [line.strip() for line in found.out.partition("Example:\n")[2].splitlines()]
    assert shown[0] == example.strip().splitlines()[0], "the example is rewrapped: click wants the character \\b"


def test_version() -> None:
    assert edgeq("--version").out == f"edgeq, version {__version__}\n"


def test_as_a_module() -> None:
    process = start_edgeq("targets", "--json")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert [target["name"] for target in json.loads(out)] == list(target_names())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "model.onnx"), "Missing option '--target'"),
        (("export", "model.onnx", "-t", "android", "--faster"), "No such option '--faster'"),
        (("export", "model.onnx", "-t", "android", "--samples", "0"), "0 is not in the range x>=1"),
        (("plan", "model.onnx", "-t", "android", "--range-method", "best"), "'best' is not one of"),
        (("quantize",), "No such command 'quantize'"),
    ],
)
def test_a_wrong_call_is_exit_code_2(arguments: tuple[str, ...], message: str) -> None:
    found = edgeq(*arguments)
    assert found.code == 2
    assert message in found.err
    assert found.out == ""


# -- export and run


def test_export_says_what_it_made(folder: Path, model: Path, data: Path) -> None:
    output = folder / "said"
    found = edgeq("export", model, "-t", "android", "-c", data, "-o", output, "--no-measure")
    assert found.code == 0, found.err
    assert found.out.startswith("tiny for android in w8a8\n")
    assert "cosine" in found.out
    assert "primary; held-out part, 8 of 24 rows of arrays of 'data.npy'" in found.out
    assert "nodes: 4 integer, 2 fused, 1 moves data; 100.0 % run as the profile predicts" in found.out
    assert "not run on a phone" in found.out
    assert found.out.endswith(f"bundle: {output}\nreport: {output / 'report.html'}\n")
    assert found.err.splitlines() == [
        "load",
        "opset",
        "prepare",
        "calibrate (16)",
        "equalize",
        "calibrate (16)",
        "refining block by block",
        "measuring accuracy (8)",
        "blaming layers (4)",
    ]


def test_export_as_json_is_the_report(folder: Path, model: Path, data: Path) -> None:
    output = folder / "json"
    found = edgeq("export", model, "-t", "android", "-c", data, "-o", output, "--no-measure", "--json")
    assert found.code == 0
    assert found.err == ""
    printed = json.loads(found.out)
    assert printed["bundle"] == str(output)
    assert printed["report"] == json.loads((output / "report.json").read_text())
    assert printed["report"]["latency"] is None


def test_the_default_output_is_named_after_model_and_target(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert edgeq("export", model, "-t", "linux-x64", "-c", data, "--no-measure").code == 0
    assert read_bundle(tmp_path / "tiny-linux-x64").manifest.target == "linux-x64"


def test_the_same_export_gives_the_same_bytes(bundle: Path, folder: Path, model: Path, data: Path) -> None:
    again = folder / "again"
    assert edgeq("export", model, "-t", "android", "-c", data, "-o", again, "--no-measure").code == 0
    names = {path.relative_to(bundle) for path in bundle.rglob("*") if path.is_file()}
    assert names == {path.relative_to(again) for path in again.rglob("*") if path.is_file()}
    for name in names:
        assert (bundle / name).read_bytes() == (again / name).read_bytes(), name


def test_a_precision_and_a_range_method_may_be_chosen(folder: Path, model: Path, data: Path) -> None:
    arguments = ("export", model, "-t", "linux-x64", "-c", data, "-o", folder / "chosen", "--no-measure", "--json")
    found = edgeq(*arguments, "--precision", "w8a8", "--range-method", "minmax", "--no-bias-correction", "-n", "12")
    report = json.loads(found.out)["report"]
    assert report["precision"] == "w8a8"
    assert "minmax range" in {row["rule"] for row in report["plan"]}
    assert "of 12 of 24 rows" in report["metrics"][0]["source"]


def test_weights_alone_need_no_data(folder: Path, model: Path) -> None:
    found = edgeq("export", model, "-t", "linux-x64", "-p", "w8", "-o", folder / "w8", "--no-measure")
    assert found.code == 0
    assert "warning: accuracy was measured on example inputs, which are not real data" in found.out


def test_a_metric_of_ones_own_is_the_primary_one(folder: Path, model: Path, data: Path) -> None:
    metric = folder / "metric.py"
    metric.write_text(
        "import numpy as np\n\n\ndef confidence(predict):\n"
        "    x = np.linspace(-1, 1, 3 * 16 * 16, dtype=np.float32).reshape(1, 3, 16, 16)\n"
        "    return 100.0 + float(predict({'image': x})['logits'].max())\n"
    )
    arguments = ("export", model, "-t", "android", "-c", data, "-o", folder / "metric", "--no-measure", "--json")
    report = json.loads(edgeq(*arguments, "--metric", f"{metric}:confidence", "--max-drop", "1").out)["report"]
    assert report["primary"] == "confidence"
    assert report["contract"]["met"]
    assert report["metrics"][0]["name"] == "confidence"
    assert report["drop"] == pytest.approx(report["metrics"][0]["float_value"] - report["metrics"][0]["value"])


def test_labels_give_accuracy(folder: Path, model: Path) -> None:
    rows = folder / "eval"
    rows.mkdir()
    for index in range(6):
        np.save(rows / f"{index}.npy", noise(1, 3, 16, 16, seed=index))
    labels = folder / "labels.json"
    labels.write_text(json.dumps({f"{index}.npy[0]": 0 for index in range(6)}))
    arguments = ("export", model, "-t", "android", "-c", rows, "-e", rows, "--labels", labels, "--no-measure", "--json")
    found = edgeq(*arguments, "-o", folder / "labelled")
    assert found.code == 0, found.out
    report = json.loads(found.out)["report"]
    assert report["primary"] == "top-1 accuracy"
    assert report["metrics"][0]["float_value"] is not None


def test_run_validates(bundle: Path, folder: Path, model: Path) -> None:
    found = edgeq("run", bundle, "--report", folder / "validation", "--reference", model)
    assert found.code == 0
    assert found.out.startswith("tiny for android in w8a8  contract met\n")
    assert "the bundle's 4 samples" in found.out
    assert "latency" in found.out
    written = (folder / "validation" / "report.json").read_bytes()
    report = Report.from_json(written)
    assert report.contract is not None
    assert report.contract.met
    assert (report.latency is not None) is load_target("android").verification.latency_here
    assert report.memory is not None
    assert report.float_memory is not None
    assert (folder / "validation" / "report.html").read_text().startswith("<!doctype html>")


def test_run_measures_latency_on_machines_of_the_targets_kind(folder: Path, model: Path, data: Path) -> None:
    target = "linux-x64" if load_target("linux-x64").verification.latency_here else "linux-arm64"
    assert edgeq("export", model, "-t", target, "-c", data, "-o", folder / "own", "--no-measure").code == 0
    found = edgeq("run", folder / "own", "--reference", model, "--json")
    latency = json.loads(found.out)["latency"]
    assert latency["quantized"]["p50_ms"] > 0
    assert latency["float_model"]["p50_ms"] > 0


def test_run_as_json(bundle: Path) -> None:
    found = edgeq("run", bundle, "--json")
    assert found.code == 0
    assert json.loads(found.out)["name"] == "tiny"


# -- plan, inspect, calibrate


def test_plan_shows_decisions_and_writes_nothing(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = edgeq("plan", model, "-t", "linux-x64", "-c", data)
    assert found.code == 0
    assert found.out.startswith("plan: w8a8 on linux-x64\n")
    assert "shares the scale of e: the data only moves" in found.out
    assert "and 3 of role weight, 3 of role bias (--all shows them)" in found.out
    assert "nodes on CPUExecutionProvider: 4 integer, 2 fused, 1 moves data" in found.out
    assert not list(tmp_path.iterdir())


def test_plan_all_shows_weights(model: Path, data: Path) -> None:
    found = edgeq("plan", model, "-t", "linux-x64", "-c", data, "--all")
    assert "weight int8" in found.out
    assert "per channel, axis 0 (8)" in found.out


def test_plan_explains_one_node(model: Path, data: Path) -> None:
    found = edgeq("plan", model, "-t", "linux-x64", "-c", data, "--explain", "c")
    assert found.code == 0
    tensors = [line.split()[0] for line in found.out.splitlines() if "int" in line and ".." in line]
    assert set(tensors) == {"b", "w2", "c/bias"}


def test_plan_as_json(model: Path, data: Path) -> None:
    plan = json.loads(edgeq("plan", model, "-t", "android", "-c", data, "--json").out)
    assert (plan["target"], plan["precision"]) == ("android", "w8a8")
    assert {row["dtype"] for row in plan["decisions"] if row["role"] == "activation"} == {"int8"}
    assert {row["node"]: row["kind"] for row in plan["nodes"]}["a"] == "integer"


def test_plan_says_why_something_stays_float(folder: Path, data: Path) -> None:
    from command_line import save

    path = folder / "erf.onnx"
    save(
        path,
        "g (float[batch,3,16,16] x) => (float[batch,4,14,14] y) { a = Erf(x) y = Conv(a, w) }",
        w=noise(4, 3, 3, 3),
    )
    found = edgeq("plan", path, "-t", "linux-x64", "-c", data)
    assert found.code == 0, found.err
    assert "1 float" in found.out
    (row,) = [line for line in found.out.splitlines() if line.startswith("Erf")]
    assert len(row.split()) > 4  # a reason, in words


def test_inspect_without_a_target(model: Path) -> None:
    found = edgeq("inspect", model)
    assert found.code == 0
    assert "image: float32[batch, 3, 16, 16]" in found.out
    assert "logits: float32[batch, 6]" in found.out
    assert "parameters: 854 (3.42 kB)" in found.out
    assert "operators: 2 Conv, 2 Relu, 1 GlobalAveragePool, 1 Flatten, 1 Gemm" in found.out
    assert "integer" not in found.out


def test_inspect_with_a_target(model: Path) -> None:
    found = edgeq("inspect", model, "-t", "android")
    assert "on android in w8a8:" in found.out
    assert "nodes on CPUExecutionProvider: 4 integer, 2 fused, 1 moves data" in found.out


def test_inspect_a_bundle(bundle: Path) -> None:
    found = edgeq("inspect", bundle, "--json")
    assert found.code == 0
    described = json.loads(found.out)
    assert described["operators"]["QuantizeLinear"] > 0
    assert described["inputs"] == ["image: float32[batch, 3, 16, 16]"]


def test_inspect_fixes_dimensions(model: Path) -> None:
    assert "image: float32[2, 3, 16, 16]" in edgeq("inspect", model, "--fix", "batch=2").out


def test_calibrate_fills_the_cache_that_export_uses(model: Path, data: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    found = edgeq("calibrate", model, "-t", "android", "-c", data, "--cache", cache)
    assert found.code == 0
    assert found.out.splitlines()[0].split() == ["tensor", "lowest", "highest", "values"]
    assert f"kept in {cache}" in found.out
    kept = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(kept) == 1
    output = tmp_path / "o"
    assert edgeq("export", model, "-t", "android", "-c", data, "--cache", cache, "-o", output, "--no-measure").code == 0
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()}.items() >= kept.items()


def test_calibrate_as_json(model: Path, data: Path) -> None:
    stats = json.loads(edgeq("calibrate", model, "-t", "android", "-c", data, "--no-cache", "--json").out)
    assert set(stats) == {"image", "b", "d", "e"}
    assert stats["image"]["values"] == 16 * 3 * 16 * 16
    assert stats["b"]["lo"] == 0


def test_where_statistics_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEQ_CACHE", "here")
    assert default_cache() == Path("here")
    monkeypatch.delenv("EDGEQ_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "there")
    assert default_cache() == Path("there/edgeq")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "edgeq"


# -- targets, doctor


def test_targets_lists_them() -> None:
    found = edgeq("targets")
    assert found.code == 0
    names = [line.split()[0] for line in found.out.splitlines()[1:] if line[:1].strip()]
    assert names == list(target_names())


@pytest.mark.parametrize("name", target_names())
def test_targets_show(name: str) -> None:
    found = edgeq("targets", "show", name)
    assert found.code == 0
    assert found.out.startswith(f"{name}: ")
    for source in load_target(name).sources:
        assert source[:60] in found.out


def test_targets_show_as_json() -> None:
    shown = json.loads(edgeq("targets", "show", "android", "--json").out)
    assert shown["provider"]["name"] == "CPUExecutionProvider"


def test_doctor() -> None:
    found = edgeq("doctor")
    assert found.code == 0
    for what in ("Python", "core", "telemetry", "CPUExecutionProvider", "processor", "targets, 2 calibration recipes"):
        assert what in found.out


def test_doctor_notices_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    found = edgeq("doctor", "--json")
    assert found.code == 1
    (check,) = [check for check in json.loads(found.out) if check["state"] == "broken"]
    assert check["name"] == "telemetry"
    assert check["remedy"] == "unset the variable, or set it to 1"


@pytest.mark.skipif(os.name == "nt", reason="pipes of a shell")
def test_a_closed_pipe_is_no_traceback(model: Path) -> None:
    process = start_edgeq("targets", "show", "android", "--json")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    process.wait(timeout=60)


@pytest.mark.skipif(os.name == "nt", reason="needs a terminal of Unix")
def test_on_a_terminal_there_are_bars(model: Path, data: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "edgeq", "calibrate", str(model), "-t", "android", "-c", str(data), "--no-cache"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # Linux ends a terminal whose other side has gone with an error
        while piece := os.read(ours, 65536):
            shown += piece
    os.close(ours)
    assert process.stdout is not None
    out = process.stdout.read().decode()
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert b"calibrate" in shown
    assert b"/16" in shown
    assert b"Traceback" not in shown
    assert out.startswith("tensor")  # results are not mixed with progress


@pytest.mark.parametrize(
    ("arguments", "stopped", "said"),
    [
        (("run", "bundle"), "edgeq.api.run", "Interrupted."),
        (
            ("export", "m.onnx", "-t", "android"),
            "edgeq.pipeline.export",
            "Calibration goes on from its cache next time.",
        ),
        (("export", "m.onnx", "-t", "android", "--no-cache"), "edgeq.pipeline.export", "nothing was written."),
    ],
    ids=["run", "export", "export without a cache"],
)
def test_an_interruption_promises_what_is_true(
    arguments: tuple[str, ...], stopped: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stopped, stop)
    found = edgeq(*arguments)
    assert found.code == 130
    assert found.err.rstrip().endswith(said)
    assert ("Calibration" in found.err) == said.startswith("Calibration")
