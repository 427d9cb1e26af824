"""The Android module with the real tools of an Android build: compiler, linker, aligner, signer."""

from __future__ import annotations

import os
import shlex
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from android_tools import (
    AAR,
    ANDROID_JAR,
    DX,
    KOTLIN,
    RUNTIME_JAR,
    TOOLS,
    compile_kotlin,
    kotlinc,
    link,
    load_alignments,
    needs_android_tools,
    run,
    stored_offsets,
)
from embed_models import HOSTILE, SIZES, MakeBundle
from embed_texts import TEXTS, TOKENIZERS, expected, make_text_bundle, random_texts, read_tokens, write_texts

import edgeq
from edgeq.geometry import seen
from edgeq.graph import TensorInfo
from edgeq.recipe import ImagePreprocess
from edgeq.stages.calibrate.images import ImageStore
from edgeq.stages.embed.platforms.android_runtime import ABIS, PROVIDERS, RUNTIME_BYTES
from edgeq.target import Provider

pytestmark = [pytest.mark.slow, needs_android_tools]

STUBS = Path(__file__).with_name("android_stubs")
PAGE = 16384


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The module of EfficientNet-Lite0 for Android."""
    folder = tmp_path_factory.mktemp("example")
    edgeq.export("example:efficientnet-lite0", target="android", output=folder / "bundle", effort=0, measure=False)
    return edgeq.embed(folder / "bundle", platform="android", output=folder / "module", bench=True).path


def test_real_models_compile(example: Path, tmp_path: Path) -> None:
    """A picture model for the CPU, the same for the NPU with a fallback in the ort format, and a text model."""
    sources = [STUBS, *(example / "src").glob("*/kotlin")]
    for name, target in (("efficientnet-lite0", "android-npu"), ("minilm", "android")):
        bundle = tmp_path / name
        edgeq.export(f"example:{name}", target=target, output=bundle, effort=0, measure=False)
        form = "ort" if target == "android-npu" else None
        module = edgeq.embed(
            bundle, platform="android", package=f"npu.{name.replace('-', '')}", bench=True, model_format=form
        )
        sources += (module.path / "src").glob("*/kotlin")
    compile_kotlin(sources, tmp_path / "classes")
    assert (tmp_path / "classes" / "edgeq" / "efficientnet_lite0" / "EfficientnetLite0.class").exists()


def test_hostile_names_compile(make_bundle: MakeBundle, tmp_path: Path) -> None:
    labels = [f"{i} {name}".splitlines()[0] for i, name in enumerate(HOSTILE[:3])]
    bundle = make_bundle(names=HOSTILE, name="Runtime */ ${x}", labels=labels, shape=("class", None))
    module = edgeq.embed(bundle.path, platform="android", output=tmp_path / "module", bench=True).path
    compile_kotlin([STUBS, *(module / "src").glob("*/kotlin")], tmp_path / "classes")


def test_every_type_compiles(make_bundle: MakeBundle, tmp_path: Path) -> None:
    sources = [STUBS]
    for dtype in ("FLOAT16", "DOUBLE", "INT64", "INT16", "UINT8", "BOOL"):
        bundle = make_bundle(
            dtype, name=dtype, names=("a", "b"), dtype=ir.DataType[dtype], shape=(None, 3, "n"), labels=()
        )
        module = edgeq.embed(bundle.path, platform="android", output=tmp_path / "modules" / dtype, bench=True).path
        sources += (module / "src").glob("*/kotlin")
    compile_kotlin(sources, tmp_path / "classes")


def test_every_provider_compiles(make_bundle: MakeBundle, tmp_path: Path) -> None:
    sources = [STUBS]
    for name in PROVIDERS:
        provider = Provider(name=name, package="p", version=">=1", options={"a": "b"}, session={"c": "d"})
        bundle = make_bundle(name, name=name, provider=provider)
        module = edgeq.embed(bundle.path, platform="android", output=tmp_path / "modules" / name).path
        sources += (module / "src").glob("*/kotlin")
        link(module / "src" / "main" / "AndroidManifest.xml", tmp_path / "linked.apk", "com.example.app")
    compile_kotlin(sources, tmp_path / "classes")


def test_manifests_link(example: Path, tmp_path: Path) -> None:
    for kind in ("main", "debug"):
        link(example / "src" / kind / "AndroidManifest.xml", tmp_path / f"{kind}.apk", "com.example.app")
    shown = run(["aapt2", "dump", "badging", tmp_path / "debug.apk"])
    assert "package: name='com.example.app'" in shown
    assert "targetSdkVersion:'36'" in shown


def test_an_aar_is_made_without_gradle(example: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.aar"
    environment = {"ANDROID_JAR": ANDROID_JAR, "ORT_AAR": AAR, "KOTLIN_STDLIB": KOTLIN / "kotlin-stdlib.jar"}
    texts = {name: str(path) for name, path in environment.items()}
    compiler = tmp_path / "kotlinc"
    compiler.write_text(f'#!/bin/sh\nexec {shlex.join(kotlinc())} "$@"\n', encoding="utf-8")
    compiler.chmod(0o755)
    run(["sh", example / "make-aar.sh", output], **texts, KOTLINC=str(compiler))
    with zipfile.ZipFile(output) as aar:
        names = set(aar.namelist())
        assert {"AndroidManifest.xml", "R.txt", "classes.jar", "proguard.txt"} <= names
        assert b'package="edgeq.efficientnet_lite0"' in aar.read("AndroidManifest.xml")
        assert b"-keep class ai.onnxruntime.**" in aar.read("proguard.txt")
        model = "assets/edgeq/efficientnet-lite0/model/model.onnx"
        assert aar.read(model) == (example / "src" / "main" / model).read_bytes()
        (tmp_path / "classes.jar").write_bytes(aar.read("classes.jar"))
    with zipfile.ZipFile(tmp_path / "classes.jar") as classes:
        assert "edgeq/efficientnet_lite0/EfficientnetLite0.class" in classes.namelist()
    assert not [path for path in example.iterdir() if path.name == "build"]


def test_a_signed_aligned_apk_holds_model_and_library(example: Path, tmp_path: Path) -> None:
    unsigned, aligned, signed = (tmp_path / f"{name}.apk" for name in ("unsigned", "aligned", "signed"))
    link(example / "src" / "main" / "AndroidManifest.xml", unsigned, "com.example.app")
    dex = _dexed(example, tmp_path)
    library = TOOLS / "aar" / "jni" / "arm64-v8a" / "libonnxruntime.so"
    assets = example / "src" / "main" / "assets"
    with zipfile.ZipFile(unsigned, "a", zipfile.ZIP_STORED) as apk:
        apk.write(dex, "classes.dex")
        apk.write(library, "lib/arm64-v8a/libonnxruntime.so")
        for file in sorted(path for path in assets.rglob("*") if path.is_file()):
            apk.write(file, f"assets/{file.relative_to(assets).as_posix()}")
    run(["zipalign", "-f", str(PAGE), unsigned, aligned])
    key = tmp_path / "debug.jks"
    name = ["-dname", "CN=test", "-alias", "a", "-keyalg", "RSA", "-storepass", "secret", "-keypass", "secret"]
    run(["keytool", "-genkeypair", "-keystore", key, *name])
    secret = ["--ks", key, "--ks-pass", "pass:secret", "--min-sdk-version", "24"]
    run(["apksigner", "sign", *secret, "--out", signed, aligned])
    shown = run(["apksigner", "verify", "--verbose", "--min-sdk-version", "24", signed])
    assert "Verified using v2 scheme (APK Signature Scheme v2): true" in shown
    assert "Verified using v3 scheme (APK Signature Scheme v3): true" in shown
    run(["zipalign", "-c", "4", signed])
    offsets = stored_offsets(signed)
    model = "assets/edgeq/efficientnet-lite0/model/model.onnx"
    assert offsets["lib/arm64-v8a/libonnxruntime.so"] % PAGE == 0
    assert offsets[model] % 4 == 0
    with zipfile.ZipFile(signed) as apk:
        assert apk.read(model) == (assets / model.removeprefix("assets/")).read_bytes()
        assert load_alignments(apk.read("lib/arm64-v8a/libonnxruntime.so")) == {PAGE}


def _dexed(module: Path, scratch: Path) -> Path:
    """The module's own code for Android's runtime; the dexer of Debian knows Java 8 and no newer features."""
    sources = sorted((module / "src" / "main" / "kotlin").rglob("*.kt"))
    more = ["-Xlambdas=class", "-Xsam-conversions=class", "-Xstring-concat=inline"]
    paths = ":".join(map(str, (KOTLIN / "kotlin-stdlib.jar", RUNTIME_JAR, ANDROID_JAR)))
    classes = scratch / "classes"
    run([*kotlinc(), "-jvm-target", "1.8", *more, "-classpath", paths, "-d", classes, *sources])
    dex = scratch / "classes.dex"
    run(["java", "-cp", DX, "com.android.dx.command.Main", "--dex", f"--output={dex}", classes])
    assert dex.read_bytes().startswith(b"dex\n")
    return dex


def test_the_sizes_of_the_runtime_are_those_of_the_aar() -> None:
    for abi in ABIS:
        libraries = list((TOOLS / "aar" / "jni" / abi).glob("*.so"))
        assert sum(path.stat().st_size for path in libraries) == RUNTIME_BYTES[abi][0]
        if "64" in abi:
            assert all(load_alignments(path.read_bytes()) == {PAGE} for path in libraries)


def test_the_reader_of_samples_reads_what_numpy_wrote(make_bundle: MakeBundle, tmp_path: Path) -> None:
    """The reader that tests on a device use, run on this machine's Java."""
    functions = {"float32": "floats", "float16": "floats", "float64": "doubles", "int64": "longs", "int32": "ints"}
    functions |= {"int16": "shorts", "int8": "bytes", "bool": "bytes"}
    module = edgeq.embed(make_bundle().path, platform="android", output=tmp_path / "module").path
    (reader,) = module.rglob("Npy.kt")
    expected = []
    lines = [
        "fun main(arguments: Array<String>) {",
        "    fun npy(n: String) = edgeq.tiny.Npy(java.io.File(n).inputStream())",
    ]
    for dtype, function in functions.items():
        values = np.arange(24).reshape(2, 3, 4).astype(dtype)
        np.save(tmp_path / f"{dtype}.npy", values)
        shown = f"$count${{shape.toList()}}${{{function}(1).toList()}}"
        lines.append(f'    npy(arguments[0] + "/{dtype}.npy").run {{ println("{shown}") }}')
        expected.append(f"2[3, 4]{values[1].ravel().astype('uint8' if dtype == 'bool' else dtype).tolist()}")
    main = tmp_path / "Main.kt"
    main.write_text("\n".join([*lines, "}\n"]), encoding="utf-8")
    jar = tmp_path / "main.jar"
    compile_kotlin([reader, main], jar)
    paths = os.pathsep.join(map(str, (jar, KOTLIN / "kotlin-stdlib.jar", RUNTIME_JAR)))
    assert run(["java", "-cp", paths, "MainKt", tmp_path]).split("\n")[:-1] == expected


