"""The npm package computes in a browser what the host does; its TypeScript repeats Pillow and tokenizers."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embed_models import HOSTILE, PREPARATIONS, SIZES, MakeBundle, MakePictureBundle, preparation_id
from embed_texts import (
    SENTENCES,
    TEXTS,
    TOKENIZERS,
    expected,
    make_text_bundle,
    random_texts,
    read_tokens,
)
from web_tools import npm, page, require

import edgeq
from edgeq.bundle import read_bundle
from edgeq.geometry import seen
from edgeq.graph import input_infos, load_model
from edgeq.recipe import ImagePreprocess
from edgeq.runtime import open_session, session_options
from edgeq.stages.calibrate.images import ImageStore, load_image
from edgeq.stages.embed.platforms.web import RUNTIME_FILES

PHOTOS = Path(__file__).parents[2] / "calibration" / "photos"

pytestmark = [pytest.mark.slow, pytest.mark.torch]


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Bundle and built project of both examples."""
    require("npm", "node")
    folder = tmp_path_factory.mktemp("web")
    made = {}
    for name in ("efficientnet-lite0", "minilm"):
        bundle = edgeq.export(f"example:{name}", target="web", effort=0, measure=False, output=folder / name).path
        project = edgeq.embed(bundle, platform="web", output=folder / f"{name}-web").path
        npm(project, "install", "--no-audit", "--no-fund")
        made[name] = bundle, project
    return made


def test_pictures_are_classified_as_on_the_host(projects: dict[str, tuple[Path, Path]]) -> None:
    path, project = projects["efficientnet-lite0"]
    bundle = read_bundle(path)
    files = sorted(PHOTOS.glob("*.jpg"))
    (project / "demo" / "photos").mkdir()
    for file in files:
        shutil.copy(file, project / "demo" / "photos" / file.name)
    found = page(project, [("picture", f"photos/{file.name}") for file in files])
    assert (found["state"], found["samples"], found["isolated"], found["words"]) == ("ready", "good", True, [])
    answers = json.loads(found["found"])
    steps = bundle.manifest.preprocess
    with open_session(bundle.model, session_options(threads=1)) as session:
        for file in files:
            pixels = load_image(file, steps).transpose(2, 0, 1)[None]  # type: ignore[arg-type]
            logits = session.run(None, {"inputs": (pixels - np.float32(127)) / np.float32(128)})[0][0]
            powers = np.exp(logits.astype(np.float64) - logits.max())
            best = answers[f"photos/{file.name}"][0]
            assert best["index"] == logits.argmax(), file.name
            assert best["probability"] == pytest.approx(powers.max() / powers.sum(), abs=0.01), file.name


def test_texts_are_compared(projects: dict[str, tuple[Path, Path]]) -> None:
    found = page(projects["minilm"][1], [])
    assert (found["state"], found["samples"]) == ("ready", "good"), found
    assert 0.4 < float(found["cosine"]) < 0.9  # two sentences that say the same


