"""Packages that take raw pixels: the same model as without, measured from the pictures themselves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from command_line import edgeq as command
from PIL import Image
from small_models import parse, weights

import edgeq
from edgeq.bundle import Bundle, Manifest
from edgeq.errors import CalibrationError, ConfigError
from edgeq.interface import ClassesOutput, EmbeddingOutput, PixelInput, ProbabilitiesOutput, TensorOutput
from edgeq.runtime import run_model
from edgeq.stages.calibrate.images import load_image, load_pixels

SIZES = [(40, 52), (64, 37), (33, 33), (120, 90), (29, 61), (48, 36)]
RECIPE = """
summary = "stripes"
[source]
kind = "images"
path = "pictures"
licence = "CC0-1.0"
[preprocess]
kind = "image"
resize = 20
crop = [16, 16]
mean = [127.0, 127.0, 127.0]
std = [128.0, 128.0, 128.0]
"""


def network() -> ir.Model:
    return parse(
        "g (float[N,3,16,16] x) => (float[N,5] logits) {"
        " c = Conv<pads = [1,1,1,1], strides = [2,2]>(x, w, b) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p)"
        " logits = Gemm(f, v) }",
        w=weights(8, 3, 3, 3, scale=0.5),
        b=weights(8, seed=1),
        v=weights(8, 5, seed=2, scale=3.0),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe and pictures of many sizes, one of them a JPEG that a decoder would halve."""
    folder = tmp_path_factory.mktemp("embedding")
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for number in range(18):
        height, width = SIZES[number % len(SIZES)]
        y, x = np.mgrid[0:height, 0:width]
        waves = np.stack([127 + 100 * np.sin((number + 2) * x / 20), 2.0 * y + number, 250 - 2 * x], axis=-1)
        pixels = np.clip(waves + rng.integers(-20, 21, waves.shape), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number:02}.png")
    Image.fromarray(pixels).resize((300, 400)).save(folder / "pictures" / "large.jpg")
    (folder / "stripes.toml").write_text(RECIPE)
    return folder


def export(folder: Path, output: Path, **more: object) -> Bundle:
    options = {"target": "linux-x64", "precision": "w8a8", "effort": 0, "measure": False} | more
    recipe = folder / "stripes.toml"
    return edgeq.export(network(), calibration=recipe, output=output, **options).bundle  # type: ignore[arg-type]


def quantized(manifest: Manifest) -> list[object]:
    return [row for row in manifest.plan if row.skip_reason is None]


def test_raw_pictures_of_any_size_give_what_the_recipe_gives(folder: Path, tmp_path: Path) -> None:
    plain = export(folder, tmp_path / "plain")
    raw = export(folder, tmp_path / "raw", embed_preprocessing=True)
    steps = plain.manifest.preprocess
    assert quantized(raw.manifest) == quantized(plain.manifest)
    files = sorted((folder / "pictures").iterdir())
    for file in files:
        pixels = {"pixels": load_pixels(file, steps, None)[None]}  # type: ignore[arg-type]
        tensor = (load_image(file, steps).astype(np.float32) - 127) / 128  # type: ignore[arg-type]
        wanted = run_model(plain.model, {"x": tensor.transpose(2, 0, 1)[None]})["logits"]
        np.testing.assert_allclose(run_model(raw.model, pixels)["logits"], wanted, atol=0.05 * np.abs(wanted).max())


def test_the_manifest_says_what_to_pass(folder: Path, tmp_path: Path) -> None:
    bundle = export(folder, tmp_path / "raw", embed_preprocessing=True)
    manifest = bundle.manifest
    assert manifest.preprocess is not None
    assert manifest.interface.inputs == (
        PixelInput(name="pixels", channels=("RGB", "RGBA"), steps=manifest.preprocess),  # type: ignore[arg-type]
    )
    assert manifest.interface.outputs == (TensorOutput(name="logits"),)  # its task was not told
    (entry,) = manifest.inputs
    assert (entry.dtype, entry.shape) == ("uint8", ("N", "height", "width", "channels"))
    samples = np.load(bundle.path / "samples" / "input_0.npy")
    assert samples.dtype == np.uint8
    assert samples.shape[-1] == 3
    skipped = {row.tensor: row for row in manifest.plan if row.rule == "embedded step"}
    assert "pixels/numbers" in skipped
    assert "computes what the recipe says" in str(skipped["pixels/numbers"].skip_reason)
    assert {node.node: node.kind for node in manifest.forecast}["pixels/resized"] == "moves data"
    assert edgeq.run(bundle.path).contract.met  # type: ignore[union-attr]