TEXTS_MAIN = """
fun main(arguments: Array<String>) {
    val texts = edgeq.tiny.Texts(java.io.File(arguments[0]).readLines())
    val bytes = java.io.File(arguments[1]).readBytes()
    var at = 0
    while (at < bytes.size) {
        val end = (at until bytes.size).first { bytes[it] == '\\n'.code.toByte() }
        val count = String(bytes, at, end - at).toInt()
        val tokens = texts.encode(String(bytes, end + 1, count, Charsets.UTF_8))
        println(tokens.ids.indices.joinToString(" ") { "${tokens.ids[it]}.${tokens.mask[it]}.0.$it" })
        at = end + 1 + count
    }
}
"""


@pytest.mark.parametrize("file", TOKENIZERS.values(), ids=TOKENIZERS)
def test_texts_become_the_tokens_of_tokenizers(file: dict[str, Any], tmp_path: Path) -> None:
    """The Kotlin tokenizer on this machine's Java."""
    bundle = make_text_bundle(tmp_path / "bundle", file, most=32)
    module = edgeq.embed(bundle.path, platform="android", output=tmp_path / "module").path
    sources = [next(module.rglob(name)) for name in ("Texts.kt", "Characters.kt")]
    (tmp_path / "Main.kt").write_text(TEXTS_MAIN, encoding="utf-8")
    compile_kotlin([*sources, tmp_path / "Main.kt"], tmp_path / "main.jar")
    paths = os.pathsep.join(map(str, (tmp_path / "main.jar", KOTLIN / "kotlin-stdlib.jar", ANDROID_JAR)))
    (vocabulary,) = module.rglob("vocabulary.txt")
    texts = [*TEXTS, *random_texts(3000)]
    write_texts(tmp_path / "texts", [text.encode() for text in texts])
    found = read_tokens(run(["java", "-cp", paths, "MainKt", vocabulary, tmp_path / "texts"]))
    for text, right, tokens in zip(texts, expected(file, texts, 32), found, strict=True):
        assert tokens.tolist() == right.tolist(), ascii(text)


