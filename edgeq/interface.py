"""What a program has to put into each input of a package, and what each output means.

An app's code can be written from this alone: names, types and shapes are in the manifest's ``inputs`` and
``outputs``, the same entries here say what is in them. ``kind`` is the tag of each struct in JSON.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from edgeq.recipe import ImagePreprocess

__all__ = [
    "BoxClassesOutput",
    "BoxCountOutput",
    "BoxScoresOutput",
    "BoxesOutput",
    "ClassesOutput",
    "EmbeddingOutput",
    "ImageInput",
    "Input",
    "Interface",
    "LogitsOutput",
    "Output",
    "PixelInput",
    "ProbabilitiesOutput",
    "TensorInput",
    "TensorOutput",
    "TokenEmbeddingsOutput",
    "TokenInput",
]


class _Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """Base of all entries: the name of the tensor that it is about."""

    name: str

    @property
    def kind(self) -> str:
        """The tag that JSON has: ``"pixels"``, ``"logits"``, ..."""
        return str(self.__struct_config__.tag)


class PixelInput(_Entry, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="pixels"):
    """Raw pixels, uint8 ``[batch, height, width, channels]``, 0 to 255: as bitmap, canvas and camera APIs give them.

    The graph does all of ``steps`` itself: a program must not. ``height`` and ``width`` are the one size that
    it takes, None: any, each picture with its own. ``channels`` lists what it takes, by the number of channels:
    ``("RGB", "RGBA")`` for 3 or 4, where alpha is ignored. A camera's picture has to be upright: rotation in a
    file's EXIF data is not in its pixels.
    """

    channels: tuple[Literal["RGB", "RGBA"], ...]
    height: int | None = None
    width: int | None = None
    steps: ImagePreprocess

    @property
    def size(self) -> tuple[int, int] | None:
        """``(height, width)`` of the pictures that it takes; None: any."""
        return None if self.height is None or self.width is None else (self.height, self.width)


class ImageInput(_Entry, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="image"):
    """A picture after ``steps``, which the program does: resize, crop, normalize, in the type of the input."""

    steps: ImagePreprocess


class TokenInput(_Entry, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="tokens"):
    """What a tokenizer gives, int64 ``[batch, length]``.

    ``part`` is the token ids, 1 where there is a token and 0 where there is padding, segment numbers (0 for one
    text), or positions 0, 1, 2, ... ``tokenizer`` is a file of the bundle, ``algorithm`` the type of model that it
    names (``"WordPiece"``, ``"BPE"``, ``"Unigram"``). Texts are cut to ``max_length`` tokens, special ones
    included. ``padding`` to ``max_length`` is needed where the input's length is fixed, and what the model was
    calibrated with otherwise; padding stands at the end, its token id is ``pad_id``.
    """

    part: Literal["ids", "mask", "segments", "positions"]
    tokenizer: str
    algorithm: str | None = None
    max_length: int
    padding: Literal["max_length", "longest"]
    pad_id: int = 0


class TensorInput(_Entry, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="tensor"):
    """Numbers whose meaning edgeq does not know."""


Input = PixelInput | ImageInput | TokenInput | TensorInput


class LogitsOutput(_Entry, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="logits"):
    """One unbounded score per class along the last axis: the largest is the most probable, softmax makes
    probabilities. ``labels`` is the bundle's file with the names of the classes, one a line.
    """

    classes: int
    labels: str | None = None


class ProbabilitiesOutput(_Entry, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="probabilities"):
    """Probabilities along the last axis: of each of ``classes`` classes, in the order of ``labels``, where they sum
    to 1; or, where ``of`` names an output of kind ``"classes"``, of those that are there.
    """

    classes: int
    of: str | None = None
    labels: str | None = None


class ClassesOutput(_Entry, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="classes"):
    """Numbers of the ``count`` most probable of ``classes`` classes along the last axis, int64, the most probable
    first; line ``n`` (from 0) of ``labels`` names class ``n``.
    """

    count: int
    classes: int
    labels: str | None = None


class EmbeddingOutput(_Entry, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="embedding"):
    """One vector of ``size`` numbers per text or picture. ``normalized``: of length 1, so that a dot product of
    two is their cosine.
    """

    size: int
    normalized: bool


class TokenEmbeddingsOutput(_Entry, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="token-embeddings"):
    """One vector of ``size`` numbers per token, ``[batch, length, size]``. A text's embedding is commonly their
    mean over the tokens that input ``mask`` allows, divided by its length (None: over all of them).
    """

    size: int
    mask: str | None = None


class BoxesOutput(_Entry, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="boxes"):
    """What was found in each picture, float32 ``[batch, most, 4]``: left, top, right, bottom, the most probable first.

    They are parts of the width and of the height, 0 to 1, from the top left corner: of the picture that was given
    (``of`` is ``"picture"``), or of what the model sees of it after the steps of its input (``"input"``), which a
    program maps back. ``scores``, ``classes`` and ``count`` name the outputs that go with it; rows from ``count`` on
    are empty. Boxes of a score below ``least_score`` are left out.
    """

    most: int
    of: Literal["picture", "input"]
    scores: str
    classes: str
    count: str
    least_score: float


class BoxScoresOutput(_Entry, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="box-scores"):
    """How probable each of the ``boxes`` is, float32 ``[batch, most]``, 0 to 1, falling; 0 in empty rows."""

    boxes: str


class BoxClassesOutput(_Entry, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="box-classes"):
    """The class of what is in each of the ``boxes``, int64 ``[batch, most]``; -1 in empty rows. Line ``n`` (from 0)
    of ``labels`` names class ``n`` of ``classes`` (0: how many there are is not known).
    """

    boxes: str
    classes: int
    labels: str | None = None


class BoxCountOutput(_Entry, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="box-count"):
    """How many of the ``boxes`` there are, int64 ``[batch]``."""

    boxes: str


class TensorOutput(_Entry, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="tensor"):
    """Numbers whose meaning edgeq does not know."""


Output = (
    LogitsOutput
    | ProbabilitiesOutput
    | ClassesOutput
    | EmbeddingOutput
    | TokenEmbeddingsOutput
    | BoxesOutput
    | BoxScoresOutput
    | BoxClassesOutput
    | BoxCountOutput
    | TensorOutput
)


class Interface(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry per input and output of the model, in their order."""

    inputs: tuple[Input, ...] = ()
    outputs: tuple[Output, ...] = ()

    @property
    def pixels(self) -> PixelInput | None:
        """The input of a model that prepares pictures itself."""
        return next((entry for entry in self.inputs if isinstance(entry, PixelInput)), None)

    @property
    def boxes(self) -> BoxesOutput | None:
        """The output that holds boxes, if the model is a detector whose head the graph decodes."""
        return next((entry for entry in self.outputs if isinstance(entry, BoxesOutput)), None)

    @property
    def files(self) -> frozenset[str]:
        """The files of the bundle that the entries name."""
        entries = (*self.inputs, *self.outputs)
        named = (getattr(entry, key, None) for entry in entries for key in ("labels", "tokenizer"))
        return frozenset(name for name in named if name is not None)
