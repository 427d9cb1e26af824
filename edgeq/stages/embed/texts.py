"""Texts in generated code: the tokenizer, and how its tokens become the model's inputs."""

from __future__ import annotations

from dataclasses import dataclass

from edgeq.interface import TokenInput
from edgeq.stages.embed.meaning import read_meaning
from edgeq.stages.embed.project import ProjectFile, Request
from edgeq.stages.embed.signature import Tensor
from edgeq.stages.embed.wordpiece import WordPiece, read_wordpiece

__all__ = ["Texts", "embeds", "read_texts"]

_MOST_TOKENS, _MOST_ID = 1 << 16, (1 << 31) - 1
"""What generated code reserves memory for, and writes: a manifest is a stranger's text."""


@dataclass(frozen=True)
class Texts:
    """All inputs, if they are the tokens of a WordPiece tokenizer.

    ``file`` is the tokenizer's in the package. A text is cut to ``most`` tokens, special ones included, and filled up
    to as many with ``padding`` if it is ``full``. ``parts`` name what each input takes (``"ids"``, ``"mask"``,
    ``"segments"``, ``"positions"``); ``lengths`` say of each of the model's sizes whether it is the number of tokens;
    if not, it is that of texts.
    """

    file: str
    tokenizer: WordPiece
    most: int
    full: bool
    padding: int
    parts: tuple[str, ...]
    lengths: tuple[bool, ...]

    @property
    def room(self) -> int:
        """Tokens besides the special ones."""
        return self.most - len(self.tokenizer.before) - len(self.tokenizer.behind)

    def vocabulary(self, folder: str) -> ProjectFile:
        """The tokens, a line each, by id; ``folder`` ends in a slash or is empty."""
        return ProjectFile(f"{folder}vocabulary.txt", self.tokenizer.file)


def read_texts(request: Request) -> Texts | None:
    """None where the inputs are not tokens of one text, or of a tokenizer that generated code does not know."""
    tokens = read_meaning(request.bundle.manifest).tokens
    inputs = request.signature.inputs
    if not tokens or not all(_takes(tensor, tokens[0]) for tensor in inputs):
        return None
    batches, lengths = ({str(tensor.shape[axis]) for tensor in inputs} for axis in (0, 1))
    tokenizer = read_wordpiece(request.bundle.file(tokens[0].tokenizer))
    if tokenizer is None or batches & lengths - {"1"} or not 0 <= tokens[0].pad_id <= _MOST_ID:
        return None
    by_name = {entry.name: entry.part for entry in tokens}
    found = Texts(
        file=tokens[0].tokenizer,
        tokenizer=tokenizer,
        most=tokens[0].max_length,
        full=tokens[0].padding == "max_length",
        padding=tokens[0].pad_id,
        parts=tuple(by_name[str(tensor.name)] for tensor in inputs),
        lengths=tuple(str(size.name) in lengths for size in request.signature.sizes),
    )
    return found if found.room > 0 and found.most <= _MOST_TOKENS else None


def embeds(request: Request, texts: Texts | None) -> bool:
    """Whether a text's tokens give an embedding, in 32-bit floats."""
    output = read_meaning(request.bundle.manifest).embedding
    if texts is None or output is None:
        return False
    return any(tensor.name == output.name and tensor.dtype == "float32" for tensor in request.signature.outputs)


def _takes(tensor: Tensor, entry: TokenInput) -> bool:
    """Whether an input takes one text of any length, or of the one to which texts are padded."""
    if tensor.dtype != "int64" or len(tensor.shape) != 2:
        return False
    batch, length = tensor.shape
    fixed = isinstance(length, int)
    return (not isinstance(batch, int) or batch == 1) and (
        not fixed or (length == entry.max_length and entry.padding == "max_length")
    )
