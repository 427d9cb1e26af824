"""Target profiles: what one target can run, as data. Code asks the profile, never for a provider's name.

A profile is a TOML file in ``targets/``. It may inherit from one of ``targets/providers/``, which may
inherit from another; tables merge key by key, and ``[[capability]]`` lists are appended. It may have
variants (``android-npu@v73``): tables that are merged over it. An unknown key is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgeq.errors import ConfigError
from edgeq.resources import data_names, data_path
from edgeq.target_files import profile_table

__all__ = [
    "CPU_PROVIDER",
    "Activations",
    "Bias",
    "Capability",
    "Chip",
    "Compile",
    "Fixed",
    "Floats",
    "Gate",
    "Gates",
    "Graph",
    "Pixels",
    "Provider",
    "Severity",
    "TargetProfile",
    "Verification",
    "Weights",
    "load_target",
    "target_names",
]


CPU_PROVIDER = "CPUExecutionProvider"
"""ONNX Runtime's own: what every other provider leaves is left to it."""

Severity = Literal["error", "warning", "info", "off"]
Gate = Literal["unfused", "fallback", "leftover"]


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all tables: immutable, and an unknown key is an error."""


class Provider(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The execution provider: which package brings it, and how a session with it is made.

    ``registration`` is ``"builtin"`` or ``"plugin"`` (the package registers a library with ONNX
    Runtime); ``module`` is what is imported then. ``options`` go to the provider, ``session`` are
    session configuration entries.
    """

    name: str
    package: str
    version: str
    registration: Literal["builtin", "plugin"] = "builtin"
    module: str | None = None
    options: dict[str, str] = {}
    session: dict[str, str] = {}