def test_the_report_proves_the_steps_and_measures_from_raw_pictures(folder: Path, tmp_path: Path) -> None:
    plain = export(folder, tmp_path / "plain")
    raw = export(folder, tmp_path / "raw", embed_preprocessing=True)
    reports = [json.loads((one.path / "report.json").read_text()) for one in (plain, raw)]
    (before, after) = [next(m["value"] for m in r["metrics"] if m["name"] == "SQNR") for r in reports]
    assert abs(before - after) < 0.5
    proof = next(f["text"] for f in reports[1]["findings"] if f["text"].startswith("embedded steps against the recipe"))
    assert "at most" in proof
    assert reports[1]["agreement"] == 1.0
    page = (raw.path / "report.html").read_text()
    assert "embedded steps against the recipe" in page


def test_pictures_of_one_size(folder: Path, tmp_path: Path) -> None:
    bundle = export(folder, tmp_path / "raw", embed_preprocessing=(30, 40))
    (entry,) = bundle.manifest.inputs
    assert entry.shape == ("N", 30, 40, 3)
    (pixels,) = bundle.manifest.interface.inputs
    assert isinstance(pixels, PixelInput)
    assert (pixels.height, pixels.width, pixels.channels) == (30, 40, ("RGB",))
    assert np.load(bundle.path / "samples" / "input_0.npy").shape[1:] == (1, 30, 40, 3)


def test_a_target_of_fixed_shapes_wants_a_size(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="android-npu takes graphs of fixed shapes only") as caught:
        export(folder, tmp_path / "raw", target="android-npu", embed_preprocessing=True)
    assert "--embed-preprocessing 480x640" in str(caught.value.remedy)


def test_a_target_whose_compiler_fails_on_the_steps_is_told_before_the_work(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="android-npu@v68 cannot have its preprocessing embedded: its emulator fails to compile"
    ):
        export(folder, tmp_path / "raw", target="android-npu@v68", embed_preprocessing=(30, 40))


@pytest.mark.parametrize(
    ("target", "size", "on_the_cpu"),
    [
        pytest.param("linux-x64", True, None, id="the CPU itself"),
        pytest.param("android-npu", "30x40", {"resized"}, id="QNN"),
        pytest.param(
            "web-gpu",
            True,
            {
                "sides",
                "short",
                "scaled",
                "size",
                "resized",
                "found",
                "spare",
                "half",
                "odd",
                "up",
                "more",
                "start",
                "end",
            }
            | {"cropped"},
            id="WebGPU",
        ),
    ],
)
def test_which_steps_are_the_cpus(
    folder: Path, tmp_path: Path, target: str, size: bool | str, on_the_cpu: set[str] | None
) -> None:
    more = {"target": target, "precision": None, "fallback": False, "embed_preprocessing": size}
    forecast = export(folder, tmp_path / "raw", **more).manifest.forecast
    steps = {node.node.removeprefix("pixels/"): node for node in forecast if node.node.startswith("pixels/")}
    assert all("an embedded step" in node.why for node in steps.values())
    found = {name for name, node in steps.items() if node.provider == "CPUExecutionProvider"}
    assert found == (set(steps) if on_the_cpu is None else on_the_cpu)


def test_a_fourth_channel(folder: Path, tmp_path: Path) -> None:
    bundle = export(folder, tmp_path / "raw", embed_preprocessing="30x40x4")
    (pixels,) = bundle.manifest.interface.inputs
    assert isinstance(pixels, PixelInput)
    assert pixels.channels == ("RGBA",)
    samples = np.load(bundle.path / "samples" / "input_0.npy")
    assert samples.shape[1:] == (1, 30, 40, 4)
    assert (samples[..., 3] == 255).all()


def test_where_the_provider_leaves_pixels_to_the_cpu_the_report_says_so(folder: Path, tmp_path: Path) -> None:
    options = {"target": "ios-npu", "precision": None, "embed_preprocessing": "30x40"}
    bundle = export(folder, tmp_path / "raw", **options)
    report = json.loads((bundle.path / "report.json").read_text())
    text = next(f["text"] for f in report["findings"] if "embedded steps are expected on the CPU" in f["text"])
    assert "beside CoreMLExecutionProvider" in text
    assert "Resize" in text
    assert [graph.target for graph in bundle.manifest.graphs] == ["ios-npu", "ios"]  # both take the same pixels
    # Floats are float16 behind the pixels only.
    model = ir.load(bundle.model)
    types = {str(v.name): v.dtype for node in model.graph for v in node.outputs}
    assert types["pixels/centred"] == ir.DataType.FLOAT


