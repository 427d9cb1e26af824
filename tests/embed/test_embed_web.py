"""The npm package computes in a browser what the host does; its TypeScript repeats Pillow and tokenizers."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from embed_models import HOSTILE, PREPARATIONS, SIZES, MakeBundle, MakePictureBundle, preparation_id
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


def test_the_tokenizer_gives_the_tokens_of_tokenizers(projects: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    bundle, project = projects["minilm"]
    texts = [json.loads(line)["text"] for line in (PHOTOS.parent / "sentences.jsonl").read_text().splitlines()]
    texts += [
        "Ünïcödé ΑΣ ΟΔΟΣ ß İstanbul",
        "日本語テキスト 中文 한국어",
        "😀👍🏽 \u200b\u00ad zero",
        "[SEP] in [MASK] the text",
    ]
    texts += ["a" * 150 + " b", "", "  \t\n", "don't e-mail U.S.A. 3.14 $5 «quote» … — ‘x’", "\x00\ufffd con\x07trol"]  # noqa: RUF001
    texts += ["ﬁ Ⅷ ½ ㎏ e\u0301\u0323", "नमस्ते दुनिया مرحبا", "word " * 300]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    script = f"""
import {{ readFileSync }} from "node:fs";
import {{ Tokenizer }} from {json.dumps((project / "dist" / "wordpiece.js").as_uri())};
const tokenizer = Tokenizer.parse(readFileSync({json.dumps(str(bundle / "tokenizer.json"))}, "utf8"));
const texts = JSON.parse(readFileSync({json.dumps(str(tmp_path / "texts.json"))}, "utf8"));
const tokens = tokenizer.encode(texts, 128, true);
console.log(JSON.stringify([tokens.ids, tokens.mask].map((array) => [...array].map(Number))));
"""
    (tmp_path / "run.mjs").write_text(script)
    done = subprocess.run(["node", str(tmp_path / "run.mjs")], capture_output=True, text=True, check=True)
    reference = tokenizers.Tokenizer.from_file(str(bundle / "tokenizer.json"))
    reference.enable_truncation(128)
    reference.enable_padding(length=128)
    encodings = reference.encode_batch(texts)
    ids, mask = (np.array(array).reshape(len(texts), 128) for array in json.loads(done.stdout))
    for text, encoding, row in zip(texts, encodings, ids, strict=True):
        assert encoding.ids == row.tolist(), text
    np.testing.assert_array_equal(mask, [encoding.attention_mask for encoding in encodings])


def compiled(bundle: Path, project: Path, projects: dict[str, tuple[Path, Path]]) -> Path:
    """A project's modules, compiled with what another one has installed."""
    folder = edgeq.embed(bundle, platform="web", output=project).path
    (folder / "node_modules").symlink_to(projects["efficientnet-lite0"][1] / "node_modules")
    npm(folder, "run", "build")
    return folder / "dist"


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
