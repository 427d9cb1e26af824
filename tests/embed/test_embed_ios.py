"""The Swift package passes the compiler, with stand-ins for what only Apple's systems have."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from embed_models import HOSTILE, PREPARATIONS, SIZES, MakeBundle, MakePictureBundle, preparation_id
from embed_texts import TEXTS, TOKENIZERS, expected, make_text_bundle, random_texts, read_tokens, write_texts
from swift_tools import HERE, check, swiftc

import edgeq
from edgeq.geometry import seen
from edgeq.interface import TokenEmbeddingsOutput
from edgeq.recipe import ImagePreprocess

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.UINT8], ids=str)
def test_hostile_names_compile(dtype: ir.DataType, make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle(
        names=HOSTILE, name=HOSTILE[0], labels=["a*/b", "${x}", '"', "\\(1)"], dtype=dtype, shape=("n", 4)
    )
    project = edgeq.embed(bundle.path, platform="ios", output=tmp_path / "out").path
    check(project, tmp_path / "modules")


def test_one_array_tells_the_sizes(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle(names=("a", "b"), shape=("batch", "length", 2))
    check(edgeq.embed(bundle.path, platform="ios", output=tmp_path / "out").path, tmp_path / "modules")


MAIN = """
import Foundation
struct ModelError: Error {{ let description: String }}
let data = [UInt8](try! Data(contentsOf: URL(fileURLWithPath: "{folder}/pixels.bin")))
let tensor = try! Preparation.tensor(Pixels(data: data, width: {width}, height: {height}))
let places = [{sizes}].flatMap {{ Preparation.seen(width: $0.0, height: $0.1) }}
try! places.withUnsafeBytes {{ Data($0) }}.write(to: URL(fileURLWithPath: "{folder}/seen.bin"))
try! tensor.withUnsafeBytes {{ Data($0) }}.write(to: URL(fileURLWithPath: "{folder}/tensor.bin"))
"""


@pytest.mark.parametrize("steps", PREPARATIONS, ids=preparation_id)
def test_pictures_are_prepared_as_for_calibration(
    steps: ImagePreprocess, picture_bundle: MakePictureBundle, tmp_path: Path
) -> None:
    from PIL import Image

    from edgeq.graph import input_infos, load_model
    from edgeq.stages.calibrate.images import ImageStore

    bundle = picture_bundle(steps)
    project = edgeq.embed(bundle.path, platform="ios", output=tmp_path / "out").path
    check(project, tmp_path / "modules")
    pixels = np.random.default_rng(1).integers(0, 256, (23, 31, 4), np.uint8)
    pixels[..., 3] = 255
    Image.fromarray(pixels[..., :3]).save(tmp_path / "picture.png")
    (tmp_path / "pixels.bin").write_bytes(pixels.tobytes())
    (tmp_path / "main.swift").write_text(MAIN.format(folder=tmp_path, width=31, height=23, sizes=str(SIZES)[1:-1]))
    (preparation,) = project.rglob("Preparation.swift")
    swiftc("-O", "-o", tmp_path / "prepare", preparation, tmp_path / "main.swift")
    runner = shlex.split(os.environ.get("EDGEQ_SWIFT_RUN", ""))
    subprocess.run([*runner, str(tmp_path / "prepare")], check=True)
    infos = input_infos(load_model(bundle.model))
    expected = ImageStore([tmp_path / "picture.png"], steps, infos).read([0])[infos[0].name]
    found = np.frombuffer((tmp_path / "tensor.bin").read_bytes(), np.float32).reshape(expected.shape)
    np.testing.assert_array_equal(found, expected)
    places = np.array([seen(steps, (height, width)) for width, height in SIZES], np.float32)
    np.testing.assert_array_equal(np.fromfile(tmp_path / "seen.bin", np.float32).reshape(-1, 4), places)


TEXTS_MAIN = """
import Foundation
struct ModelError: Error {{ let description: String }}
let texts = try! Texts(vocabulary: Data(contentsOf: URL(fileURLWithPath: "{vocabulary}")))
var rest = [UInt8](try! Data(contentsOf: URL(fileURLWithPath: "{folder}/texts")))[...]
while let end = rest.firstIndex(of: 10) {{
    let count = Int(String(decoding: rest[..<end], as: UTF8.self))!
    let tokens = texts.encode(String(decoding: rest[(end + 1)...].prefix(count), as: UTF8.self))
    print(tokens.ids.indices.map {{
        "\\(tokens.ids[$0]).\\(tokens.mask[$0]).\\(tokens.segments[$0]).\\(tokens.positions[$0])"
    }}.joined(separator: " "))
    rest = rest[(end + 1 + count)...]
}}
"""


def tokens_in_swift(project: Path, texts: Sequence[str], folder: Path) -> list[np.ndarray]:
    """Per text an array [tokens, 4]: id, mask, segment, position."""
    (vocabulary,) = project.rglob("vocabulary.txt")
    sources = [next(project.rglob(name)) for name in ("Texts.swift", "Characters.swift")]
    write_texts(folder / "texts", [text.encode() for text in texts])
    (folder / "main.swift").write_text(TEXTS_MAIN.format(vocabulary=vocabulary, folder=folder))
    swiftc("-O", "-o", folder / "tokenize", *sources, folder / "main.swift")
    runner = shlex.split(os.environ.get("EDGEQ_SWIFT_RUN", ""))
    done = subprocess.run([*runner, str(folder / "tokenize")], capture_output=True, text=True, check=True)
    return read_tokens(done.stdout)


@pytest.mark.parametrize("file", TOKENIZERS.values(), ids=TOKENIZERS)
def test_texts_become_the_tokens_of_tokenizers(file: dict[str, Any], tmp_path: Path) -> None:
    full = file is TOKENIZERS["uncased"]
    bundle = make_text_bundle(tmp_path / "bundle", file, most=32, padding="max_length" if full else "longest")
    project = edgeq.embed(bundle.path, platform="ios", output=tmp_path / "out").path
    check(project, tmp_path / "modules")
    texts = [*TEXTS, *random_texts(3000)]
    found = tokens_in_swift(project, texts, tmp_path)
    for text, right, tokens in zip(texts, expected(file, texts, 32, full=full), found, strict=True):
        assert tokens.tolist() == right.tolist(), ascii(text)


SENTENCES = ("the first text", "costs 12.50€ at Łódź's café")
EMBED_MAIN = f"""
let model = try! Tiny()
for vector in try! model.embed(["{SENTENCES[0]}", "{SENTENCES[1]}"]) {{
    print(vector.map {{ String($0) }}.joined(separator: " "))
}}
"""


@pytest.mark.parametrize("mask", ["mask", None])
def test_texts_are_embedded(mask: str | None, tmp_path: Path) -> None:
    file, output = TOKENIZERS["uncased"], TokenEmbeddingsOutput(name="vectors", size=4, mask=mask)
    bundle = make_text_bundle(tmp_path / "bundle", file, most=32, padding="max_length", output=output)
    project = edgeq.embed(bundle.path, platform="ios", output=tmp_path / "out").path
    check(project, tmp_path / "modules")
    (sources,) = (project / "Sources").iterdir()
    (tmp_path / "Assets").symlink_to(sources / "Assets")  # beside the program, as in a bundle
    (tmp_path / "main.swift").write_text(EMBED_MAIN)
    stand_in = tmp_path / "modules" / "runtime.o"
    source = HERE / "swift" / "OnnxRuntimeBindings.swift"
    swiftc("-emit-object", "-parse-as-library", "-module-name", "OnnxRuntimeBindings", "-o", stand_in, source)
    parts = (*sources.glob("*.swift"), tmp_path / "modules" / "Bundle.swift", tmp_path / "main.swift", stand_in)
    swiftc("-I", tmp_path / "modules", "-o", tmp_path / "embed", *parts)
    runner = shlex.split(os.environ.get("EDGEQ_SWIFT_RUN", ""))
    command = [*runner, str(tmp_path / "embed")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for line, tokens in zip(printed.splitlines(), expected(file, SENTENCES, 32, full=True), strict=True):
        total = (tokens * (tokens[:, 1:2] if mask else 1)).sum(0)
        found = [float(number) for number in line.split()]
        np.testing.assert_allclose(found, total / np.linalg.norm(total), atol=1e-6)
