"""What is quantized, in one word: a precision for a model (``Scheme``), a format for a node (``NodeFormat``)."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["NodeFormat", "Scheme"]

_USUAL_BLOCK = 32
"""The block size of weight-only formats that name none."""


def _check_block(block: int | None) -> None:
    if block is not None and (block < 16 or block & (block - 1)):
        raise ValueError(f"block size must be a power of two of at least 16, got {block}")


@dataclass(frozen=True, slots=True)
class NodeFormat:
    """How one node is to compute: ``w8a8``, ``w4a16_b32``, ``w8_b32`` (weights alone), ``w8a8_dynamic``, ``float``.

    ``weight_bits`` are those of a constant weight; None: what the model's scheme has, as in ``a16``, or, without
    ``activation_bits``, float. ``activation_bits`` None leaves activations float. ``dynamic`` finds the
    range of the activations at run time, for each call anew. ``block`` is the number of weights that share a
    scale; None: one per output channel. Weights alone are always in blocks, of 32 unless said otherwise.

    Raises ValueError for a dynamic format without both widths, and for a block size that is no power of two.
    """

    weight_bits: int | None
    activation_bits: int | None
    dynamic: bool = False
    block: int | None = None

    def __post_init__(self) -> None:
        if self.dynamic and (self.weight_bits is None or self.activation_bits is None or self.block is not None):
            raise ValueError("a dynamic format has widths of weights and activations, and no blocks")
        if self.weight_only and self.block is None:
            object.__setattr__(self, "block", _USUAL_BLOCK)
        _check_block(self.block)

    @classmethod
    def parse(cls, name: str) -> NodeFormat:
        """The inverse of ``name``; raises ValueError, naming the grammar."""
        if name == "float":
            return cls(None, None)
        match = re.fullmatch(r"(?:w(2|4|8))?(?:a(4|8|16))?(_dynamic)?(?:_b(\d+))?", name)
        if not match or not (match[1] or match[2]) or (match[4] and not match[1]):
            raise ValueError(
                f"unknown format {name!r}: write w<bits>a<bits>, such as w8a16 or w4a16_b32, a<bits> for a node "
                "without weights, w<bits> for weights alone, such as w4_b32, w8a8_dynamic or float"
            )
        weight, activation, dynamic, block = match.groups()
        return cls(_number(weight), _number(activation), dynamic is not None, _number(block))

    @property
    def name(self) -> str:
        if self.floating:
            return "float"
        parts = (("w", self.weight_bits), ("a", self.activation_bits))
        widths = "".join(f"{letter}{bits}" for letter, bits in parts if bits is not None)
        return widths + ("_dynamic" if self.dynamic else "") + (f"_b{self.block}" if self.block else "")

    @property
    def floating(self) -> bool:
        """Whether nothing of the node is quantized."""
        return self.weight_bits is None and self.activation_bits is None

    @property
    def weight_only(self) -> bool:
        """Whether only the weight is quantized."""
        return self.weight_bits is not None and self.activation_bits is None

    @property
    def static_bits(self) -> int | None:
        """The width of activations whose range is known before; None where there is no such."""
        return None if self.dynamic else self.activation_bits


@dataclass(frozen=True, slots=True)
class Scheme:
    """What to quantize, as one says it: ``w8a8``, ``w8a16``, ``w4_b32`` (weight-only, blocks of 32), ``fp16``.

    ``activation_bits`` is None for weight-only schemes; ``block`` is None for per-channel weights. ``dynamic``
    (``w8a8_dynamic``) finds the range of activations at run time: no calibration, but work in front of every
    product. ``fp16`` quantizes nothing: its 16 bits of weights and activations are those of a float.
    """

    weight_bits: int
    activation_bits: int | None
    block: int | None = None
    dynamic: bool = False

    @classmethod
    def parse(cls, name: str) -> Scheme:
        """Raises ValueError, naming the grammar, if ``name`` is not a scheme."""
        if name == "fp16":
            return cls(16, None)
        match = re.fullmatch(r"w(2|4|8)(?:a(4|8|16)(_dynamic)?)?(?:_b(\d+))?", name)
        if not match or (match[3] and match[4]):
            raise ValueError(
                f"unknown precision {name!r}: write w<bits>a<bits> such as w8a8 or w8a16, w8a8_dynamic where the "
                "ranges of activations are found at run time, weight-only w8, w4 or w2 with an optional block size "
                "such as w4_b32, or fp16"
            )
        weight, activation, dynamic, block = match.groups()
        if activation is None and block is None:
            block = str(_USUAL_BLOCK)
        return cls(int(weight), _number(activation), _number(block), dynamic is not None)

    def __post_init__(self) -> None:
        _check_block(self.block)
        if self.dynamic and (self.activation_bits is None or self.block is not None):
            raise ValueError("a dynamic precision has a width of activations, and no blocks")

    @property
    def name(self) -> str:
        return "fp16" if self.floating else self.format.name

    @property
    def format(self) -> NodeFormat:
        """What it asks of each node."""
        if self.floating:
            return NodeFormat(None, None)
        return NodeFormat(self.weight_bits, self.activation_bits, self.dynamic, self.block)

    @property
    def weight_only(self) -> bool:
        return self.activation_bits is None and not self.floating

    @property
    def floating(self) -> bool:
        """Whether nothing is quantized: all numbers are floats of 16 bits."""
        return self.weight_bits == 16

    @property
    def static_bits(self) -> int | None:
        """The width of activations whose range is known before; None where there is no such."""
        return None if self.dynamic else self.activation_bits

    @property
    def calibrated(self) -> bool:
        """Whether the ranges of activations must be known."""
        return self.static_bits is not None


def _number(digits: str | None) -> int | None:
    return int(digits) if digits else None
