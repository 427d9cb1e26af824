"""The nouns of quantization: frozen, validated where they are built, numpy only.

Notation follows ONNX: ``real = scale * (q - zero_point)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import ml_dtypes
import msgspec
import numpy as np

from edgeq.formats import NodeFormat, Scheme

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "Decision",
    "Granularity",
    "Histogram",
    "IntType",
    "Kind",
    "NodeForecast",
    "NodeFormat",
    "PerAxis",
    "PerBlock",
    "PerTensor",
    "QParams",
    "QuantPlan",
    "Role",
    "Scheme",
    "TensorSpec",
    "TensorStats",
    "Trial",
]

_STORAGE: dict[tuple[int, bool], np.dtype] = {
    (2, True): np.dtype(ml_dtypes.int2),
    (2, False): np.dtype(ml_dtypes.uint2),
    (4, True): np.dtype(ml_dtypes.int4),
    (4, False): np.dtype(ml_dtypes.uint4),
    (8, True): np.dtype(np.int8),
    (8, False): np.dtype(np.uint8),
    (16, True): np.dtype(np.int16),
    (16, False): np.dtype(np.uint16),
    (32, True): np.dtype(np.int32),
}


@dataclass(frozen=True, slots=True)
class IntType:
    """An integer element type, such as ``IntType(8, signed=False)`` for uint8."""

    bits: int
    signed: bool

    def __post_init__(self) -> None:
        if (self.bits, self.signed) not in _STORAGE:
            raise ValueError(f"no {'signed' if self.signed else 'unsigned'} integer type of {self.bits} bits")

    @classmethod
    def parse(cls, name: str) -> IntType:
        """``"uint8"`` -> ``IntType(8, False)``; raises ValueError for anything else."""
        for bits, signed in _STORAGE:
            if name == cls(bits, signed).name:
                return cls(bits, signed)
        known = ", ".join(cls(*key).name for key in _STORAGE)
        raise ValueError(f"unknown integer type {name!r}; known: {known}")

    @property
    def name(self) -> str:
        return f"{'' if self.signed else 'u'}int{self.bits}"

    @property
    def qmin(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def dtype(self) -> np.dtype:
        """The numpy (or ml_dtypes) type that stores one element; 2 and 4 bits are packed on saving."""
        return _STORAGE[self.bits, self.signed]


@dataclass(frozen=True, slots=True)
class PerTensor:
    """One scale for the whole tensor: scale shape ``()``."""


@dataclass(frozen=True, slots=True)
class PerAxis:
    """One scale per index of ``axis``: ``[A, B]``, axis 0 -> scale ``[A]``."""

    axis: int


@dataclass(frozen=True, slots=True)
class PerBlock:
    """One scale per ``size`` consecutive elements along ``axis``.

    ``[A, B]``, axis 0, size 32 -> scale ``[ceil(A / 32), B]``: the scale keeps the tensor's rank.
    With ``scale_bits`` each scale is an unsigned integer of so many bits times a float that all
    blocks of a channel share (LPBQ, low-power block quantization; matrices only).
    """

    axis: int
    size: int
    scale_bits: int | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"block size must be at least 1, got {self.size}")


Granularity = PerTensor | PerAxis | PerBlock


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """How one tensor is to be quantized.

    ``reduced`` leaves one bit unused (-64 .. 63 in int8), for kernels whose products saturate;
    ``power_of_two`` allows no other scales.
    """

    dtype: IntType
    symmetric: bool
    granularity: Granularity = field(default_factory=PerTensor)
    reduced: bool = False
    power_of_two: bool = False

    @property
    def qmin(self) -> int:
        """The lowest integer that may be used."""
        return self.middle - (self.middle - self.dtype.qmin) // 2 if self.reduced else self.dtype.qmin

    @property
    def qmax(self) -> int:
        """The highest integer that may be used."""
        return self.middle + (self.dtype.qmax - self.middle) // 2 if self.reduced else self.dtype.qmax

    @property
    def middle(self) -> int:
        """The zero point of symmetric tensors."""
        return 0 if self.dtype.signed else 1 << (self.dtype.bits - 1)


@dataclass(frozen=True)
class QParams:
    """Scale and zero point of one tensor.

    ``scale`` is float32 and ``zero_point`` has ``spec.dtype``; both have the shape that
    ``spec.granularity`` asks for. Raises ValueError when they disagree or a scale is not a
    positive finite number.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    spec: TensorSpec

    def __post_init__(self) -> None:
        if self.scale.dtype != np.float32:
            raise ValueError(f"scale must be float32, got {self.scale.dtype}")
        if self.scale.shape != self.zero_point.shape:
            raise ValueError(f"scale {self.scale.shape} and zero point {self.zero_point.shape} differ in shape")
        if self.zero_point.dtype != self.spec.dtype.dtype:
            raise ValueError(f"zero point must be {self.spec.dtype.name}, got {self.zero_point.dtype}")
        if isinstance(self.spec.granularity, PerTensor) and self.scale.shape != ():
            raise ValueError(f"per-tensor scale must have shape (), got {self.scale.shape}")
        if isinstance(self.spec.granularity, PerAxis) and self.scale.ndim != 1:
            raise ValueError(f"per-axis scale must have one dimension, got {self.scale.shape}")
        if not (np.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ValueError("every scale must be a positive finite number")

    @property
    def real_range(self) -> tuple[float, float]:
        """The smallest and largest real number that any element can hold."""
        zero = self.zero_point.astype(np.float64)
        low = ((self.spec.qmin - zero) * self.scale).min()
        high = ((self.spec.qmax - zero) * self.scale).max()
        return float(low), float(high)


@dataclass(frozen=True)
class Histogram:
    """Counts on a grid anchored at zero, so that two histograms merge without any loss.

    Bin ``i`` covers ``[(start + i) * width, (start + i + 1) * width)``; ``width`` is a power of
    two. ``counts`` is int64, ``[bins]`` or, per channel, ``[channels, bins]``.
    """

    counts: np.ndarray
    width: float
    start: int

    @property
    def centers(self) -> np.ndarray:
        """float64 ``[bins]``: the middle of each bin."""
        return (self.start + np.arange(self.counts.shape[-1]) + 0.5) * self.width


@dataclass(frozen=True)
class TensorStats:
    """What calibration learned of one float tensor, streamed over all samples.

    ``lo`` and ``hi`` are the exact extrema over every value seen; ``average_lo`` and
    ``average_hi`` the means of the extrema per batch; ``histogram`` may be built from
    a subsample of the values (``Histogram.counts.sum()`` tells of how many). The per-channel
    arrays are float64 ``[channels]`` along ``channel_axis``, or None where the tensor has no
    channel axis of fixed size. ``values`` counts elements, ``batches`` calls. ``masked`` counts
    the values of magnitude 1e30 or more (and -infinity), as attention masks hold: they widen ``lo``
    and ``hi``, but are not in the histogram; a tensor that has any is no candidate for quantization.
    """

    lo: float
    hi: float
    average_lo: float
    average_hi: float
    values: int
    batches: int
    histogram: Histogram
    channel_axis: int | None = None
    channel_lo: np.ndarray | None = None
    channel_hi: np.ndarray | None = None
    channel_mean: np.ndarray | None = None
    masked: int = 0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.lo) and np.isfinite(self.hi) and self.lo <= self.hi):
            raise ValueError(f"extrema must be finite and ordered, got [{self.lo}, {self.hi}]")


