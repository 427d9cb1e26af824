"""Projects in Python and C compute what the package does: they are run, not read."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from embed_models import (
    HOSTILE,
    PICTURES,
    PREPARATIONS,
    SIZES,
    MakeBundle,
    MakePictureBundle,
    classifier,
    preparation_id,
)
from embed_texts import TOKENIZERS, VECTORS, expected, make_padded_bundle, make_text_bundle, move_reference

import edgeq
from edgeq.bundle import Bundle
from edgeq.geometry import seen
from edgeq.graph import input_infos
from edgeq.interface import EmbeddingOutput, LogitsOutput, Output, TokenEmbeddingsOutput, TokenInput
from edgeq.recipe import ImagePreprocess
from edgeq.runtime import open_session, session_options
from edgeq.stages.calibrate.images import ImageStore
from edgeq.stages.embed.meaning import Meaning
from edgeq.stages.embed.render import render

STEPS = ImagePreprocess(resize=12, crop=(8, 8), mean=(127.0, 120.0, 110.0), std=(128.0, 64.0, 32.0), color="BGR")
formats = pytest.mark.parametrize("model_format", ["onnx", "ort"])


@pytest.fixture
def pictures(picture_bundle: MakePictureBundle, tmp_path: Path) -> tuple[Bundle, Path]:
    """A bundle that classifies pictures, and a picture."""
    from PIL import Image

    file = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(3).integers(0, 255, (30, 19, 3), np.uint8)).save(file)
    return picture_bundle(STEPS), file


def python(code: str, folder: Path) -> str:
    settings = {**os.environ, "PYTHONPATH": str(folder / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_python_prepares_pictures_as_calibration_does(pictures: tuple[Bundle, Path], tmp_path: Path) -> None:
    bundle, file = pictures
    folder = edgeq.embed(bundle.path, platform="python", output=tmp_path / "out").path
    code = f"""
import numpy as np, tiny_net
from tiny_net.pictures import prepare
np.save({str(tmp_path / "found.npy")!r}, prepare({str(file)!r}))
print(*(f"{{p.label}} {{p.probability:.6f}}" for p in tiny_net.TinyNet(threads=1).classify({str(file)!r}, top=2)))
"""
    printed = python(code, folder)
    expected = ImageStore([file], STEPS, input_infos(classifier(STEPS))).read([0])["image"]
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), expected)
    means = expected.mean((2, 3))[0].astype(np.float64)
    probabilities = np.exp(means) / np.exp(means).sum()
    best = np.argsort(-probabilities)[:2]
    names = ("blue", "green", "red")
    assert printed.split() == [word for i in best for word in (names[i], f"{probabilities[i]:.6f}")]


@pytest.mark.parametrize("steps", PREPARATIONS, ids=preparation_id)
def test_python_prepares_and_sees_what_the_recipe_says(
    steps: ImagePreprocess, picture_bundle: MakePictureBundle, tmp_path: Path
) -> None:
    from PIL import Image

    folder = edgeq.embed(picture_bundle(steps).path, platform="python", output=tmp_path / "out").path
    files = [tmp_path / f"{width}x{height}.png" for width, height in PICTURES]
    for file, (width, height) in zip(files, PICTURES, strict=True):
        levels = np.random.default_rng(3).integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(levels).save(file)
    code = f"""
import numpy as np
from tiny_net.pictures import prepare, seen
for file in {[str(file) for file in files]}:
    np.save(file + ".npy", prepare(file))
print([seen(size) for size in {SIZES}])
"""
    printed = python(code, folder)
    store = ImageStore(files, steps, input_infos(classifier(steps)))
    for row, file in enumerate(files):
        np.testing.assert_array_equal(np.load(f"{file}.npy"), store.read([row])["image"], err_msg=file.name)
    assert ast.literal_eval(printed) == [seen(steps, (height, width)) for width, height in SIZES]


@formats
def test_pythons_own_test_passes_and_fails_for_another_model(
    model_format: str, pictures: tuple[Bundle, Path], tmp_path: Path
) -> None:
    folder = edgeq.embed(pictures[0].path, platform="python", output=tmp_path / "out", model_format=model_format).path
    code = f"import sys, pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', {str(folder / 'tests')!r}]))"
    python(code, folder)
    reference = folder / "tests" / "samples" / "output_0.npy"
    np.save(reference, np.load(reference)[..., ::-1])
    with pytest.raises(AssertionError):
        python(code, folder)


def test_pythons_own_test_leaves_padding_out(tmp_path: Path) -> None:
    folder = edgeq.embed(make_padded_bundle(tmp_path / "bundle").path, platform="python", output=tmp_path / "out").path
    code = f"import sys, pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', {str(folder / 'tests')!r}]))"
    python(code, folder)
    move_reference(folder, of_padding=True)
    python(code, folder)
    move_reference(folder, of_padding=False)
    with pytest.raises(AssertionError):
        python(code, folder)


def test_python_with_hostile_names_is_python(make_bundle: MakeBundle, tmp_path: Path) -> None:
    names = tuple(dict.fromkeys(HOSTILE))  # ONNX Runtime refuses a name that is there twice
    bundle = make_bundle(names=names, name=HOSTILE[0], labels=["a*/b", "${x}", '"'])
    folder = edgeq.embed(bundle.path, platform="python", output=tmp_path / "out").path
    for file in folder.rglob("*.py"):
        ast.parse(file.read_text(encoding="utf-8"))
    (package,) = [path.name for path in (folder / "src").iterdir()]
    code = f"""
