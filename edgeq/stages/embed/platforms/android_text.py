"""Texts on Android: BERT's tokenizer in Kotlin, where a bundle's tokenizer asks for nothing else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.escape import Foreign
from edgeq.interface import TokenEmbeddingsOutput, TokenInput
from edgeq.stages.embed.meaning import read_meaning
from edgeq.stages.embed.platforms.android_code import Code, TensorView
from edgeq.stages.embed.project import Request

__all__ = ["TextView", "text_view"]


@dataclass(frozen=True)
class TextView:
    """All inputs, if they are tokens of a WordPiece tokenizer, and the output that is an embedding.

    ``vocabulary`` is a text with a token per line, by id; ``before`` and ``behind`` are the ids around a text,
    ``special`` those of tokens that a text may hold as they are. ``arguments`` are those of ``run``, in Kotlin;
    ``mask`` says whether the output is a vector per token, of which the mean is taken.
    """

    vocabulary: str
    prefix: Foreign
    unknown: int
    before: tuple[int, ...]
    behind: tuple[int, ...]
    special: tuple[tuple[Foreign, int], ...]
    clean: bool
    chinese: bool
    accents: bool
    lowercase: bool
    most: int
    full: bool
    padding: int
    arguments: tuple[tuple[str, str], ...]
    tensor: TensorView
    size: int
    mask: bool


def text_view(request: Request, code: Code) -> TextView | None:
    """None where the inputs are not tokens, the output no embedding, or the tokenizer does more than `Texts.kt`."""
    meaning = read_meaning(request.bundle.manifest.interface)
    outputs = {str(view.name): view for view in code.outputs if view.type.array == "FloatArray"}
    if not meaning.tokens or meaning.embedding is None or meaning.embedding.name not in outputs:
        return None
    if any(view.type.array != "LongArray" or len(view.tensor.shape) != 2 for view in code.inputs):
        return None
    first = meaning.tokens[0]
    settings = _settings(request.bundle.file(first.tokenizer))
    if settings is None:
        return None
    return TextView(
        **settings,
        most=first.max_length,
        full=first.padding == "max_length",
        padding=first.pad_id,
        arguments=_arguments(meaning.tokens, code),
        tensor=outputs[meaning.embedding.name],
        size=meaning.embedding.size,
        mask=isinstance(meaning.embedding, TokenEmbeddingsOutput),
    )


def _arguments(tokens: tuple[TokenInput, ...], code: Code) -> tuple[tuple[str, str], ...]:
    parts = {"ids": "tokens.ids", "mask": "tokens.mask", "segments": "LongArray(length)"}
    parts["positions"] = "LongArray(length) { it.toLong() }"
    by_name = {entry.name: parts[entry.part] for entry in tokens}
    found = [(view.id, by_name[str(view.name)]) for view in code.inputs]
    axes = {dim: ("1", "length")[axis] for view in code.inputs for axis, dim in enumerate(view.tensor.shape)}
    return (*found, *((size.id, axes[size.name]) for size in code.sizes))


def _settings(path: Path) -> dict[str, Any] | None:
    """What `Texts.kt` has to know of a ``tokenizer.json``; None if it asks for what is not done there."""
    try:
        file = json.loads(path.read_text(encoding="utf-8"))
        model, normalizer = file["model"], file["normalizer"]
        ids: dict[str, int] = model["vocab"]
        tokens = sorted(ids, key=lambda token: ids[token])
        added = {str(one["content"]): int(one["id"]) for one in file.get("added_tokens") or ()}
        before, behind = _template(file.get("post_processor"))
        whole = [ids[token] for token in tokens] == list(range(len(tokens)))
        if (
            model.get("type", "WordPiece") != "WordPiece"
            or normalizer["type"] != "BertNormalizer"
            or file["pre_tokenizer"]["type"] != "BertPreTokenizer"
            or not whole
            or any("\n" in token or "\r" in token for token in tokens)
        ):
            return None
        lowercase = bool(normalizer["lowercase"])
        accents = normalizer.get("strip_accents")
        return {
            "vocabulary": "".join(f"{token}\n" for token in tokens),
            "prefix": Foreign(model.get("continuing_subword_prefix", "##")),
            "unknown": ids[model.get("unk_token", "[UNK]")],
            "before": tuple(ids.get(token, added.get(token, 0)) for token in before),
            "behind": tuple(ids.get(token, added.get(token, 0)) for token in behind),
            "special": tuple((Foreign(token), id_) for token, id_ in sorted(added.items())),
            "clean": bool(normalizer["clean_text"]),
            "chinese": bool(normalizer["handle_chinese_chars"]),
            "accents": lowercase if accents is None else bool(accents),
            "lowercase": lowercase,
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _template(processor: dict[str, Any] | None) -> tuple[list[str], list[str]]:
    """Names of the special tokens before and behind a text."""
    if processor is None:
        return [], []
    if processor["type"] == "BertProcessing":
        return [processor["cls"][0]], [processor["sep"][0]]
    parts = processor["single"]
    at = next(i for i, part in enumerate(parts) if "Sequence" in part)
    names = [[part["SpecialToken"]["id"] for part in some] for some in (parts[:at], parts[at + 1 :])]
    return names[0], names[1]
