"""What an app does with a model: a picture or texts go in, classes or an embedding come out."""

from __future__ import annotations

from dataclasses import dataclass

from edgeq.interface import (
    ClassesOutput,
    EmbeddingOutput,
    ImageInput,
    Interface,
    LogitsOutput,
    PixelInput,
    ProbabilitiesOutput,
    TokenEmbeddingsOutput,
    TokenInput,
)

__all__ = ["Meaning", "read_meaning"]


@dataclass(frozen=True)
class Meaning:
    """The inputs and outputs that generated code knows how to fill and to read; None and empty: it does not.

    ``picture`` is the only input, or ``tokens`` are all inputs. ``scores`` are those of all classes, or of the
    ``classes`` that the graph chose itself. ``embedding`` is a vector per picture or text, or one per token.
    """

    picture: PixelInput | ImageInput | None = None
    tokens: tuple[TokenInput, ...] = ()
    scores: LogitsOutput | ProbabilitiesOutput | None = None
    classes: ClassesOutput | None = None
    embedding: EmbeddingOutput | TokenEmbeddingsOutput | None = None

    @property
    def readable(self) -> bool:
        """Whether what comes out is known as well as what goes in."""
        return bool((self.picture or self.tokens) and (self.scores or self.embedding))


def read_meaning(interface: Interface) -> Meaning:
    """What the entries of a manifest say together."""
    inputs, outputs = interface.inputs, interface.outputs
    pictures = [entry for entry in inputs if isinstance(entry, (PixelInput, ImageInput))]
    tokens = tuple(entry for entry in inputs if isinstance(entry, TokenInput))
    scores = next((entry for entry in outputs if isinstance(entry, (LogitsOutput, ProbabilitiesOutput))), None)
    by_name = {entry.name: entry for entry in outputs if isinstance(entry, ClassesOutput)}
    of = scores.of if isinstance(scores, ProbabilitiesOutput) else None
    return Meaning(
        picture=pictures[0] if len(pictures) == len(inputs) == 1 else None,
        tokens=tokens if tokens and len(tokens) == len(inputs) else (),
        scores=scores,
        classes=by_name.get(of or ""),
        embedding=next((e for e in outputs if isinstance(e, (EmbeddingOutput, TokenEmbeddingsOutput))), None),
    )