Role = Literal["activation", "operand", "weight", "bias"]
"""An operand is a quantized activation that its consumer reads in another integer type."""


@dataclass(frozen=True)
class Decision:
    """What happens to one tensor: quantized with ``qparams``, or left float for ``skip_reason``.

    ``consumers`` names the nodes that read the quantized form; the others keep the float tensor.
    ``rule`` names the rule of the plan that decided. ``shares`` names the tensor whose scale this one must
    have, as the data only moves.
    """

    tensor: str
    role: Role
    consumers: tuple[str, ...]
    rule: str
    qparams: QParams | None = None
    skip_reason: str | None = None
    shares: str | None = None

    def __post_init__(self) -> None:
        if (self.qparams is None) == (self.skip_reason is None):
            raise ValueError(f"{self.tensor}: a decision has either qparams or a skip reason")


Kind = Literal["integer", "moves data", "float", "fused"]
"""How a node runs. ``moves data``: it computes no floats, but moves integers or works on indices;
``fused``: another node's kernel does its work."""


class NodeForecast(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one node will run on the target, from its profile alone: as what, on which provider, and why.

    ``foreseen`` is set where calibration changed the plan: the kind that the profile alone had promised.
    """

    node: str
    op_type: str
    kind: Kind
    provider: str
    why: str
    foreseen: Kind | None = None


class Trial(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One attempt to lower the error of a block: what was tried, and whether it was kept.

    ``before_db`` and ``after_db`` are the signal-to-quantization-noise ratios of the block's outputs against
    the float block on check samples, in dB, None for one without any error (infinite) or not finite.
    """

    block: str
    method: str
    before_db: float | None
    after_db: float | None
    kept: bool


@dataclass(frozen=True)
class QuantPlan:
    """All decisions for one model, one scheme and one target, in graph order.

    ``weights`` carries float tensors that choosing changed (bias correction, equalization);
    they replace the initializers of the same name before anything is quantized. ``produced`` names
    the tensors that leave an integer kernel: if one is a model output, it is dequantized for it.
    ``notes`` tell, in words, what was done to the float graph before.
    ``nodes`` tells for every node of the graph, by its name, how it is expected to run, and why.
    ``islands`` names the nodes that stay float32 where the rest becomes float16, each with its reason.
    ``trials`` tell what was tried block by block, and what came of it. ``dynamic`` names the nodes that
    find the range of their activations at run time: their weights are integers, their inputs floats.
    """

    target: str
    scheme: Scheme
    decisions: tuple[Decision, ...]
    nodes: Mapping[str, NodeForecast] = field(default_factory=dict)
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    produced: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    islands: Mapping[str, str] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    dynamic: frozenset[str] = frozenset()

    def __iter__(self) -> Iterator[Decision]:
        return iter(self.decisions)

    def counterparts(self, float_model: ir.Model, quantized: ir.Model) -> dict[str, str]:
        """For each tensor that a node computes in the float model, the one that stands for it in ``quantized``.

        That is the DequantizeLinear's output where the tensor was quantized, else the tensor of the same name.
        """
        there = {str(value.name) for node in quantized.graph for value in node.outputs}
        pairs = {}
        for node in float_model.graph:
            for value in node.outputs:
                name = str(value.name)
                stands = f"{name}_dequantized" if f"{name}_dequantized" in there else name
                if stands in there:
                    pairs[name] = stands
        return pairs

    @property
    def quantized(self) -> tuple[Decision, ...]:
        return tuple(d for d in self.decisions if d.qparams is not None)

    @property
    def skipped(self) -> tuple[Decision, ...]:
        return tuple(d for d in self.decisions if d.qparams is None)