class Graph(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The form of the graph: opset, IR version, shapes, and how linear layers are written.

    ``linear`` says in which form a matrix product with a constant weight and a bias fuses:
    ``"as-is"``, or ``"guarded-add"`` (rank 2: Gemm; higher ranks: MatMul and an Add whose bias has
    the output's rank, which keeps ONNX Runtime from merging both into a float Gemm).
    ``masks`` says whether attention masks of -3.4e38 stay (``"keep"``: they are added in float) or
    become a finite number that integers can hold (``"finite"``).
    ``cache_key`` names a property of the model's metadata that gets a fingerprint of its content, for
    providers that look there for the key of what they compiled before.
    ``scalars``: ``"vectors"`` gives a constant operand without dimensions one of size 1.
    ``residuals``: ``"sum"`` writes Sum for the Add in front of a LayerNormalization, which keeps ONNX Runtime
    from merging both into SkipLayerNormalization.
    ``pad_channels`` gives convolutions whole groups of four input channels where groups of three go wrong.
    ``qdq_domain`` is the domain of QuantizeLinear and DequantizeLinear; ``"com.microsoft"`` has 16-bit
    types below opset 21.
    """

    opset: int = 21
    ir_version: int = 10
    shapes: Literal["dynamic", "static"] = "dynamic"
    linear: Literal["as-is", "guarded-add"] = "as-is"
    masks: Literal["keep", "finite"] = "keep"
    scalars: Literal["keep", "vectors"] = "keep"
    residuals: Literal["keep", "sum"] = "keep"
    pad_channels: bool = False
    qdq_domain: Literal["ai.onnx", "com.microsoft"] = "ai.onnx"
    cache_key: str | None = None
    source: str


class Pixels(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the provider makes of ``--embed-preprocessing``, where it is not what its capabilities say.

    ``runs``: it leaves all that reads integers to the CPU (``"left"``), or fails on such a graph (``"refused"``).
    """

    runs: Literal["left", "refused"]
    source: str


class Floats(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What becomes of operators that are not quantized.

    ``type`` is how they are stored and computed: ``"float16"`` converts the graph, but for islands
    that need more range. ``runs``: the provider runs ``"all"`` operators in floats, only those
    ``"listed"`` in a capability of kind ``"float"``, or ``"none"``; the others fall to the CPU.
    ``avoid`` says what a float operator between integer ones is worth: false quantizes elementwise
    kernels and data movement only between integer neighbours, true wherever they stand, for
    providers that run floats slowly or not at all. ``requantized`` names operators whose constant float weights
    are quantized while loading, per tensor, where they stand between a DequantizeLinear and a QuantizeLinear: such
    a node is float only if a neighbour is, too. ``stored`` is how the weights of float kernels are written into the
    file: as they are computed, or as ``"int16"`` with a scale per channel, for runtimes that turn them back while
    loading.
    """

    type: Literal["float32", "float16"] = "float32"
    runs: Literal["all", "listed", "none"] = "all"
    avoid: bool = False
    requantized: tuple[str, ...] = ()
    stored: Literal["computed", "int16"] = "computed"
    source: str


class Activations(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Integer types of activations by bits, e.g. ``types = {"8" = "uint8"}``.

    ``scale`` restricts scales to powers of two. ``absorption`` says how a kernel takes over the Relu or
    Clip behind it: ``"range"`` drops it, as the integers end where it cuts (which symmetric types do
    not), ``"kernel"`` computes it before rounding, ``"none"`` takes over nothing that is still a node: as
    with ``"range"`` the integers cut, and the node is left out of the graph.
    """

    types: dict[str, str] = {}
    symmetric: bool = False
    min_range: float = 0.0
    scale: Literal["any", "power-of-two"] = "any"
    absorption: Literal["range", "kernel", "none"] = "range"
    source: str


class Weights(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Integer types of weights by bits; always symmetric unless said otherwise.

    ``reduce_range`` leaves one bit unused (8-bit weights in -64 .. 63), where products saturate;
    ``pair_limit`` bounds the sum of two neighbours of one sign instead, where kernels add up pairs of
    products in 16 bits (128 for uint8 by int8).
    ``form`` is how weight-only matrices are written: a DequantizeLinear in front of MatMul (``"qdq"``),
    or ONNX Runtime's MatMulNBits (``"matmulnbits"``) with ``accuracy_level`` (0: the provider's own,
    1: float32, 2: float16, 4: int8 activations). ``block_scale`` is how the scale of a block is stored:
    ``"float32"``, or ``"uint4"`` times a float per channel (low-power block quantization, LPBQ).
    ``beside_integers`` is how weight-only matrices are written in a graph whose other nodes read quantized
    activations: not at all, or as MatMulNBits.
    """

    types: dict[str, str] = {}
    symmetric: bool = True
    scale: Literal["any", "power-of-two"] = "any"
    reduce_range: bool = False
    pair_limit: int | None = None
    form: Literal["qdq", "matmulnbits"] = "qdq"
    accuracy_level: Literal[0, 1, 2, 4] = 0
    block_scale: Literal["float32", "uint4"] = "float32"
    beside_integers: Literal["none", "matmulnbits"] = "none"
    source: str


class Bias(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``int32`` (scale = input scale * weight scale) or ``float`` (left as it is)."""

    mode: Literal["int32", "float"]
    source: str


class Capability(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the provider runs.

    ``kind``:
        ``compute``: asks for quantized inputs wherever it stands.
        ``elementwise``: an integer kernel worth using between quantized neighbours only.
        ``moves-data``: works on any integers; input and output share one scale.
        ``weight-only``: a constant weight in blocks, float activations.
        ``dynamic``: a constant weight, activations whose range is found at run time.
        ``table``: rows of a constant are looked up (Gather) and dequantized after the look-up.
        ``float``: runs in floats (see ``Floats.runs``).
    ``passive``: no Q/DQ is asked for, but the provider uses those of the neighbours: it computes in
    integers where all inputs come from a DequantizeLinear, and moves integers where a Q/DQ stands on
    one side. Only predictions look at it.
    ``float32_only``: runs in float32 where the rest of the graph is float16.
    ``only`` names the variants of the target that have it (empty: all). ``provider`` runs it, where
    that is not the target's own: the CPU beside an accelerator, say.
    ``activation_bits`` and ``weight_bits`` are the widths that it takes, in any combination.
    ``output``: ``required`` (without a Q behind it the operator stays float) or ``optional``.
    ``per_channel``: the weight may have a scale per output channel.
    ``constant_weight``: the weight must be a constant; otherwise it may be an activation too.
    ``weight_types``: by bits of the activations, the type of the weight where it is not the target's
    usual one, e.g. ``{"8" = "uint8", "16" = "uint16"}``; for ``moves-data`` that of a constant table.
    ``blocks``: sizes of weight blocks that it takes; empty: any for ``weight-only``, else none.
    ``columns``: the output channels of such a weight must be a multiple of it.
    ``operand_types``: by bits, the type to which an activation in the weight's place is converted in
    front of the operator, e.g. ``{"16" = "int16"}`` for MatMul of two activations; signed types are
    symmetric.
    ``apart``: widths at which an input that other nodes read, too, is requantized for the operator, a
    shade wider: it keeps a provider from merging both into a kernel that is wrong.
    ``absorbs``: its kernel takes over the Relu or Clip behind it (see ``TargetProfile.absorbs``).
    ``through_sigmoid``: widths at which Tanh is written as ``2 sigmoid(2 x) - 1``, its own kernel being wrong.
    """

    ops: tuple[str, ...]
    kind: Literal["compute", "elementwise", "moves-data", "weight-only", "dynamic", "table", "float"]
    activation_bits: tuple[int, ...] = ()
    weight_bits: tuple[int, ...] = ()
    output: Literal["required", "optional"] = "required"
    per_channel: bool = True
    constant_weight: bool = True
    weight_types: dict[str, str] = {}
    operand_types: dict[str, str] = {}
    blocks: tuple[int, ...] = ()
    columns: int = 1
    apart: tuple[int, ...] = ()
    absorbs: bool = True
    through_sigmoid: tuple[int, ...] = ()
    float32_only: bool = False
    only: tuple[str, ...] = ()
    provider: str | None = None
    passive: bool = False
    source: str


class Fixed(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The output range ``[lo, hi)`` that an operator has by definition, whatever calibration saw.

    The end is exclusive: with ``b`` bits the scale is ``(hi - lo) / 2^b``, as integer kernels expect it.
    """

    op: str
    lo: float
    hi: float
    source: str


class Gates(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How bad each way is in which a package can disappoint; a build fails on those it is told to fail on.

    ``unfused``: a DequantizeLinear in front of a hot operator that runs in float (up to 45 times slower
    than float). ``fallback``: a node that the provider leaves to the CPU. ``leftover``: pairs of Q/DQ
    around operators that run in float.
    """

    unfused: Severity = "error"
    fallback: Severity = "warning"
    leftover: Severity = "info"


class Chip(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One chip: its name, its ``value`` for the provider's option, and the variant of the target that it has."""

    name: str
    value: str
    variant: str


class Compile(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is compiled ahead of time into the bundle: ``context`` makes one EPContext model per chip.

    ``chips`` are compiled for in every export, besides those that the user names. ``option`` is the
    provider's option that chooses the chip, ``known`` are the chips that may be named.
    """

    kind: Literal["context"]
    chips: tuple[str, ...] = ()
    option: str
    known: tuple[Chip, ...]
    source: str

    def find(self, name: str) -> Chip | None:
        """The chip called ``SM8750``, or the first with that number of the provider's or of that variant."""
        wanted = name.strip().lower()
        return next((c for c in self.known if wanted in (c.name.lower(), c.value, c.variant)), None)


class Verification(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far this profile can be verified on the machine that makes the package.

    ``machines``: the architectures (as ``platform.machine()`` names them) whose latency says something
    about the target; on others it is "n/a". ``accuracy``: ``provider`` (its own kernels run here)
    or ``specification`` (the
    QDQ graph without any fusion, where the CPU's kernels are no reference). ``sandbox`` names what runs
    or compiles a package of this target on a PC (see ``edgeq.sandbox``; None: nothing does, its rules
    are only checked), ``arguments`` are for it, such as the processor to emulate. ``note`` is printed in
    every report.
    """

    accuracy: Literal["provider", "specification"] = "provider"
    sandbox: str | None = None
    arguments: dict[str, str] = {}
    machines: tuple[str, ...] = ()
    note: str

    @property
    def latency_here(self) -> bool:
        """Whether a latency measured on this machine says something about the target."""
        import platform

        return platform.machine() in self.machines


class TargetProfile(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """All that edgeq knows of one target. See ``docs/targets.md`` for the meaning of each key.

    ``fallback`` is another target, whose graph goes into the bundle beside the first. ``variants`` are
    tables that may be merged over the profile, ``variant`` is the one that was (in a file: the default).
    """

    name: str
    summary: str
    precisions: tuple[str, ...]
    provider: Provider
    graph: Graph
    pixels: Pixels | None = None
    floats: Floats
    activations: Activations
    weights: Weights
    bias: Bias
    absorbs: tuple[str, ...]
    capability: tuple[Capability, ...]
    fixed: tuple[Fixed, ...] = ()
    gates: Gates = Gates()
    compile: Compile | None = None
    fallback: str | None = None
    verification: Verification
    sources: tuple[str, ...]
    inherits: str | None = None
    variant: str | None = None
    variants: dict[str, Any] = {}

    @cached_property
    def _by_op(self) -> Mapping[str, tuple[Capability, ...]]:
        table: dict[str, tuple[Capability, ...]] = {}
        for capability in self.capability:
            for op in capability.ops:
                table[op] = (*table.get(op, ()), capability)
        return table

    def capabilities(self, op: str) -> tuple[Capability, ...]:
        """All capabilities that name ``op``, in the order of the file."""
        return self._by_op.get(op, ())

    def fixed_range(self, op: str) -> tuple[float, float] | None:
        """The fixed output range of ``op``, or None."""
        return next(((f.lo, f.hi) for f in self.fixed if f.op == op), None)


def target_names() -> tuple[str, ...]:
    """The names of all targets, sorted."""
    return data_names("targets")


def load_target(name: str | Path) -> TargetProfile:
    """Load a target by name, or from a TOML file; ``name@variant`` takes a variant other than the default.

    Raises:
        ConfigError: unknown target or variant, unreadable TOML, unknown or missing key, wrong type.
    """
    file, asked = _split_variant(str(name))
    path = Path(file) if file.endswith(".toml") else data_path("targets", file)
    table = profile_table(path, asked)
    try:
        profile = msgspec.convert(table, TargetProfile)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"target profile {path.stem!r} is not valid: {error}",
            where=str(path),
            remedy="compare the key with docs/targets.md; a profile may hold no other keys",
        ) from None
    held = tuple(c for c in profile.capability if not c.only or profile.variant in c.only)
    return msgspec.structs.replace(profile, capability=held)


def _split_variant(name: str) -> tuple[str, str | None]:
    file, at, variant = name.rpartition("@")
    return (file, variant) if at and not variant.endswith(".toml") else (name, None)
