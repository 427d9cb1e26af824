"""Bundles: the same bytes each time, and nothing that was changed or leads outside is opened."""

from __future__ import annotations

import json
import subprocess
import sys

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgeq.bundle import GraphEntry, read_bundle
from edgeq.errors import ConfigError, ValidationError
from edgeq.output import atomic_folder
from edgeq.recipe import TextPreprocess
from edgeq.stages.package import write_bundle, write_report
from edgeq.target import Provider, Verification

MODEL = """<ir_version: 10, opset_import: ["" : 21]>
g (float[N,3] x) => (float[N,3] y) { c = Constant<value = float {0.9}>() y = Mul(x, c) }"""


def _write(folder, model, draft, samples, second=None, **changes):
    folder.mkdir(exist_ok=True)
    inputs, outputs = samples
    return write_bundle(
        folder,
        model=model,
        manifest=msgspec.structs.replace(draft, **changes),
        fallback=second,
        sample_inputs=inputs,
        reference_outputs=outputs,
        sqnr_db={"y": 20.0},
        labels=("cat", "dog", "bird"),
    )


@pytest.fixture
def bundle(tmp_path, model, draft, samples):
    _write(tmp_path / "b", model, draft, samples)
    return tmp_path / "b"


def test_a_bundle_reads_back_as_it_was_written(tmp_path, model, draft, samples):
    with atomic_folder(tmp_path / "out") as folder:
        written = _write(folder, model, draft, samples)
    read = read_bundle(tmp_path / "out")
    assert read.manifest.to_json() == written.to_json()
    assert set(read.manifest.files) == {
        "LICENSES.md",
        "README.md",
        "labels.txt",
        "model.onnx",
        "samples/input_0.npy",
        "samples/output_0.npy",
    }
    assert read.manifest.samples.sqnr_db == {"y": 20.0}
    assert np.load(read.file("samples/input_0.npy")).shape == (3, 1, 3)
    assert [(t.name, t.dtype, t.shape) for t in read.manifest.inputs] == [("x", "float32", ("N", 3))]
    assert (read.path / "labels.txt").read_text() == "cat\ndog\nbird\n"


def test_two_writes_give_the_same_bytes_and_no_absolute_path(tmp_path, model, draft, samples):
    contents = []
    for name in ("a", "b"):
        _write(tmp_path / name, model, draft, samples)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        contents.append([(path.relative_to(tmp_path / name), path.read_bytes()) for path in files])
    assert contents[0] == contents[1]
    manifest = (tmp_path / "a" / "manifest.json").read_text()
    assert str(tmp_path) not in manifest
    assert list(json.loads(manifest)) == sorted(json.loads(manifest))


def test_the_readme_runs(bundle, tmp_path):
    code = (bundle / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert "ORT_DISABLE_TELEMETRY" in code
    assert "'session.intra_op.allow_spinning', '0'" in code
    script = code + "\nassert outputs[0].tolist() == [[0.8999999761581421] * 3], outputs\n"
    subprocess.run([sys.executable, "-c", script], cwd=bundle, check=True, timeout=60)


@pytest.fixture
def pair(tmp_path, model, draft, samples):
    """A bundle with a second graph, which is the first one again."""
    entry = GraphEntry(
        model="fallback/model.onnx",
        target="android",
        precision="w8",
        provider=Provider(
            name="CPUExecutionProvider",
            package="onnxruntime",
            version=">=1.24.2",
            session={"session.qdqisint8allowed": "1"},
        ),
        verification=Verification(note="a test", sandbox="arm64", arguments={"cpu": "max"}),
        sqnr_db={"y": 20.0},
    )
    _write(tmp_path / "p", model, draft, samples, fallback=entry, second=model)
    return tmp_path / "p"


def test_a_bundle_of_two_graphs_reads_back(pair):
    manifest = read_bundle(pair).manifest
    first, second = manifest.graphs
    assert (first.model, first.target, first.sqnr_db) == ("model.onnx", "linux-x64", {"y": 20.0})
    assert (second.model, second.precision, second.sqnr_db) == ("fallback/model.onnx", "w8", {"y": 20.0})
    assert second.verification.arguments == {"cpu": "max"}
    assert "fallback/model.onnx" in manifest.files


@pytest.mark.parametrize("change", ["byte", "gone", "link"])
def test_tampering_with_the_fallback_is_noticed(pair, tmp_path, change):
    file = pair / "fallback" / "model.onnx"
    if change == "byte":
        file.write_bytes(file.read_bytes()[:-1] + b"\0")
    elif change == "gone":
        file.unlink()
    else:
        (pair / "fallback").rename(tmp_path / "elsewhere")
        (pair / "fallback").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValidationError, match=r"'fallback/model.onnx' (has|is missing|is a symbolic link)"):
        read_bundle(pair)


def test_the_fallback_needs_a_checksum(pair):
    manifest = json.loads((pair / "manifest.json").read_text())
    del manifest["files"]["fallback/model.onnx"]
    (pair / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValidationError, match=r"names fallback/model.onnx, but lists no checksum"):
        read_bundle(pair)


