"""What a detector finds is told in every language as Python tells it: boxes in parts of the picture, with names."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from android_tools import ANDROID_JAR, KOTLIN, compile_kotlin, needs_android_tools, run
from embed_detections import Row, found_in, outputs_of, same
from embed_models import DETECTED, HOSTILE, MakeDetectorBundle
from swift_tools import check, swiftc
from web_tools import npm, page, require

import edgeq
from edgeq.interface import BoxesOutput
from edgeq.recipe import ImagePreprocess
from edgeq.stages.run.boxes import BoxCloseness

LABELS = ("cat", '*/ "${x}" \\(1)', "</script>")
SIZE = (31, 23)
STUBS = Path(__file__).with_name("android_stubs")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    from PIL import Image

    file = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(3).integers(0, 255, (*SIZE[::-1], 3), np.uint8)).save(file)
    return file


def python(code: str, folder: Path) -> str:
    settings = {**os.environ, "PYTHONPATH": str(folder / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


WAYS = {
    "crop": ImagePreprocess(resize=12, crop=(8, 8)),
    "letterbox": ImagePreprocess(letterbox="centre", crop=(8, 12), color="BGR"),
    "stretch": ImagePreprocess(stretch=True, crop=(8, 8)),
}
NAMES = {"crop": DETECTED, "letterbox": DETECTED, "stretch": HOSTILE[:4]}
ways = pytest.mark.parametrize("way", WAYS)


@ways
def test_python_finds_what_the_model_does(
    way: str, detector_bundle: MakeDetectorBundle, picture: Path, tmp_path: Path
) -> None:
    bundle = detector_bundle(WAYS[way], labels=LABELS, names=NAMES[way])
    folder = edgeq.embed(bundle.path, platform="python", output=tmp_path / "out").path
    code = f"""