import numpy as np, {package} as package
model = getattr(package, package.__all__[-1])(threads=1)
found = model.run(*[np.full((2, 3), i, np.float32) for i in range({len(names)})])
assert all((value == i).all() for i, value in enumerate(vars(found).values()))
"""
    python(code, folder)


def test_python_takes_a_list_of_texts(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    token = TokenInput(name="ids", part="ids", tokenizer="tokenizer.json", max_length=4, padding="longest")
    package = tmp_path / "src" / "tiny"
    package.mkdir(parents=True)
    text = render("python", "texts.py.jinja", {"module": "tiny", "meaning": Meaning(tokens=(token,))})
    (package / "texts.py").write_text(text)
    (package / "sessions.py").write_text("from pathlib import Path\n\nASSETS = Path(__file__).parent\n")
    model = {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "?": 2}, "unk_token": "?"}
    tokenizer = {"model": model, "pre_tokenizer": {"type": "Whitespace"}, "added_tokens": []}
    (package / "tokenizer.json").write_text(json.dumps({"version": "1.0", **tokenizer}))
    code = """
from tiny.texts import tokenize
print(tokenize(["b a", "b"])["ids"].tolist())
for wrong in ("b a", [], ()):
    try:
        tokenize(wrong)
    except ValueError as error:
        print(error)