def test_the_ort_format_runs_in_the_browser(projects: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    bundle, built = projects["efficientnet-lite0"]
    project = edgeq.embed(bundle, platform="web", output=tmp_path / "web", model_format="ort").path
    (project / "node_modules").symlink_to(built / "node_modules")
    npm(project, "run", "build")
    found = page(project, [])
    assert (found["state"], found["samples"], found["words"]) == ("ready", "good", []), found
    assert not list(project.rglob("assets/*.onnx"))


def test_the_runtime_weighs_what_is_told(projects: dict[str, tuple[Path, Path]]) -> None:
    folder = projects["minilm"][1] / "node_modules" / "onnxruntime-web" / "dist"
    for files in RUNTIME_FILES.values():
        for name, (raw, zipped, _) in files.items():
            data = (folder / name).read_bytes()
            assert len(data) == raw
            assert len(gzip.compress(data, 6)) == pytest.approx(zipped, rel=0.01)


def compiled(bundle: Path, project: Path, projects: dict[str, tuple[Path, Path]]) -> Path:
    """A project's modules, compiled with what another one has installed."""
    folder = edgeq.embed(bundle, platform="web", output=project).path
    (folder / "node_modules").symlink_to(projects["efficientnet-lite0"][1] / "node_modules")
    npm(folder, "run", "build")
    return folder / "dist"


def tokens_in_node(dist: Path, tokenizer: Path, texts: Sequence[str], *, most: int, full: bool) -> list[np.ndarray]:
    """Per text, one after the other, an array [tokens, 4]: id, mask, segment, position."""
    (dist / "texts.json").write_text(json.dumps(texts))
    script = f"""
import {{ readFileSync }} from "node:fs";
import {{ Tokenizer }} from "./wordpiece.js";
const tokenizer = Tokenizer.parse(readFileSync({json.dumps(str(tokenizer))}, "utf8"));
for (const text of JSON.parse(readFileSync({json.dumps(str(dist / "texts.json"))}, "utf8"))) {{
  const tokens = tokenizer.encode([text], {most}, {json.dumps(full)});
  const parts = [tokens.ids, tokens.mask, tokens.segments, tokens.positions].map((array) => [...array]);
  console.log(parts[0].map((_, at) => parts.map((part) => part[at]).join(".")).join(" "));
}}
"""
    (dist / "run.mjs").write_text(script)
    done = subprocess.run(["node", str(dist / "run.mjs")], capture_output=True, text=True, check=True)
    return read_tokens(done.stdout)


@pytest.mark.parametrize("file", TOKENIZERS.values(), ids=TOKENIZERS)
def test_texts_become_the_tokens_of_tokenizers(
    file: dict[str, Any], projects: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    bundle = make_text_bundle(tmp_path / "bundle", file, most=32)
    dist = compiled(bundle.path, tmp_path / "out", projects)
    texts = [*TEXTS, *random_texts(3000)]
    found = tokens_in_node(dist, bundle.path / "tokenizer.json", texts, most=32, full=False)
    for text, right, tokens in zip(texts, expected(file, texts, 32), found, strict=True):
        assert tokens.tolist() == right.tolist(), ascii(text)


def test_texts_become_the_tokens_of_minilm(projects: dict[str, tuple[Path, Path]]) -> None:
    bundle, project = projects["minilm"]
    texts = [*(json.loads(line)["text"] for line in SENTENCES.read_text().splitlines()), *TEXTS, *random_texts(2000)]
    file = json.loads((bundle / "tokenizer.json").read_text())
    found = tokens_in_node(project / "dist", bundle / "tokenizer.json", texts, most=128, full=True)
    for text, right, tokens in zip(texts, expected(file, texts, 128, full=True, padding=0), found, strict=True):
        assert tokens.tolist() == right.tolist(), ascii(text)


def test_hostile_names_compile(projects: dict[str, tuple[Path, Path]], make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle(names=HOSTILE, name=HOSTILE[0], labels=["a*/b", "${x}", '"'], shape=("n", "m", 2))
    assert (compiled(bundle.path, tmp_path / "out", projects) / "index.d.ts").exists()


@pytest.mark.parametrize("steps", PREPARATIONS, ids=preparation_id)
def test_pictures_are_prepared_as_for_calibration(
    steps: ImagePreprocess,
    projects: dict[str, tuple[Path, Path]],
    picture_bundle: MakePictureBundle,
    tmp_path: Path,
) -> None:
    from PIL import Image

    bundle = picture_bundle(steps)
    module = (compiled(bundle.path, tmp_path / "out", projects) / "pictures.js").as_uri()
    pixels = np.random.default_rng(1).integers(0, 256, (23, 31, 4), np.uint8)
    pixels[..., 3] = 255
    Image.fromarray(pixels[..., :3]).save(tmp_path / "picture.png")
    (tmp_path / "pixels.bin").write_bytes(pixels.tobytes())
    script = f"""
import {{ readFileSync, writeFileSync }} from "node:fs";
globalThis.ImageData = class {{}};
const {{ prepare, seen }} = await import({json.dumps(module)});
console.log(JSON.stringify({json.dumps(SIZES)}.map((size) => seen(...size))));
const data = new Uint8ClampedArray(readFileSync({json.dumps(str(tmp_path / "pixels.bin"))}));
const picture = Object.assign(new ImageData(), {{ data, width: 31, height: 23 }});
writeFileSync({json.dumps(str(tmp_path / "tensor.bin"))}, (await prepare(picture)).image);
"""
    (tmp_path / "run.mjs").write_text(script)
    done = subprocess.run(["node", str(tmp_path / "run.mjs")], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [list(seen(steps, (height, width))) for width, height in SIZES]
    infos = input_infos(load_model(bundle.model))
    expected = ImageStore([tmp_path / "picture.png"], steps, infos).read([0])["image"]
    found = np.frombuffer((tmp_path / "tensor.bin").read_bytes(), np.float32).reshape(expected.shape)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", [(37, 301), (640, 480), (256, 256), (1000, 300)], ids=str)
def test_the_resize_is_pillows(projects: dict[str, tuple[Path, Path]], tmp_path: Path, size: tuple[int, int]) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (size[1], size[0], 4), np.uint8)
    pixels[..., 3] = 255
    goal = (256 * size[0] // min(size), 256 * size[1] // min(size))
    (tmp_path / "pixels.bin").write_bytes(pixels.tobytes())
    module = (projects["efficientnet-lite0"][1] / "dist" / "pictures.js").as_uri()
    script = f"""
import {{ readFileSync, writeFileSync }} from "node:fs";
import {{ resize }} from {json.dumps(module)};
const data = new Uint8ClampedArray(readFileSync({json.dumps(str(tmp_path / "pixels.bin"))}));
const found = resize({{ data, width: {size[0]}, height: {size[1]} }}, {goal[0]}, {goal[1]});
writeFileSync({json.dumps(str(tmp_path / "found.bin"))}, found.data);
"""
    (tmp_path / "run.mjs").write_text(script)
    subprocess.run(["node", str(tmp_path / "run.mjs")], check=True)
    found = np.frombuffer((tmp_path / "found.bin").read_bytes(), np.uint8).reshape(goal[1], goal[0], 4)
    expected = np.asarray(Image.fromarray(pixels[..., :3]).resize(goal, Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(found[..., :3], expected)