import dataclasses, json, tiny_net
model = tiny_net.TinyNet(threads=1)
every, some = model.detect({str(picture)!r}), model.detect({str(picture)!r}, least_score=0.72)
print(json.dumps([[dataclasses.astuple(one) for one in found] for found in (every, some)]))
assert every[0].pixels(10, 100) == (every[0].left * 10, every[0].top * 100, every[0].right * 10, every[0].bottom * 100)
"""
    every, some = json.loads(python(code, folder))
    right = found_in(bundle, picture)
    same([tuple(row) for row in every], right)
    same([tuple(row) for row in some], right[:3])


def test_boxes_of_the_picture_are_taken_as_they_are(
    detector_bundle: MakeDetectorBundle, picture: Path, tmp_path: Path
) -> None:
    bundle = detector_bundle(WAYS["crop"], of="picture", labels=LABELS, batch="batch")
    folder = edgeq.embed(bundle.path, platform="python", output=tmp_path / "out").path
    code = f"import dataclasses, json, tiny_net; found = tiny_net.TinyNet().detect({str(picture)!r})\n"
    shown = python(code + "print(json.dumps([dataclasses.astuple(one) for one in found]))", folder)
    same([tuple(row) for row in json.loads(shown)], found_in(bundle, picture))


def test_pythons_test_of_the_samples_looks_at_boxes(detector_bundle: MakeDetectorBundle, tmp_path: Path) -> None:
    folder = edgeq.embed(detector_bundle(WAYS["crop"]).path, platform="python", output=tmp_path / "out").path
    code = f"import sys, pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', {str(folder / 'tests')!r}]))"
    python(code, folder)
    disturb(folder / "tests" / "samples")
    with pytest.raises(AssertionError, match="box_agreement"):
        python(code, folder)


def pairs() -> tuple[list[dict[str, np.ndarray]], float]:
    """What two models find in 30 pictures, often nearly the same, and how far that agrees by edgeq's own count."""
    rng = np.random.default_rng(8)
    corner, size = rng.uniform(0, 0.5, (30, 6, 2)), rng.uniform(0.2, 0.5, (30, 6, 2))
    corner[:, 1::2] = corner[:, ::2] + 0.05  # neighbours, for which two compete
    size[:, 1::2] = size[:, ::2]
    boxes = np.concatenate([corner, corner + size], axis=2)
    both = []
    for noise in (0.0, 0.03):
        moved = (boxes + rng.normal(0, noise, boxes.shape)).clip(0, 1).astype(np.float32)
        order = np.argsort(rng.random((30, 6)), axis=1)
        arrays = (
            np.take_along_axis(moved, order[..., None], 1),
            np.linspace(0.9, 0.3, 6, dtype=np.float32)[None].repeat(30, 0),
            np.take_along_axis(np.arange(6)[None].repeat(30, 0) // 4, order, 1),
            np.concatenate([[99, -1], rng.integers(0, 7, 28)]),  # two counts that no package of edgeq's has
        )
        both.append(dict(zip(DETECTED, arrays, strict=True)))
    boxes_name, scores, classes, count = DETECTED
    entry = BoxesOutput(
        name=boxes_name, most=6, of="input", scores=scores, classes=classes, count=count, least_score=0.25
    )
    closeness = BoxCloseness(entry)
    closeness.add(*both)
    assert 30 < closeness.value < 70
    return both, closeness.value


def test_pythons_agreement_is_edgeqs(detector_bundle: MakeDetectorBundle, tmp_path: Path) -> None:
    folder = edgeq.embed(detector_bundle(WAYS["crop"]).path, platform="python", output=tmp_path / "out").path
    (wanted, found), agreement = pairs()
    np.savez(tmp_path / "pairs.npz", *wanted.values(), *found.values())
    code = f"""
import sys, numpy as np
sys.path.insert(0, {str(folder / "tests")!r})
from test_tiny_net import box_agreement, read_detections
arrays = list(np.load({str(tmp_path / "pairs.npz")!r}).values())
read = lambda arrays, row: read_detections(*(array[row] for array in arrays))
print(box_agreement((read(arrays[:4], row), read(arrays[4:], row)) for row in range(30)))
"""
    assert float(python(code, folder)) == pytest.approx(agreement, abs=1e-3)


def disturb(samples: Path) -> None:
    """Another class for one box of four in both samples: they agree to 75 %."""
    classes = np.load(samples / "output_2.npy")
    classes[:, :, 1] = 5
    np.save(samples / "output_2.npy", classes)


# -- C


def test_the_c_example_prints_what_was_found(
    detector_bundle: MakeDetectorBundle, runtime: Path, tmp_path: Path
) -> None:
    bundle = detector_bundle(ImagePreprocess(crop=SIZE[::-1]), labels=LABELS, batch="batch", names=HOSTILE[:4])
    folder = edgeq.embed(bundle.path, platform="c", output=tmp_path / "out").path
    command = ["make", "-C", folder, f"ORT={runtime}", "CFLAGS=-O1 -Wall -Wextra -Werror", "check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "boxes agree to 100.0 %" in done.stdout
    assert "light: SQNR" in done.stdout
    assert done.stdout.count("SQNR") == 1
    pixels = np.random.default_rng(5).integers(0, 255, (*SIZE[::-1], 3), np.uint8)
    (tmp_path / "picture.ppm").write_bytes(b"P6 %d %d 255\n" % SIZE + pixels.tobytes())
    from PIL import Image

    Image.fromarray(pixels).save(tmp_path / "picture.png")
    shown = subprocess.run(
        [folder / "example", folder, tmp_path / "picture.ppm"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    right = [
        f"  {100 * score:5.1f} %  {label} (class {index}) at {x * SIZE[0]:.0f} {y * SIZE[1]:.0f} {r * SIZE[0]:.0f} "
        f"{b * SIZE[1]:.0f}"
        for index, label, score, x, y, r, b in found_in(bundle, tmp_path / "picture.png", unnamed="")
    ]
    assert len(right) == 4
    assert shown[-4:] == right
    disturb(folder / "samples")
    done = subprocess.run([folder / "example", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "boxes agree to 75.0 %" in done.stdout


CPP = """
#define main example_main
#include "example.c"
#undef main
ARRAYS
static const float seen[4] = {-0.5f, 0.25f, 1.5f, 0.75f};
static const float place[24] = {0.25f, 0.5f, 0.75f, 1.0f, 2, 2, 3, 3}, score[6] = {0.5f, 0.5f};
static const int64_t class_of[6] = {1, 1}, two[1] = {2};

static tiny_net_outputs of(const float *boxes, const float *scores, const int64_t *classes, const int64_t *count) {
    tiny_net_outputs outputs;
    memset(&outputs, 0, sizeof outputs);
    outputs.boxes = boxes, outputs.box_scores = scores, outputs.box_classes = classes, outputs.box_count = count;
    return outputs;
}

int main() {
    tiny_net_detection found[TINY_NET_MOST], expected[TINY_NET_MOST];
    const tiny_net_outputs one = of(place, score, class_of, two), a = of(a0, a1, a2, a3), b = of(b0, b1, b2, b3);
    size_t row, matches = 0, boxes = 0, most = tiny_net_detections(&one, 0, TINY_NET_LEAST_SCORE, seen, found);
    printf("%d %g %g %g %g ", (int)most, found[0].left, found[0].top, found[0].right, found[0].bottom);
    printf("%d ", (int)tiny_net_detections(&one, 0, 0.6f, NULL, found));
    for (row = 0; row < 30; row++) {
        const size_t count = tiny_net_detections(&b, row, 0, NULL, found);
        most = tiny_net_detections(&a, row, 0, NULL, expected);
        matches += matching(expected, most, found, count);
        boxes += most + count;
    }
    printf("%.6f", 200.0 * (double)matches / (double)boxes);
    return 0;
}
"""


def test_c_maps_boxes_to_the_picture(detector_bundle: MakeDetectorBundle, runtime: Path, tmp_path: Path) -> None:
    """In C++, where header and example have to compile as well."""
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    folder = edgeq.embed(detector_bundle(WAYS["crop"]).path, platform="c", output=tmp_path / "out").path
    both, agreement = pairs()
    arrays = ""
    for prefix, one in zip("ab", both, strict=True):
        for number, array in enumerate(one.values()):
            kind = "float" if array.dtype == np.float32 else "int64_t"
            arrays += f"static const {kind} {prefix}{number}[] = {{{', '.join(map(str, array.ravel().tolist()))}}};\n"
    (folder / "map.cpp").write_text(CPP.replace("ARRAYS", arrays))
    options = ["-std=c++11", "-Wall", "-Wextra", "-Werror", f"-I{runtime / 'include'}", "-o", folder / "map"]
    library = [f"-L{runtime / 'lib'}", "-lonnxruntime", f"-Wl,-rpath,{runtime / 'lib'}"]
    done = subprocess.run(["c++", *options, folder / "map.cpp", *library], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = subprocess.run([folder / "map"], capture_output=True, text=True, check=True).stdout.split()
    assert shown[:6] == ["1", "0", "0.5", "1", "0.75", "0"]
    assert float(shown[6]) == pytest.approx(agreement, abs=1e-3)


# -- Kotlin, Swift and TypeScript: the code that reads the outputs runs on this machine


KOTLIN_MAIN = """
import edgeq.tiny_net.BoxAgreement
import edgeq.tiny_net.Detection
import edgeq.tiny_net.Detections
import edgeq.tiny_net.Npy
import edgeq.tiny_net.Pictures
import java.io.File

internal fun show(found: List<Detection>) =
    found.forEach { println("${it.index} ${it.score} ${it.left} ${it.top} ${it.right} ${it.bottom} ${it.name}") }

fun main(arguments: Array<String>) {
    val (boxes, scores, classes, count) = List(4) { Npy(File(arguments[0], "$it.npy").inputStream()) }
    val found = Detections(boxes.floats(0), scores.floats(0), classes.longs(0), count.longs(0))
    val labels = File(arguments[1]).readLines()
    val all = found.read(0, labels, 0.25f, Pictures.seen(WIDTH, HEIGHT))
    show(all)
    println("least")
    show(found.read(0, labels, 0.72f))
    val (expected, others) = listOf(4, 8).map { first ->
        val (b, s, c, n) = List(4) { Npy(File(arguments[0], "${first + it}.npy").inputStream()) }
        Detections(b.floats(0), s.floats(0), c.longs(0), n.longs(0))
    }
    val agreement = BoxAgreement()
    for (row in 0 until expected.size) agreement.add(expected.read(row), others.read(row))
    println(agreement.percent)
    val rect = all.first().inPixels(10, 100)
    println("${rect.left} ${rect.top} ${rect.right} ${rect.bottom}")
}
"""
RECT = """package android.graphics

class RectF(
    @JvmField val left: Float,
    @JvmField val top: Float,
    @JvmField val right: Float,
    @JvmField val bottom: Float,
)
"""


@pytest.mark.slow
@needs_android_tools
@ways
def test_kotlin_finds_what_python_does(
    way: str, detector_bundle: MakeDetectorBundle, picture: Path, tmp_path: Path
) -> None:
    bundle = detector_bundle(WAYS[way], labels=LABELS, names=NAMES[way])
    folder = edgeq.embed(bundle.path, platform="android", output=tmp_path / "module").path
    sources = [*(folder / "src").glob("*/kotlin")]
    compile_kotlin([STUBS, *sources], tmp_path / "whole")
    (wanted, found), _ = pairs()
    for number, array in enumerate((*outputs_of(bundle, picture), *wanted.values(), *found.values())):
        np.save(tmp_path / f"{number}.npy", array[None])
    (tmp_path / "Main.kt").write_text(KOTLIN_MAIN.replace("WIDTH, HEIGHT", "{}, {}".format(*SIZE)))
    (tmp_path / "RectF.kt").write_text(RECT)
    compile_kotlin([tmp_path / "RectF.kt"], tmp_path / "rect.jar")
    names = ("Detections.kt", "BoxAgreement.kt", "Npy.kt", "Pictures.kt")
    parts = [file for name in names for file in folder.rglob(name)]
    compile_kotlin([*parts, tmp_path / "Main.kt"], tmp_path / "main.jar")
    paths = [tmp_path / "rect.jar", tmp_path / "main.jar", KOTLIN / "kotlin-stdlib.jar", ANDROID_JAR]
    shown = run(["java", "-cp", os.pathsep.join(map(str, paths)), "MainKt", tmp_path, bundle.path / "labels.txt"])
    judge(shown, found_in(bundle, picture, unnamed="class {}"))


def rows(lines: list[str]) -> list[Row]:
    """Printed as index, score, edges, name."""
    split = (line.split(" ", 6) for line in lines)
    return [(int(index), name, *map(float, numbers)) for index, *numbers, name in split]  # type: ignore[misc]


SWIFT_MAIN = """
import Foundation
struct ModelError: Error {{ let description: String }}
func load<Element>(_ name: String) -> [Element] {{
    let data = try! Data(contentsOf: URL(fileURLWithPath: "{folder}/\\(name).bin"))
    return data.withUnsafeBytes {{ Array($0.bindMemory(to: Element.self)) }}
}}
func show(_ found: [Detection]) {{
    for one in found {{
        print(one.index, one.score, one.box.minX, one.box.minY, one.box.maxX, one.box.maxY, one.label)
    }}
}}
let found = Detections(boxes: load("0"), scores: load("1"), classes: load("2"), counts: load("3"))
let text = try! String(contentsOf: URL(fileURLWithPath: "{labels}"), encoding: .utf8)
let labels = text.split(separator: "\\n").map(String.init)
let all = found.read(row: 0, labels: labels, leastScore: 0.25, seen: Preparation.seen(width: {width}, height: {height}))
show(all)
print("least")
show(found.read(row: 0, labels: labels, leastScore: 0.72))
let expected = Detections(boxes: load("4"), scores: load("5"), classes: load("6"), counts: load("7"))
let others = Detections(boxes: load("8"), scores: load("9"), classes: load("10"), counts: load("11"))
var agreement = BoxAgreement()
for row in expected.counts.indices {{
    agreement.add(expected: expected.read(row: row), found: others.read(row: row))
}}
print(agreement.percent)
let rect = all[0].rect(in: CGSize(width: 10, height: 100))
print(rect.minX, rect.minY, rect.maxX, rect.maxY)
"""


@pytest.mark.slow
@ways
def test_swift_finds_what_python_does(
    way: str, detector_bundle: MakeDetectorBundle, picture: Path, tmp_path: Path
) -> None:
    bundle = detector_bundle(WAYS[way], labels=LABELS, names=NAMES[way])
    project = edgeq.embed(bundle.path, platform="ios", output=tmp_path / "out").path
    check(project, tmp_path / "modules")
    (wanted, found), _ = pairs()
    for number, array in enumerate((*outputs_of(bundle, picture), *wanted.values(), *found.values())):
        (tmp_path / f"{number}.bin").write_bytes(array.tobytes())
    width, height = SIZE
    text = SWIFT_MAIN.format(folder=tmp_path, labels=bundle.path / "labels.txt", width=width, height=height)
    (tmp_path / "main.swift").write_text(text)
    names = ("Detections.swift", "BoxAgreement.swift", "Preparation.swift")
    parts = []
    for file in (file for name in names for file in project.rglob(name)):
        parts.append(tmp_path / file.name)  # all in one module here
        parts[-1].write_text(re.sub("@testable import .*", "", file.read_text()))
    swiftc("-O", "-I", tmp_path / "modules", "-o", tmp_path / "main", *parts, tmp_path / "main.swift")
    runner = shlex.split(os.environ.get("EDGEQ_SWIFT_RUN", ""))
    shown = subprocess.run([*runner, str(tmp_path / "main")], check=True, capture_output=True, text=True).stdout
    judge(shown, found_in(bundle, picture))


def judge(shown: str, right: list[Row]) -> None:
    """What the programs print: all boxes, those above 0.72, how far ``pairs`` agree, pixels of the first box."""
    every, _, rest = shown.partition("least\n")
    *some, percent, rect = rest.splitlines()
    same(rows(every.splitlines()), right)
    assert len(some) == 3
    assert float(percent) == pytest.approx(pairs()[1], abs=1e-3)
    scale = [10, 100, 10, 100]
    np.testing.assert_allclose([float(x) for x in rect.split()], np.multiply(right[0][3:], scale), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("of", ["input", "picture"])
def test_the_web_page_finds_what_python_does(
    of: str, detector_bundle: MakeDetectorBundle, picture: Path, tmp_path: Path
) -> None:
    require("npm", "node")
    bundle = detector_bundle(WAYS["letterbox"], of=of, labels=LABELS)
    project = edgeq.embed(bundle.path, platform="web", output=tmp_path / "web").path
    npm(project, "install", "--no-audit", "--no-fund")
    shutil.copy(picture, project / "demo" / "picture.png")
    found = page(project, [("picture", "picture.png")])
    assert (found["state"], found["samples"], found["words"]) == ("ready", "good", []), found
    assert "boxes agree with the float model's to 100.0 %" in found["status"]
    keys = ("index", "label", "score", "left", "top", "right", "bottom")
    boxes = [tuple(one[key] for key in keys) for one in json.loads(found["found"])["picture.png"]]
    same(boxes, found_in(bundle, picture))
    (wanted, other), agreement = pairs()
    texts = json.dumps([[array.ravel().tolist() for array in one.values()] for one in (wanted, other)])
    (tmp_path / "run.mjs").write_text(f"""
import {{ BoxAgreement }} from {json.dumps((project / "dist" / "agreement.js").as_uri())};
import {{ readDetections }} from {json.dumps((project / "dist" / "detections.js").as_uri())};
const agreement = new BoxAgreement();
const [expected, found] = {texts}.map(([boxes, scores, classes, counts]) => ({{ boxes, scores, classes, counts }}));
for (let row = 0; row < 30; row++) agreement.add(readDetections(expected, row), readDetections(found, row));
console.log(agreement.percent);
""")
    shown = subprocess.run(["node", tmp_path / "run.mjs"], capture_output=True, text=True, check=True).stdout
    assert float(shown) == pytest.approx(agreement, abs=1e-3)
    disturb(project / "demo" / "samples")
    assert page(project, [])["samples"] == "bad"
