"""Texts on Android: BERT's tokenizer in Kotlin, where a bundle's tokenizer asks for nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from edgeq.interface import TokenEmbeddingsOutput
from edgeq.stages.embed.meaning import read_meaning
from edgeq.stages.embed.platforms.android_code import Code, TensorView
from edgeq.stages.embed.project import Request
from edgeq.stages.embed.texts import Texts, read_texts
from edgeq.stages.embed.wordpiece import WordPiece

__all__ = ["TextView", "text_view"]

_PARTS = {
    "ids": "tokens.ids",
    "mask": "tokens.mask",
    "segments": "LongArray(length)",
    "positions": "LongArray(length) { it.toLong() }",
}
"""Expressions of what an input takes."""


@dataclass(frozen=True)
class TextView:
    """All inputs, if they are tokens of a WordPiece tokenizer, and the output that is an embedding.

    ``arguments`` are those of ``run``, in Kotlin; ``mask`` says whether the output is a vector per token, of which the
    mean is taken.
    """

    texts: Texts
    arguments: tuple[tuple[str, str], ...]
    tensor: TensorView
    size: int
    mask: bool

    @property
    def tokenizer(self) -> WordPiece:
        return self.texts.tokenizer


def text_view(request: Request, code: Code) -> TextView | None:
    """None where the inputs are not tokens, the output no embedding, or the tokenizer does more than `Texts.kt`."""
    meaning = read_meaning(request.bundle.manifest)
    outputs = {str(view.name): view for view in code.outputs if view.type.array == "FloatArray"}
    if meaning.embedding is None or meaning.embedding.name not in outputs:
        return None
    texts = read_texts(request)
    if texts is None:
        return None
    lengths = zip(code.sizes, texts.lengths, strict=True)
    return TextView(
        texts=texts,
        arguments=(
            *((view.id, _PARTS[part]) for view, part in zip(code.inputs, texts.parts, strict=True)),
            *((size.id, "length" if is_length else "1") for size, is_length in lengths),
        ),
        tensor=outputs[meaning.embedding.name],
        size=meaning.embedding.size,
        mask=isinstance(meaning.embedding, TokenEmbeddingsOutput),
    )