SETTINGS = {
    "Bicubic": ImagePreprocess(crop=(48, 64), resize=70, mean=(120.0, 110.0, 100.0), std=(60.0, 61.0, 62.0)),
    "Bilinear": ImagePreprocess(crop=(50, 30), stretch=True, interpolation="bilinear", layout="NHWC", color="BGR"),
    "Lanczos": ImagePreprocess(crop=(32, 32), resize=40, interpolation="lanczos", color="L", mean=(9.0,), std=(7.0,)),
    "Nearest": ImagePreprocess(crop=(21, 33), resize=77, interpolation="nearest"),
    "Whole": ImagePreprocess(crop=(51, 70)),
    "Letterbox": ImagePreprocess(crop=(64, 48), letterbox="centre", interpolation="bilinear"),
    "Corner": ImagePreprocess(crop=(40, 80), letterbox="corner", fill=7, color="BGR", layout="NHWC"),
    "Grey": ImagePreprocess(
        crop=(400, 300), letterbox="centre", interpolation="nearest", color="L", mean=(0.0,), std=(1.0,)
    ),
}


def test_pictures_are_prepared_to_the_bit(make_bundle: MakeBundle, tmp_path: Path) -> None:
    """The Kotlin code against the recipe's own, which is Pillow, on this machine's Java."""
    from PIL import Image

    generator = np.random.default_rng(0)
    sizes = [(137, 211), (333, 92), (80, 60)]
    for number, size in enumerate(sizes):
        levels = generator.integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(levels).save(tmp_path / f"{number}.png")
        alpha = np.full((*levels.shape[:2], 1), 255, np.uint8)
        (tmp_path / f"{number}.argb").write_bytes(np.concatenate([alpha, levels], axis=2).tobytes())
    sources, calls = [], []
    for name, preprocess in SETTINGS.items():
        channels = 1 if preprocess.color == "L" else 3
        shape = ("n", channels, *preprocess.crop) if preprocess.layout == "NCHW" else ("n", *preprocess.crop, channels)
        bundle = make_bundle(name, name=name, shape=shape, preprocess=preprocess, labels=())
        module = edgeq.embed(bundle.path, platform="android", output=tmp_path / "modules" / name).path
        sources += module.rglob("Pictures.kt")
        for number, (width, height) in enumerate(sizes):
            tensor = f"edgeq.{name.lower()}.Pictures.tensor({width}, {height}, rows({number}, {width}))"
            calls.append(f'    show("{name}{number}", {tensor})')
        seen_of = f"edgeq.{name.lower()}.Pictures.seen"
        calls.append(f'    show("{name}Seen", shapes.flatMap {{ (w, h) -> {seen_of}(w, h).toList() }}.toFloatArray())')
    main = tmp_path / "Main.kt"
    pairs = ", ".join(f"{width} to {height}" for width, height in SIZES)
    calls.insert(0, f"    val shapes = listOf({pairs})")
    main.write_text(HARNESS.replace("CALLS", "\n".join(calls)), encoding="utf-8")
    compile_kotlin([*sources, main], tmp_path / "main.jar")
    paths = os.pathsep.join(map(str, (tmp_path / "main.jar", KOTLIN / "kotlin-stdlib.jar", ANDROID_JAR)))
    run(["java", "-cp", paths, "MainKt", tmp_path])
    compared = 0
    for name, preprocess in SETTINGS.items():
        places = [seen(preprocess, (height, width)) for width, height in SIZES]
        found_places = np.fromfile(tmp_path / f"{name}Seen.raw", ">f4").reshape(-1, 4)
        np.testing.assert_array_equal(found_places, np.array(places, np.float32), err_msg=name)
        for number in range(len(sizes)):
            found = tmp_path / f"{name}{number}.raw"
            if found.exists():
                expected = _prepared(tmp_path / f"{number}.png", preprocess)
                np.testing.assert_array_equal(np.fromfile(found, ">f4"), expected.ravel(), err_msg=found.name)
                compared += 1
    assert compared == len(sizes) * len(SETTINGS) == 24


def _prepared(path: Path, preprocess: ImagePreprocess) -> np.ndarray:
    channels = 1 if preprocess.color == "L" else 3
    shape = (channels, *preprocess.crop) if preprocess.layout == "NCHW" else (*preprocess.crop, channels)
    info = TensorInfo("x", np.dtype("float32"), (1, *shape))
    return ImageStore([path], preprocess, [info]).read([0])["x"]


HARNESS = """
import java.io.DataInputStream
import java.io.DataOutputStream
import java.io.File

lateinit var folder: String

fun rows(number: Int, width: Int): (Int) -> IntArray {
    val data = DataInputStream(File("$folder/$number.argb").inputStream().buffered()).use { input ->
        IntArray(File("$folder/$number.argb").length().toInt() / 4) { input.readInt() }
    }
    return { y -> data.copyOfRange(y * width, (y + 1) * width) }
}

fun show(name: String, values: FloatArray) =
    DataOutputStream(File("$folder/$name.raw").outputStream().buffered()).use { output ->
        values.forEach { output.writeFloat(it) }
    }

fun main(arguments: Array<String>) {
    folder = arguments[0]
CALLS
}
"""
