"""Texts that tokenizers stumble over, and packages of models that take the tokens of a text."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from embed_models import HOSTILE, tiny_manifest

from edgeq.bundle import Bundle, read_bundle
from edgeq.interface import Interface, Output, TokenEmbeddingsOutput, TokenInput
from edgeq.stages.embed.characters import Settings, normalize
from edgeq.stages.package import write_bundle

SENTENCES = Path(__file__).parents[2] / "calibration" / "sentences.jsonl"

VECTORS = TokenEmbeddingsOutput(name="vectors", size=4, mask="mask")
PADDED = TokenEmbeddingsOutput(name="vectors", size=4, mask="attention_mask")

PADDING = 3
"""A token that texts may hold, too."""

TEXTS = (
    *HOSTILE,
    "".join(HOSTILE),
    "Hello, world!",
    "Crème brûlée costs 12.50€ at Łódź's café.",
    "unaffordableness antidisestablishmentarianism",
    "東京 is Tokyo; \u200bzero\u00a0width and tab\tand\r\nlines",
    "ΣΊΣΥΦΟΣ ΟΔΟΣ İstanbul STRASSE ß ﬁne",
    "[CLS] keep [SEP] these [MASK] tokens, [MASK][SEP]",
    "<s>mask <MASK>, <m\u0301ask>, <\u0000mask> or <ma sk></S>",
    "emoji 👩‍👩‍👧 and ＡＢＣ （full-width）",  # noqa: RUF001
    "x" * 100,
    "x" * 101,
    "é" * 100 + " " + "한" * 34,
    "word " * 300,
    "",
    "  \t\n",
    "don't-stop_here #tags @names $5 <b> «quote» … — ‘x’",  # noqa: RUF001
    "\x00\ufffd con\x07trol\x85line\x0bfeed\x1cs",
    "ﬁ Ⅷ ½ ㎏ e\u0301\u0323 a\u0338b ≮ \u1fef \u037e K Å",
    "नमस्ते दुनिया مرحبا 한국어 텍스트 ভালো কোন",
    "\U00020000\U0002f800\uf900\u3400 \u2028\u2029\u3000\ue000\U000f0000",
)


def random_texts(count: int) -> list[str]:
    """Half of characters from all of Unicode, half of those that mean something to a tokenizer."""
    rng = np.random.default_rng(0)
    known = "aEé\u0301\u0327 \t-.,[]<>#0ßΣς日本語한글가ｶ\u200b\xad\x00\x85Ⅷ[SEP][MASK]<mask>"
    pools = (np.array([*range(0xD800), *range(0xE000, 0x110000)]), np.array([ord(char) for char in known]))
    return ["".join(map(chr, rng.choice(pools[i % 2], rng.integers(1, 60)))) for i in range(count)]


def tokenizer_file(
    vocabulary: list[str],
    *,
    special: dict[str, bool],
    around: tuple[str, str] | None = None,
    prefix: str = "##",
    **settings: Any,
) -> dict[str, Any]:
    """A ``tokenizer.json``: ``special`` says of each token whether it is looked for after normalization."""
    ids = {token: number for number, token in enumerate(vocabulary)}
    normalizer = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "special": True}
    single: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    if around is not None:
        first, last = ({"SpecialToken": {"id": token, "type_id": 0}} for token in around)
        single = [first, *single, last]
    template = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in around or ()},
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": ids[token], "content": token, "normalized": normalized, **flags}
            for token, normalized in special.items()
        ],
        "normalizer": {"type": "BertNormalizer", **normalizer, **settings},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": template,
        "decoder": {"type": "WordPiece", "prefix": prefix, "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": prefix,
            "max_input_chars_per_word": 100,
            "vocab": ids,
        },
    }


SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<s>", "<mask>")


def vocabulary(settings: Settings) -> list[str]:
    """The letters of the texts, some of them also inside words, and some longer pieces."""
    rng = random.Random(0)
    words = sorted({word for text in TEXTS for word in normalize(text, settings).split()})
    letters = sorted({letter for word in words for letter in word})
    pieces = {word[a:b] for word in words for a, b in [sorted(rng.sample(range(min(len(word), 40) + 1), 2))]}
    inside = [f"##{piece}" for piece in sorted(pieces | set(rng.sample(letters, len(letters) * 3 // 4)))]
    return list(dict.fromkeys([*SPECIAL, *letters, *sorted(pieces), *inside]))


def tokenizer(settings: Settings, *, normalized: bool = False, around: bool = True) -> dict[str, Any]:
    """``normalized``: special tokens are looked for after normalization."""
    return tokenizer_file(
        vocabulary(settings),
        special=dict.fromkeys(SPECIAL, normalized),
        around=("[CLS]", "[SEP]") if around else None,
        clean_text=settings.clean,
        handle_chinese_chars=settings.chinese,
        strip_accents=settings.accents,
        lowercase=settings.lowercase,
    )


HOSTILE_TOKENS = tuple(dict.fromkeys(token for token in HOSTILE if "\n" not in token))
UNCASED, CASED, BARE = Settings(True, True, True, True), Settings(True, True, False, False), Settings(*[False] * 4)
TOKENIZERS = {
    "uncased": tokenizer(UNCASED),
    "uncased, special tokens after normalization": tokenizer(UNCASED, normalized=True),
    "cased": tokenizer(CASED),
    "lower case with accents": tokenizer(Settings(True, False, False, True), normalized=True),
    "as it is": tokenizer(BARE, around=False),
    "hostile": tokenizer_file(
        [*SPECIAL, *HOSTILE_TOKENS, *(f"{HOSTILE_TOKENS[0]}{token}" for token in HOSTILE_TOKENS)],
        special={token: bool(number % 2) for number, token in enumerate(HOSTILE_TOKENS[1:])},
        prefix=HOSTILE_TOKENS[0],
    ),
}


def expected(
    file: dict[str, Any], texts: Sequence[str], most: int, *, full: bool = False, padding: int = PADDING
) -> list[np.ndarray]:
    """Per text an array [tokens, 4]: id, mask, segment, position."""
    from tokenizers import Tokenizer

    reference = Tokenizer.from_str(json.dumps(file))
    reference.enable_truncation(most)
    if full:
        reference.enable_padding(length=most, pad_id=padding)
    else:
        reference.no_padding()
    found = reference.encode_batch(list(texts))
    return [np.array([e.ids, e.attention_mask, e.type_ids, range(len(e.ids))], np.int64).T for e in found]


def write_texts(path: Path, texts: Sequence[bytes]) -> None:
    """For a program: each text behind its number of bytes and a line feed."""
    path.write_bytes(b"".join(b"%d\n%b" % (len(text), text) for text in texts))


def read_tokens(printed: str) -> list[np.ndarray]:
    """What a program prints, a line per text, ``ID.MASK.SEGMENT.POSITION`` per token: arrays as those of `expected`."""
    lines = printed.splitlines()
    return [np.array([token.split(".") for token in line.split()], np.int64).reshape(-1, 4) for line in lines]


def make_padded_bundle(path: Path) -> Bundle:
    """A package whose sample is half padding, where the reference is far from what the model computes."""
    return make_text_bundle(path, TOKENIZERS["uncased"], output=PADDED, padded=True)


def move_reference(samples: Path, *, of_padding: bool) -> None:
    """Change the reference of one token of a padded sample, in the folder of a project."""
    (file,) = samples.rglob("output_0.npy")
    array = np.load(file)
    array[..., -1 if of_padding else 0, :] += 10
    np.save(file, array)


def make_text_bundle(
    path: Path,
    tokenizer: dict[str, Any],
    *,
    most: int = 16,
    padding: str = "longest",
    shape: tuple[int | str, ...] = ("batch", "length"),
    output: Output = VECTORS,
    padded: bool = False,
) -> Bundle:
    """A package whose model gives each token its id, mask, segment and position as a vector, or else their mean.

    ``padded``: the mask is called as transformers calls it, the second half of the sample is padding, and there the
    reference is far from what the model computes.
    """
    pooled = not isinstance(output, TokenEmbeddingsOutput)
    parts = ("ids", "mask", "segments", "positions")
    names = {part: "attention_mask" if padded and part == "mask" else part for part in parts}
    inputs = [ir.Value(name=n, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(shape)) for n in names.values()]
    axes = ir.Value(name="axes", const_value=ir.tensor(np.array([2], np.int64)))
    nodes = [ir.node("Unsqueeze", [value, axes], name=f"last {value.name}") for value in inputs]
    nodes.append(ir.node("Concat", [node.outputs[0] for node in nodes], {"axis": 2}, name="together"))
    nodes.append(ir.node("Cast", [nodes[-1].outputs[0]], {"to": ir.DataType.FLOAT}, name="cast"))
    if pooled:
        second = ir.Value(name="second", const_value=ir.tensor(np.array([1], np.int64)))
        nodes.append(ir.node("ReduceMean", [nodes[-1].outputs[0], second], {"keepdims": 0}, name="pool"))
    vectors = nodes[-1].outputs[0]
    vectors.name, vectors.type = "vectors", ir.TensorType(ir.DataType.FLOAT)
    vectors.shape = ir.Shape([shape[0], 4] if pooled else [*shape, 4])
    constants = [axes, *([second] if pooled else [])]
    graph = ir.Graph(inputs, [vectors], nodes=nodes, initializers=constants, opset_imports={"": 21}, name="g")
    length = shape[1] if isinstance(shape[1], int) else most
    feed = {name: np.arange(length, dtype=np.int64)[None] for name in names.values()}
    if padded:
        feed["attention_mask"] = np.int64(feed["ids"] < length // 2)
    answer = np.stack(list(feed.values()), 2).astype(np.float32)
    if padded:
        answer[:, length // 2 :] += 1000
    path.mkdir()
    (path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    entries = tuple(
        TokenInput(
            name=names[part],
            part=part,  # type: ignore[arg-type]
            tokenizer="tokenizer.json",
            algorithm=tokenizer["model"]["type"],
            max_length=most,
            padding=padding,  # type: ignore[arg-type]
            pad_id=PADDING,
        )
        for part in parts
    )
    write_bundle(
        path,
        model=ir.Model(graph, ir_version=10),
        manifest=tiny_manifest(Interface(inputs=entries, outputs=(output,)), name="tiny"),
        sample_inputs=[feed],
        reference_outputs=[{"vectors": answer.mean(1) if pooled else answer}],
        sqnr_db={"vectors": 100.0},
    )
    return read_bundle(path)
