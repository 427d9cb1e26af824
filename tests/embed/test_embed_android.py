"""The Android module as text: what it holds for which bundle."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from embed_models import HOSTILE, MakeBundle, with_fallback

import edgeq
from edgeq.errors import ConfigError
from edgeq.recipe import ImagePreprocess
from edgeq.stages.embed.ort_format import convert_to_ort
from edgeq.stages.embed.platforms import android
from edgeq.stages.embed.platforms.android_code import kotlin_code
from edgeq.stages.embed.signature import read_signature
from edgeq.target import Provider

QNN = Provider(
    name="QNNExecutionProvider",
    package="onnxruntime-qnn",
    version=">=2.7",
    registration="plugin",
    module="onnxruntime_qnn",
    options={"backend_type": "htp", "soc_model": "69"},
)


def texts(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.suffix in (".kt", ".kts", ".xml", ".md", ".sh", ".pro"))
    return {path.name: path.read_text(encoding="utf-8") for path in files}


def balanced(code: str) -> bool:
    """Whether brackets close in order, strings and comments aside."""
    bare = re.sub(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", "", code, flags=re.DOTALL)
    stack, pairs = [], {")": "(", "]": "[", "}": "{"}
    for char in bare:
        if char in pairs.values():
            stack.append(char)
        elif char in pairs and (not stack or stack.pop() != pairs[char]):
            return False
    return not stack


def test_brackets_close_whatever_names_there_are(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle(names=HOSTILE, shape=("class", None, 3), name=HOSTILE[3])
    found = texts(edgeq.embed(bundle.path, platform="android", output=tmp_path / "out", bench=True).path)
    assert len(found) >= 11
    for name, text in found.items():
        assert not name.endswith((".kt", ".kts")) or balanced(text), name


def test_a_bracket_that_does_not_close_would_be_noticed() -> None:
    assert balanced('fun f() { g("}") } // }')
    assert not balanced("fun f() { g(} )")
    assert not balanced("fun f() {")


def test_dynamic_dimensions_are_parameters_that_follow_from_what_is_passed(make_bundle: MakeBundle) -> None:
    def defaults(*shape: int | str | None) -> list[tuple[str, str | None]]:
        bundle = make_bundle(f"b{len(str(shape))}", names=("a", "b"), shape=shape, labels=())
        return [(size.id, size.array_default) for size in kotlin_code(read_signature(bundle)).sizes]

    assert defaults("batch", "length") == [("batch", "1"), ("length", "a.size / batch")]
    assert defaults("batch", "h", "w", 3) == [("batch", "1"), ("h", None), ("w", "a.size / (batch * h * 3)")]
    assert defaults(None, 3) == [("aAxis0", "a.size / 3"), ("bAxis0", "b.size / 3")]
    assert defaults(1, 3) == []


@pytest.mark.parametrize(
    ("dtype", "kotlin"),
    [("FLOAT", "FloatArray"), ("FLOAT16", "FloatArray"), ("INT64", "LongArray"), ("UINT8", "ByteArray")],
)
def test_tensors_have_the_type_of_their_elements(
    dtype: str, kotlin: str, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = make_bundle(dtype=ir.DataType[dtype], labels=())
    code = texts(edgeq.embed(bundle.path, platform="android", output=tmp_path / "out").path)["Tiny.kt"]
    assert f"        x: {kotlin}," in code
    assert f"val xOut: {kotlin}," in code
    assert ("Fp16Conversions" in code) == (dtype == "FLOAT16")
    assert ("OnnxJavaType.UINT8" in code) == (dtype == "UINT8")


def test_telemetry_is_off_before_the_first_class_of_the_runtime(make_bundle: MakeBundle, tmp_path: Path) -> None:
    code = texts(edgeq.embed(make_bundle().path, platform="android", output=tmp_path / "out").path)
    runtime = code["OrtRuntime.kt"]
    assert runtime.index('Os.setenv("ORT_DISABLE_TELEMETRY", "1", true)') < runtime.index("OrtEnvironment.getEnv")
    opened = code["Tiny.kt"].partition("private fun openModel")[2]
    assert opened.index("OrtRuntime.environment") < opened.index("SessionOptions")
    assert "-keep class ai.onnxruntime.** { *; }" in code["consumer-rules.pro"]


def test_an_npu_has_its_plugin_and_falls_back_to_the_cpu(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = with_fallback(make_bundle(provider=QNN))
    found = edgeq.embed(bundle.path, platform="android", output=tmp_path / "out")
    code = texts(found.path)
    for line in (
        '"session.disable_cpu_ep_fallback" to "1"',
        '"backend_type" to "htp"',
        '"libonnxruntime_providers_qnn.so"',
    ):
        assert line in code["Plugin.kt"], line
    assert "soc_model" not in code["Plugin.kt"], "a phone knows its own chip"
    assert code["Plugin.kt"].index("ADSP_LIBRARY_PATH") < code["Plugin.kt"].index("if (devices.isEmpty())")
    assert 'uses-native-library android:name="libcdsprpc.so" android:required="false"' in code["AndroidManifest.xml"]
    gradle = code["build.gradle.kts"]
    for line in ("useLegacyPackaging = true", "com.qualcomm.qti:qnn-runtime:$qnnRuntimeVersion", "minSdk = 27"):
        assert line in gradle, line
    model = code["Tiny.kt"]
    assert "catch (error: OrtException)" in model
    assert 'options.addConfigEntry("session.x", "1")' in model.partition("private fun openFallback")[2]
    assert "fallbackAnswersAsRecorded" in code["TinyTest.kt"]
    assert '"x out" to 20.0' in code["TinyTest.kt"]
    assert {"model/model.onnx", "fallback/model.onnx"} <= {
        f"{path.parent.name}/{path.name}" for path in found.path.rglob("*.onnx")
    }


def test_the_cpu_has_nothing_of_an_npu(make_bundle: MakeBundle, tmp_path: Path) -> None:
    code = texts(edgeq.embed(make_bundle().path, platform="android", output=tmp_path / "out").path)
    assert "Plugin.kt" not in code
    assert not any("qnn" in text.lower() or "useLegacyPackaging" in text for text in code.values())


def test_other_processors_need_libraries_for_them(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle(provider=QNN)
    with pytest.raises(ConfigError, match="no libraries for x86_64") as caught:
        edgeq.embed(bundle.path, platform="android", output=tmp_path / "out", abis=["x86_64"])
    assert "choose among arm64-v8a" in str(caught.value)
    cpu = edgeq.embed(make_bundle("cpu").path, platform="android", output=tmp_path / "cpu-out", abis=["x86_64", "x86"])
    assert 'listOf("x86_64", "x86")' in texts(cpu.path)["build.gradle.kts"]
    assert [row.part for row in cpu.sizes if row.part.startswith("together")] == ["together, x86_64", "together, x86"]


def test_sizes_are_those_of_the_files(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle()
    found = edgeq.embed(bundle.path, platform="android", output=tmp_path / "out")
    model, runtime, together, reduced = found.sizes
    assert model.bytes == bundle.model.stat().st_size
    assert together.bytes == model.bytes + (runtime.bytes or 0)
    assert reduced.bytes is None
    assert "| reduced runtime | n/a |" in texts(found.path)["README.md"]


def test_a_large_model_goes_to_an_asset_pack(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle()
    monkeypatch.setattr(android, "PLAY_BASE_BYTES", bundle.model.stat().st_size - 1)
    found = edgeq.embed(bundle.path, platform="android", output=tmp_path / "out").path
    assert (found / "asset-pack/src/main/assets/edgeq/tiny/model/model.onnx").exists()
    assert (found / "src/main/assets/edgeq/tiny/labels.txt").exists()
    assert 'deliveryType = "install-time"' in (found / "asset-pack/build.gradle.kts").read_text()
    assert 'assetPacks += ":tiny-assets"' in (found / "README.md").read_text()
    monkeypatch.undo()
    small = edgeq.embed(bundle.path, platform="android", output=found)
    assert "asset-pack/build.gradle.kts" in small.removed
    assert not (found / "asset-pack").exists()


# -- the ort format


def answers(model: Path, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    import onnxruntime as ort

    return list(ort.InferenceSession(str(model), providers=["CPUExecutionProvider"]).run(None, feed))


def test_the_ort_format_answers_the_same_and_names_its_operators(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle()
    found = edgeq.embed(bundle.path, platform="android", output=tmp_path / "out", model_format="ort").path
    (model,) = found.rglob("*.ort")
    assert not list(found.rglob("*.onnx"))
    feed = {"x": np.ones((2, 3), np.float32)}
    np.testing.assert_array_equal(answers(model, feed), answers(bundle.model, feed))
    code = texts(found)["Tiny.kt"]
    assert 'listOf("model.ort")' in code
    assert 'addConfigEntry("session.use_memory_mapped_ort_model", "1")' in code
    operators = (found / "size/required_operators_and_types.config").read_text()
    assert operators.startswith("ai.onnx;21;Identity")
    assert "/" not in operators


def test_a_converted_model_stays_while_nothing_changes(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle()
    first = edgeq.embed(bundle.path, platform="android", output=tmp_path / "out", model_format="ort")
    (model,) = first.path.rglob("*.ort")
    # What a second conversion gives may differ in its bytes; this stands for it.
    record = first.path / ".edgeq.json"
    table = json.loads(record.read_text())
    (path,) = table["made"].keys() & {name for name in table["files"] if name.endswith(".ort")}
    again = edgeq.embed(bundle.path, platform="android", output=first.path)
    assert again.written == ()
    assert path in again.unchanged
    model.write_bytes(b"mine")
    assert path in edgeq.embed(bundle.path, platform="android", output=first.path).kept


def test_session_entries_choose_the_key_of_a_conversion(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle()
    keys = {
        convert_to_ort(bundle.model, entries, tmp_path, sha256=sha256).key
        for entries in ({}, {"session.intra_op.allow_spinning": "0"})
        for sha256 in ("a", "b")
    }
    assert len(keys) == 4


# -- pictures and classes


def test_a_classifier_takes_a_bitmap(make_bundle: MakeBundle, tmp_path: Path) -> None:
    steps = ImagePreprocess(crop=(4, 6), resize=8, mean=(1.0, 2.0, 3.0))
    bundle = make_bundle(shape=("n", 3, 4, 6), preprocess=steps, labels=())
    code = texts(edgeq.embed(bundle.path, platform="android", output=tmp_path / "out").path)
    assert "floatArrayOf(1.0f, 2.0f, 3.0f)" in code["Pictures.kt"]
    assert "const val SUPPORT = 2.0" in code["Pictures.kt"]
    assert "fun classify" not in code["Tiny.kt"], "what comes out is not known"
    logits = make_bundle("b", shape=("n", 3), labels=("a", "b", "c"))
    assert "fun top" in texts(edgeq.embed(logits.path, platform="android", output=tmp_path / "b2").path)["Tiny.kt"]


@pytest.mark.parametrize("package", ["vision", "com.class.x", "com..x", "com.1x", "@a/b"])
def test_packages_that_android_cannot_have_are_refused(package: str, make_bundle: MakeBundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        edgeq.embed(make_bundle().path, platform="android", output=tmp_path / "out", package=package)


def test_a_class_of_the_runtime_is_no_name_for_the_model(make_bundle: MakeBundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'OrtSession' cannot be the name of the class"):
        edgeq.embed(make_bundle().path, platform="android", output=tmp_path / "out", name="OrtSession")
    found = edgeq.embed(make_bundle("b", name="ort session").path, platform="android", output=tmp_path / "b2").path
    assert "OrtSessionModel.kt" in texts(found)


def test_converting_logs_nothing_of_scratch_folders(
    make_bundle: MakeBundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG"):
        edgeq.embed(make_bundle().path, platform="android", output=tmp_path / "out")
    assert not [record for record in caplog.records if record.levelname == "INFO"]