def test_arrays_are_no_pictures(folder: Path, tmp_path: Path) -> None:
    rows = [{"x": weights(1, 3, 16, 16, seed=n)} for n in range(12)]
    with pytest.raises(ConfigError, match="it is not known how the model wants its pictures prepared"):
        edgeq.export(network(), target="linux-x64", calibration=rows, output=tmp_path / "a", embed_preprocessing=True)
    with pytest.raises(CalibrationError, match="what takes raw pixels can be measured on pictures only"):
        export(folder, tmp_path / "b", evaluation=rows, embed_preprocessing=True)


@pytest.mark.parametrize("size", ["48", "axb", "0x5", "4x4x2", "model.onnx", "1x" + "9" * 5000, "20000x20000"])
def test_what_is_no_size_is_refused(size: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no size of pictures") as caught:
        export(folder, tmp_path / "a", embed_preprocessing=size)
    assert "HEIGHTxWIDTH" in str(caught.value.remedy)


def test_the_command_line(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    ir.save(network(), model)
    given = (model, "-t", "linux-x64", "-p", "w8a8", "-c", folder / "stripes.toml", "--effort", "0", "--no-cache")
    made = command("export", *given, "--no-measure", "-o", tmp_path / "out", "--embed-preprocessing")
    assert made.code == 0, made.err
    assert "embedded steps against the recipe" in made.out
    planned = command("plan", *given, "--embed-preprocessing", "30x40")
    assert planned.code == 0, planned.err
    assert "an embedded step" in planned.out


def test_a_classifier_gives_probabilities_and_classes(folder: Path, tmp_path: Path) -> None:
    more = {"embed_preprocessing": True, "embed_postprocessing": True, "task": "image-classification"}
    bundle = export(folder, tmp_path / "both", **more)
    assert bundle.manifest.interface.outputs == (
        ProbabilitiesOutput(name="probabilities", classes=5),
        ClassesOutput(name="classes", count=5, classes=5),
        ProbabilitiesOutput(name="class_probabilities", classes=5, of="classes"),
    )
    found = run_model(bundle.model, {"pixels": np.load(bundle.path / "samples" / "input_0.npy")[0]})
    assert found["probabilities"].sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(found["classes"][0], np.argsort(-found["probabilities"][0]))
    report = json.loads((bundle.path / "report.json").read_text())
    assert report["primary"] == "top-1 agreement"
    assert not any("classes " in metric["name"] for metric in report["metrics"])  # numbers of classes are no signal
    assert "classes" not in bundle.manifest.samples.sqnr_db  # type: ignore[union-attr]
    assert edgeq.run(bundle.path).contract.met  # type: ignore[union-attr]


def test_a_model_whose_task_is_not_known_has_no_answers(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing to embed behind this model: its outputs are logits \(tensor\)"):
        export(folder, tmp_path / "a", embed_postprocessing=True)


def test_texts_give_finished_embeddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = parse(
        "g (int64[N,L] input_ids, int64[N,L] attention_mask) => (float[N,L,16] last_hidden_state) {"
        " e = Gather(t, input_ids) last_hidden_state = MatMul(e, w) }",
        t=weights(50, 32),
        w=weights(32, 16, seed=1),
    )
    rng = np.random.default_rng(0)
    rows = [
        {"input_ids": rng.integers(0, 50, (1, 9)), "attention_mask": (np.arange(9) < rng.integers(2, 9))[None] * 1}
        for _ in range(12)
    ]
    options = {"target": "linux-x64", "precision": "w8a8", "effort": 0, "measure": False, "calibration": rows}
    names = {"task": "feature-extraction", "embed_postprocessing": True, "output": tmp_path / "out"}
    result = edgeq.export(model, **options, **names)  # type: ignore[arg-type]
    manifest = result.bundle.manifest
    assert manifest.interface.outputs == (EmbeddingOutput(name="sentence_embedding", size=16, normalized=True),)
    found = run_model(result.bundle.model, rows[0])["sentence_embedding"]
    assert np.linalg.norm(found, axis=1) == pytest.approx([1.0], abs=1e-5)
    assert any("how its tokens are pooled" in finding.text for finding in result.report.findings)
    monkeypatch.delattr("edgeq.pipeline.job.calibrate")  # it is not reached
    with pytest.raises(ConfigError, match="nothing can be embedded in front of this model"):
        edgeq.export(model, **options, embed_preprocessing=True, output=tmp_path / "no")  # type: ignore[arg-type]
