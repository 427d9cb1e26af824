"""Generated code splits texts into the tokens that the package tokenizers gives."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import probe_tokenizers
import pytest
from embed_texts import (
    SENTENCES,
    TEXTS,
    TOKENIZERS,
    UNCASED,
    expected,
    make_text_bundle,
    random_texts,
    read_tokens,
    write_texts,
)

import edgeq
from edgeq.runtime import open_session, session_options
from edgeq.sandbox import find_sandbox
from edgeq.sandbox.emulated import EmulatedProcessor
from edgeq.stages.embed.characters import FILE, Kind, Settings, normalize, read_characters
from edgeq.stages.embed.wordpiece import read_wordpiece

HERE = Path(__file__).parent
SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
some_tokenizers = pytest.mark.parametrize("file", TOKENIZERS.values(), ids=TOKENIZERS)


# -- the tables


@pytest.mark.parametrize("settings", [Settings(*flags) for flags in product((False, True), repeat=4)], ids=str)
def test_characters_are_those_of_tokenizers(settings: Settings) -> None:
    from tokenizers.normalizers import BertNormalizer

    reference = BertNormalizer(settings.clean, settings.chinese, settings.accents, settings.lowercase)
    for text in (*TEXTS, *random_texts(200)):
        assert normalize(text, settings) == reference.normalize_str(text), ascii(text)
    table = read_characters(settings, "".join(TEXTS))
    for ranges in (table.kinds, table.single):
        assert all(first <= last for first, last, _ in ranges)
        assert all(one[1] < two[0] for one, two in pairwise(ranges))


def test_what_cannot_change_a_token_is_left_out() -> None:
    table = read_characters(UNCASED, "abc;")
    left = {point for first, last, _ in table.single for point in range(first, last + 1)}
    assert {*map(ord, "ABCÀàÇ"), 0x37E} <= left  # to letters of the vocabulary, and the Greek question mark to ";"
    assert not left & set(map(ord, "DEFéßΣ"))
    assert not table.hangul
    assert not table.several
    assert table.kind(0x301) == Kind.DROPPED
    assert read_characters(UNCASED, "ᄒ").hangul


@pytest.mark.slow
def test_the_tables_are_those_of_the_installed_tokenizers() -> None:
    assert probe_tokenizers.probe() == FILE.read_text(encoding="ascii")


# -- what is understood


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file["model"].update(type="BPE", merges=[]),
        lambda file: file["model"]["vocab"].update({"line\nfeed": len(file["model"]["vocab"])}),
        lambda file: file["model"]["vocab"].update({"\ud800": len(file["model"]["vocab"])}),
        lambda file: file["model"]["vocab"].update({"a hole": 10**6}),
        lambda file: file["model"].update(max_input_chars_per_word=10**9),
        lambda file: file["model"].update(unk_token="[NONE]"),
        lambda file: file.update(model=[]),
        lambda file: file.update(normalizer=None),
        lambda file: file["normalizer"].update(type="Lowercase"),
        lambda file: file.update(pre_tokenizer={"type": "Whitespace"}),
        lambda file: file["added_tokens"][0].update(single_word=True),
        lambda file: file["added_tokens"][0].update(id=-1),
        lambda file: file["post_processor"].update(single=[]),
        lambda file: file["post_processor"].update(type="Sequence"),
        lambda file: file["post_processor"]["single"][0]["SpecialToken"].update(type_id=1),
        lambda file: file.clear(),
    ],
)
def test_another_tokenizer_stays_the_apps_to_make(change: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    file = copy.deepcopy(TOKENIZERS["uncased"])
    path.write_text(json.dumps(file))
    assert read_wordpiece(path) is not None
    change(file)
    path.write_text(json.dumps(file))
    assert read_wordpiece(path) is None
    path.write_text("no json")
    assert read_wordpiece(path) is None


def test_the_ids_around_a_text_are_those_of_each_processor(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    for kind in ("BertProcessing", "RobertaProcessing"):
        processor = {"type": kind, "cls": ["<s>", 5], "sep": ["[SEP]", 3]}
        path.write_text(json.dumps({**TOKENIZERS["uncased"], "post_processor": processor}))
        found = read_wordpiece(path)
        assert found is not None
        assert (found.before, found.behind) == ((5,), (3,))


def test_projects_say_whose_the_tokens_are(tmp_path: Path) -> None:
    other = {**TOKENIZERS["uncased"], "pre_tokenizer": {"type": "Whitespace"}}
    bundles = {
        "known": make_text_bundle(tmp_path / "one", TOKENIZERS["uncased"]).path,
        "other": make_text_bundle(tmp_path / "two", other).path,
    }
    for platform, name in product(("c", "ios", "react-native", "web"), bundles):
        folder = edgeq.embed(bundles[name], platform=platform, output=tmp_path / name / platform).path
        readme = (folder / "README.md").read_text()
        files = {path.name for path in folder.rglob("*")}
        if platform in ("c", "ios"):
            assert ("vocabulary.txt" in files) == (name == "known")
            assert ("tokenizer.json" in files) == (name == "other")
        assert ("yours to make" in readme) == (name == "other"), readme
        assert ("embed(" in readme) == (name == "known"), readme


# -- C


def compiled(folder: Path, source: Path, *flags: str, compiler: Sequence[str] = ("cc", "-std=c99")) -> Path:
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"there is no {compiler[0]}")
    command = [*compiler, "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Werror", *flags, "-DTINY_IMPLEMENTATION"]
    program = folder / "tokenize"
    done = subprocess.run(
        [*command, f"-I{folder}", str(source), "-o", str(program)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return program


def tokens_in_c(folder: Path, texts: Sequence[bytes], command: Sequence[str | Path]) -> list[np.ndarray]:
    write_texts(folder / "texts", texts)
    done = subprocess.run([*command, folder, folder / "texts"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return read_tokens(done.stdout)


@some_tokenizers
@pytest.mark.parametrize("kind", ["plain", pytest.param("sanitized", marks=pytest.mark.slow)])
def test_c_gives_the_tokens_of_tokenizers(kind: str, file: dict[str, Any], tmp_path: Path) -> None:
    full = kind == "sanitized"
    bundle = make_text_bundle(tmp_path / "bundle", file, most=32, padding="max_length" if full else "longest")
    folder = edgeq.embed(bundle.path, platform="c", output=tmp_path / "out").path
    program = compiled(folder, HERE / "tokenize.c", *(SANITIZERS if kind == "sanitized" else ()))
    texts = [*TEXTS, *random_texts(3000 if full else 500)]
    found = tokens_in_c(folder, [text.encode() for text in texts], [program])
    for text, right, tokens in zip(texts, expected(file, texts, 32, full=full), found, strict=True):
        assert tokens.tolist() == right.tolist(), ascii(text)


def test_c_counts_bytes_that_are_no_utf8_as_replacements(tmp_path: Path) -> None:
    file = TOKENIZERS["as it is"]
    assert "\ufffd" in file["model"]["vocab"]
    folder = edgeq.embed(make_text_bundle(tmp_path / "bundle", file).path, platform="c", output=tmp_path / "out").path
    program = compiled(folder, HERE / "tokenize.c")
    rng = np.random.default_rng(0)
    hard = np.array([0x20, 0x41, 0x80, 0x9F, 0xA0, 0xBF, 0xC0, 0xC2, 0xDF, 0xE0, 0xED, 0xEF, 0xF0, 0xF4, 0xF5, 0xFF])
    texts = [rng.choice(hard, rng.integers(1, 9)).astype(np.uint8).tobytes() for _ in range(500)]
    found = tokens_in_c(folder, texts, [program])
    expectations = expected(file, [text.decode("utf-8", "replace") for text in texts], 16)
    for text, right, tokens in zip(texts, expectations, found, strict=True):
        assert tokens.tolist() == right.tolist(), text


def test_c_refuses_another_vocabulary(tmp_path: Path) -> None:
    bundle = make_text_bundle(tmp_path / "bundle", TOKENIZERS["uncased"])
    folder = edgeq.embed(bundle.path, platform="c", output=tmp_path / "out").path
    program = compiled(folder, HERE / "tokenize.c")
    vocabulary = folder / "vocabulary.txt"
    whole = vocabulary.read_bytes()
    for wrong in (whole[:-1], whole + b"a", whole.replace(b"\n", b"a", 1), whole[:-2] + b"\n\n", b""):
        vocabulary.write_bytes(wrong)
        with pytest.raises(AssertionError, match="not the one that this header was made with"):
            tokens_in_c(folder, [b"a"], [program])
    vocabulary.unlink()
    with pytest.raises(AssertionError, match="cannot be read"):
        tokens_in_c(folder, [b"a"], [program])


# -- a real model


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A package of MiniLM, and its project in C."""
    folder = tmp_path_factory.mktemp("minilm")
    bundle = edgeq.export("example:minilm", target="linux-x64", effort=0, measure=False, output=folder / "bundle").path
    return bundle, edgeq.embed(bundle, platform="c", output=folder / "c", name="tiny").path


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("processor", ["here", "arm64"])
def test_c_tokenizes_for_minilm(processor: str, minilm: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, project = minilm
    launcher, compiler = ((), "cc") if processor == "here" else arm64()
    (tmp_path / "vocabulary.txt").symlink_to(project / "vocabulary.txt")
    shutil.copy(project / "tiny_tokenizer.h", tmp_path)
    flags = SANITIZERS if processor == "here" else ()
    program = compiled(tmp_path, HERE / "tokenize.c", *flags, compiler=(compiler, "-std=c99"))
    texts = [json.loads(line)["text"] for line in SENTENCES.read_text().splitlines()]
    texts += [*TEXTS, *random_texts(2000)]
    found = tokens_in_c(tmp_path, [text.encode() for text in texts], [*launcher, program])
    right = expected(json.loads((bundle / "tokenizer.json").read_text()), texts, 128, full=True, padding=0)
    for text, one, other in zip(texts, right, found, strict=True):
        assert other.tolist() == one.tolist(), ascii(text)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("processor", ["here", "arm64"])
def test_c_embeds_with_minilm(processor: str, minilm: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, project = minilm
    launcher, compiler = ((), "cc") if processor == "here" else arm64()
    package = Path(onnxruntime.__file__).parent if processor == "here" else arm64_package()
    (tmp_path / "lib").mkdir()
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (tmp_path / "lib" / name).symlink_to(next((package / "capi").glob("libonnxruntime.so*")))
    (tmp_path / "include").symlink_to(Path(edgeq.__file__).parent / "devices" / "runner" / "vendor")
    run = " ".join(map(str, launcher)) + (f" -E LD_LIBRARY_PATH={tmp_path / 'lib'}" if launcher else "")
    arguments = [f"ORT={tmp_path}", f"CC={compiler}", f"RUN={run}", "CFLAGS=-O1 -Wall -Wextra -Wpedantic -Werror"]
    done = subprocess.run(
        ["make", "-B", "-C", project, *arguments, "check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    sentences = ["A cat sits on the mat.", "Crème brûlée in Łódź", "A kitten is sitting on a rug."]
    command = [*run.split(), str(project / "example"), str(project), *sentences]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-5::2]
    right = expected(json.loads((bundle / "tokenizer.json").read_text()), sentences, 128, full=True, padding=0)
    names = ("input_ids", "attention_mask", "token_type_ids")
    vectors = []
    with open_session(bundle / "model.onnx", session_options(threads=1)) as session:
        for tokens in right:
            (found,) = session.run(None, {name: tokens[None, :, i] for i, name in enumerate(names)})
            total = (found[0] * tokens[:, 1:2]).sum(0)
            vectors.append(total / np.linalg.norm(total))
    for line, vector in zip(printed, vectors, strict=True):
        numbers, cosine = line.split(" ...; cosine with the first text ")
        np.testing.assert_allclose([float(number) for number in numbers.split()], vector[:5], atol=2e-3)
        assert float(cosine) == pytest.approx(float(vector @ vectors[0]), abs=0.01)


def arm64() -> tuple[tuple[str, ...], str]:
    """What runs a program on an emulated processor, and the compiler for it."""
    compiler = "aarch64-linux-gnu-gcc"
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}")
    sandbox = find_sandbox("arm64")
    if why := sandbox.missing():
        pytest.skip(f"{why}: edgeq doctor --install-provider arm64")
    assert isinstance(sandbox, EmulatedProcessor)
    return sandbox.launcher("max"), compiler


def arm64_package() -> Path:
    sandbox = find_sandbox("arm64")
    assert isinstance(sandbox, EmulatedProcessor)
    return sandbox.package_folder("onnxruntime")