"""
    assert python(code, tmp_path).splitlines() == [
        "[[1, 0], [1, 0]]",
        "a list of texts is needed, not 'b a'",
        "a list of texts is needed, not []",
        "a list of texts is needed, not ()",
    ]


# -- C


def make(folder: Path, runtime: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    flags = "CFLAGS=-O1 -Wall -Wextra -Wpedantic -Werror"
    command = ["make", "-C", str(folder), f"ORT={runtime}", flags, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@formats
def test_the_c_example_checks_the_samples_and_classifies(
    model_format: str, pictures: tuple[Bundle, Path], runtime: Path, tmp_path: Path
) -> None:
    folder = edgeq.embed(pictures[0].path, platform="c", output=tmp_path / "out", model_format=model_format).path
    done = make(folder, runtime, "check")
    assert done.returncode == 0, done.stderr
    assert "logits: SQNR" in done.stdout
    pixels = np.random.default_rng(5).integers(0, 255, (8, 8, 3), np.uint8)
    (tmp_path / "picture.ppm").write_bytes(b"P6 8 8 255\n" + pixels.tobytes())
    command = [str(folder / "example"), str(folder), str(tmp_path / "picture.ppm")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-3:]
    tensor = (pixels[:, :, ::-1] - np.float32(STEPS.mean)) / np.float32(STEPS.std)
    tensor = np.ascontiguousarray(tensor.transpose(2, 0, 1)[None], np.float32)
    with open_session(pictures[0].model, session_options(threads=1)) as session:
        logits = session.run(None, {"image": tensor})[0][0].astype(np.float64)
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    best = np.argsort(-probabilities)
    names = ("blue", "green", "red")
    assert [line.split() for line in printed] == [[f"{100 * probabilities[i]:.1f}", "%", names[i]] for i in best]


def test_the_c_example_fails_where_the_outputs_are_others(
    pictures: tuple[Bundle, Path], runtime: Path, tmp_path: Path
) -> None:
    folder = edgeq.embed(pictures[0].path, platform="c", output=tmp_path / "out").path
    reference = folder / "samples" / "output_0.npy"
    np.save(reference, np.load(reference) + 1)
    assert make(folder, runtime, "check").returncode != 0
    (folder / "model" / "model.onnx").unlink()
    done = make(folder, runtime, "check")
    assert done.returncode != 0
    assert "model.onnx" in done.stderr


def assert_compiles(standard: str, folder: Path, runtime: Path) -> None:
    if standard == "c++11" and shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    compiler = ["cc", "-std=c99"] if standard == "c99" else ["c++", "-x", "c++", "-std=c++11"]
    flags = ["-Wall", "-Wextra", "-Wpedantic", "-Wno-overlength-strings", "-Werror", "-fsyntax-only"]
    command = [*compiler, *flags, f"-I{runtime / 'include'}", "example.c"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("standard", ["c99", "c++11"])
def test_c_with_hostile_names_compiles(standard: str, make_bundle: MakeBundle, runtime: Path, tmp_path: Path) -> None:
    bundle = make_bundle(names=HOSTILE, name=HOSTILE[0], labels=["a*/b", "${x}", '"'], shape=("n", None))
    folder = edgeq.embed(bundle.path, platform="c", output=tmp_path / "out").path
    assert_compiles(standard, folder, runtime)


TEXTS = ("the first text", "costs 12.50€ at Łódź's café")


def example(folder: Path, *arguments: str) -> str:
    command = [str(folder / "example"), str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("padding", ["longest", "max_length"])
@pytest.mark.parametrize(
    "output",
    [
        VECTORS,
        TokenEmbeddingsOutput(name="vectors", size=4),
        EmbeddingOutput(name="vectors", size=4, normalized=False),
    ],
    ids=["tokens", "all tokens", "text"],
)
def test_the_c_example_embeds_texts(output: Output, padding: str, runtime: Path, tmp_path: Path) -> None:
    file, full = TOKENIZERS["uncased"], padding == "max_length"
    shape = ("batch", 32) if full else ("batch", "length")
    bundle = make_text_bundle(tmp_path / "bundle", file, most=32, padding=padding, shape=shape, output=output)
    folder = edgeq.embed(bundle.path, platform="c", output=tmp_path / "out").path
    done = make(folder, runtime, "check")
    assert done.returncode == 0, done.stderr
    printed = example(folder, *TEXTS)
    vectors = []
    for tokens in expected(file, TEXTS, 32, full=full):
        counted = tokens[:, 1:2] if isinstance(output, TokenEmbeddingsOutput) and output.mask else np.ones((32, 1))
        mean = (tokens * counted[: len(tokens)]).sum(0)
        vectors.append(mean / np.linalg.norm(mean))
    lines = printed.splitlines()[-4:]
    assert (lines[0], lines[2]) == TEXTS
    for line, vector in zip(lines[1::2], vectors, strict=True):
        numbers, cosine = line.split(" ...; cosine with the first text ")
        np.testing.assert_allclose([float(n) for n in numbers.split()], vector, atol=1e-4)
        assert float(cosine) == pytest.approx(vector @ vectors[0], abs=1e-4)


def test_the_c_example_leaves_padding_out(runtime: Path, tmp_path: Path) -> None:
    folder = edgeq.embed(make_padded_bundle(tmp_path / "bundle").path, platform="c", output=tmp_path / "out").path
    for of_padding in (True, False):
        done = make(folder, runtime, "check")
        assert done.returncode == 0, done.stderr
        move_reference(folder, of_padding=of_padding)
    assert make(folder, runtime, "check").returncode != 0


def test_the_c_example_classifies_texts(runtime: Path, tmp_path: Path) -> None:
    file = TOKENIZERS["cased"]
    bundle = make_text_bundle(tmp_path / "bundle", file, most=32, output=LogitsOutput(name="vectors", classes=4))
    folder = edgeq.embed(bundle.path, platform="c", output=tmp_path / "out").path
    assert make(folder, runtime, "check").returncode == 0
    printed = example(folder, TEXTS[0])
    logits = expected(file, TEXTS[:1], 32)[0].mean(0)
    powers = np.exp(logits - logits.max())
    lines = [line.split() for line in printed.splitlines()[-4:]]
    assert [line[-1] for line in lines] == [str(i) for i in np.argsort(-powers, kind="stable")]
    assert float(lines[0][0]) == pytest.approx(100 * powers.max() / powers.sum(), abs=0.06)


def test_the_c_header_with_texts_is_cpp(runtime: Path, tmp_path: Path) -> None:
    bundle = make_text_bundle(tmp_path / "bundle", TOKENIZERS["uncased, special tokens after normalization"])
    folder = edgeq.embed(bundle.path, platform="c", output=tmp_path / "out").path
    assert_compiles("c++11", folder, runtime)


def test_the_c_model_does_not_open_without_its_vocabulary(runtime: Path, tmp_path: Path) -> None:
    folder = edgeq.embed(
        make_text_bundle(tmp_path / "bundle", TOKENIZERS["uncased"]).path, platform="c", output=tmp_path / "out"
    ).path
    (folder / "vocabulary.txt").write_text("a\n")
    done = make(folder, runtime, "check")
    assert done.returncode != 0
    assert "vocabulary.txt is not the one that this header was made with" in done.stderr