def test_a_fallback_of_another_interface_is_refused(tmp_path, model, draft, samples, pair):
    other = ir.from_proto(onnx.parser.parse_model(MODEL.replace("[N,3]", "[N,4]")))
    entry = read_bundle(pair).manifest.fallback
    with pytest.raises(ConfigError, match=r"the fallback for android has x: float32\['N', 4\] where the model has"):
        _write(tmp_path / "q", model, draft, samples, fallback=entry, second=other)


def test_the_readme_says_how_to_load_the_fallback(pair):
    blocks = [block.split("```")[0] for block in (pair / "README.md").read_text().split("```python\n")[1:]]
    script = "\n".join([*blocks, "assert session.run(None, inputs)[0].tolist() == outputs[0].tolist()"])
    assert "'session.qdqisint8allowed', '1'" in blocks[1]
    subprocess.run([sys.executable, "-c", script], cwd=pair, check=True, timeout=60)


def test_a_manifest_from_before_there_were_two_graphs_still_reads(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    for key in ("fallback", "verification"):
        del manifest[key]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert [graph.model for graph in read_bundle(bundle).manifest.graphs] == ["model.onnx"]


@pytest.mark.parametrize("name", ["model.onnx", "samples/input_0.npy", "README.md"])
def test_a_changed_byte_is_found(bundle, name):
    data = bytearray((bundle / name).read_bytes())
    data[-1] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(ValidationError, match=f"'{name}' has another sha256 than the manifest says"):
        read_bundle(bundle)


def test_a_truncated_and_a_missing_file_are_found(bundle):
    data = (bundle / "labels.txt").read_bytes()
    (bundle / "labels.txt").write_bytes(data[:-1])
    with pytest.raises(ValidationError, match=f"has {len(data) - 1} bytes instead of {len(data)}"):
        read_bundle(bundle)
    (bundle / "labels.txt").unlink()
    with pytest.raises(ValidationError, match=r"'labels.txt' is missing"):
        read_bundle(bundle)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "a/../../secret", "./model.onnx", "..\\secret", "C:secret", "", "."]
)
def test_paths_that_lead_outside_are_refused(bundle, name):
    (bundle.parent / "secret").write_text("s")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = manifest["files"]["labels.txt"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValidationError, match=r"is not a plain path inside the bundle[\s\S]*do not trust"):
        read_bundle(bundle)


@pytest.mark.parametrize("target", ["labels.txt", "samples"])
def test_symbolic_links_are_refused(bundle, tmp_path, target):
    (bundle / target).rename(tmp_path / "elsewhere")
    (bundle / target).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValidationError, match="is a symbolic link; a bundle holds plain files only"):
        read_bundle(bundle)


def test_every_file_that_the_manifest_uses_needs_a_checksum(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["files"]["samples/output_0.npy"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValidationError, match=r"names samples/output_0.npy, but lists no checksum"):
        read_bundle(bundle)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"schema": 99}, "has schema 99, this edgeq reads schema 1"),
        ({"surprise": 1}, "unknown field `surprise`"),
        ({"name": 3}, "Expected `str`"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(bundle, change, text):
    manifest = {**json.loads((bundle / "manifest.json").read_text()), **change}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=text):
        read_bundle(bundle)


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_garbage_is_not_a_manifest(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ConfigError, match="the manifest"):
        read_bundle(tmp_path)
    with pytest.raises(ConfigError, match=r"not an edgeq bundle[\s\S]*edgeq export"):
        read_bundle(tmp_path / "nowhere")


def test_a_tokenizer_goes_into_the_bundle(tmp_path, model, draft, samples):
    (tmp_path / "somewhere.json").write_text("{}")
    text = TextPreprocess(tokenizer=str(tmp_path / "somewhere.json"))
    manifest = _write(tmp_path / "b", model, draft, samples, preprocess=text)
    assert manifest.preprocess.tokenizer == "tokenizer.json"
    assert "tokenizer.json" in manifest.files
    with pytest.raises(ConfigError, match="the tokenizer does not exist"):
        _write(tmp_path / "c", model, draft, samples, preprocess=TextPreprocess(tokenizer="/nowhere.json"))


def test_samples_of_other_shapes_are_left_out(tmp_path, model, draft, samples):
    inputs, outputs = samples
    odd = np.zeros((2, 3), np.float32)
    manifest = _write(tmp_path / "b", model, draft, ([*inputs, {"x": odd}], [*outputs, {"y": odd}]))
    assert manifest.samples.count == 3


def test_a_label_of_two_lines_is_refused(tmp_path, model, draft):
    with pytest.raises(ConfigError, match="is not one line of text"):
        write_bundle(tmp_path, model=model, manifest=draft, labels=("a\nb",))


def test_a_hostile_name_cannot_break_the_markdown(tmp_path, model, draft, samples):
    _write(tmp_path / "b", model, draft, samples, name="x`|\n# [title](javascript:1) <b>")
    first = (tmp_path / "b" / "README.md").read_text().splitlines()[0]
    assert first == "# x__ # _title_(javascript:1) _b> for linux-x64"


def test_reports_lie_beside_the_manifest_not_in_it(bundle, report):
    manifest = read_bundle(bundle).manifest
    write_report(bundle, report, manifest)
    assert (bundle / "report.html").stat().st_size > 10_000
    assert not {"report.html", "report.json"} & set(read_bundle(bundle).manifest.files)
