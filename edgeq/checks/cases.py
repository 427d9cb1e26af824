"""From the promises of a profile to small models: one case is one promise in one form.

A case is a float model and the profile to quantize it for, cut down to the capability in question, so
that no other can take its place. ``edgeq.pipeline.check`` sends it through the stages.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np
import onnx_ir as ir

from edgeq.checks.blocks import BLOCKS, Block
from edgeq.checks.forms import Form, build_form, draw_inputs, forms_of, opset_for
from edgeq.qtypes import Scheme
from edgeq.target import Capability, TargetProfile

__all__ = ["CASES_VERSION", "Case", "block_cases", "capability_cases"]

CASES_VERSION = 1
"""Raised whenever cases change so that recorded results say nothing of the new ones."""

_SAMPLES = 2
_HALF = 0.5
"""The constant ``half`` of the forms."""

_SUM = r"\1\2_sum"
_WEIGHT_ONLY_BLOCKS = (16, 32, 128)
"""Sizes that are tried where a capability takes any."""


@dataclass(frozen=True)
class Case:
    """One promise in one form.

    ``name`` is unique within a target. ``op`` is the operator in question (of a block: its name), ``kind``
    the capability's (``"block"`` for a block), ``type`` what is promised, such as ``"w8a8"``, ``"a16"``,
    ``"w4_b32"`` or ``"float16"``, ``form`` how. ``scheme`` is None where the model stays float.
    ``profile`` is the target to quantize for, ``provider`` what is to run the operator.
    """

    op: str
    kind: str
    type: str
    form: str
    text: str
    scheme: Scheme | None
    profile: TargetProfile
    spans: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    provider: str = ""

    @property
    def name(self) -> str:
        return " ".join(part for part in (self.op, self.type, self.form) if part)

    @property
    def bits(self) -> int | None:
        """Bits of the activations; None where they stay float."""
        return None if self.scheme is None else self.scheme.activation_bits

    def model(self) -> ir.Model:
        """The float model, in the opset of the target, or the first that has the operator."""
        return build_form(self.text, opset_for(self.op, self.profile.graph.opset))

    def feeds(self, model: ir.Model) -> list[dict[str, np.ndarray]]:
        """What it is calibrated and run with, the same every time."""
        return draw_inputs(model, self.spans, _SAMPLES, zlib.crc32(f"{self.op} {self.form}".encode()))


def capability_cases(profile: TargetProfile, capability: Capability) -> Iterator[Case]:
    """The cases of one capability of ``profile``, each name once."""
    for op in capability.ops:
        if capability.passive:
            yield from _passive(profile, capability, op)
        elif capability.kind in ("compute", "elementwise", "moves-data"):
            yield from _integer(profile, capability, op)
        elif capability.kind == "table":
            yield from _table(profile, capability, op)
        elif capability.kind == "weight-only":
            yield from _weight_only(profile, capability, op)
        elif capability.kind == "dynamic":
            yield from _ranged(profile, capability, op)
        else:
            for form in forms_of(op, profile.graph.opset):
                scheme = Scheme.parse("fp16") if profile.floats.type == "float16" else None
                yield _case(profile, capability, form, profile.floats.type, scheme)
            yield from _between_integers(profile, capability, op)


def block_cases(profile: TargetProfile) -> Iterator[Case]:
    """The blocks in every precision of ``profile``, quantized by all of it, as an export would be."""
    for block in BLOCKS:
        for precision in profile.precisions:
            scheme = _parse(precision)
            if scheme is None or not (scheme.weight_only or scheme.dynamic) or _has_matrix(block):
                yield Case(
                    block.name, "block", precision, "", block.text, scheme, profile, block.spans, profile.provider.name
                )


def _has_matrix(block: Block) -> bool:
    return "MatMul(" in block.text or "Gemm" in block.text


def _parse(precision: str) -> Scheme | None:
    """The scheme of a precision; None for one that leaves everything float."""
    try:
        return Scheme.parse(precision)
    except ValueError:
        return None


def _case(
    profile: TargetProfile, capability: Capability, form: Form, type_: str, scheme: Scheme | None, how: str = ""
) -> Case:
    """The case of one form; the profile promises nothing but ``capability``, and that wherever it stands."""
    # Between integer neighbours or alone: what stands around an operator is not in question here.
    floats = msgspec.structs.replace(profile.floats, avoid=True)
    # What Tanh is written with must be there, too.
    helpers = [c for op in ("Mul", "Sub", "Sigmoid") if capability.through_sigmoid for c in profile.capabilities(op)]
    alone = msgspec.structs.replace(profile, capability=(capability, *helpers), floats=floats)
    runs = capability.provider or profile.provider.name
    named = ", ".join(part for part in (form.name, how) if part)
    return Case(form.op, capability.kind, type_, named, form.text, scheme, alone, form.spans, runs)


def _integer(profile: TargetProfile, capability: Capability, op: str) -> Iterator[Case]:
    """Operators on integer activations: every width, with constants and with activations in the weight's place."""
    opset = profile.graph.opset
    weighted = bool(capability.weight_bits) and capability.kind == "compute"
    for bits in capability.activation_bits:
        if not weighted:
            for form in forms_of(op, opset):
                yield _case(profile, capability, form, f"a{bits}", Scheme(8, bits))
            continue
        for width in capability.weight_bits:
            yield from _weighted(profile, capability, op, Scheme(width, bits))
        if not capability.constant_weight:
            for form in forms_of(op, opset, operand=True):
                yield _case(profile, capability, form, f"a{bits}", Scheme(8, bits))
    if capability.kind == "moves-data" and op == "Gather" and capability.weight_types:
        for bits in capability.activation_bits:
            for form in forms_of(op, opset, table=True):
                yield _case(profile, capability, form, f"a{bits}", Scheme(8, bits))


def _weighted(profile: TargetProfile, capability: Capability, op: str, scheme: Scheme) -> Iterator[Case]:
    """All forms with a scale per channel, where there may be one; the first per tensor, in blocks and before a Q."""
    if capability.blocks:  # then it takes nothing else
        for form in forms_of(op, profile.graph.opset, blocks=True):
            for size in capability.blocks:
                blocked = Scheme(scheme.weight_bits, scheme.activation_bits, size)
                yield _case(profile, capability, form, blocked.name, blocked)
        return
    forms = forms_of(op, profile.graph.opset)
    usual = "per channel" if capability.per_channel else "per tensor"
    for form in forms if scheme.weight_bits == capability.weight_bits[-1] else forms[:3]:
        yield _case(profile, capability, form, scheme.name, scheme, usual)
    # Narrower weights are never stored with one scale, where they may have one per channel.
    if capability.per_channel and scheme.weight_bits == 8:
        single = msgspec.structs.replace(capability, per_channel=False)
        yield _case(profile, single, forms[0], scheme.name, scheme, "per tensor")
    if capability.output == "optional":
        behind = msgspec.structs.replace(capability, output="required")
        yield _case(profile, behind, forms[0], scheme.name, scheme, f"{usual}, quantized output")


def _between_integers(profile: TargetProfile, capability: Capability, op: str) -> Iterator[Case]:
    """A float operator without a kernel of that width, behind one Add and before another.

    Some providers take all that stands between Q and DQ for an integer operator, right or wrong.
    """
    listed = [c for c in profile.capabilities(op) if c.kind in ("compute", "elementwise", "moves-data")]
    adds = [c for c in profile.capabilities("Add") if c.kind == "elementwise"]
    form = forms_of(op, profile.graph.opset)[0]
    inputs, outputs = (re.findall(r"(\w+)\[", side) for side in form.text.partition("{")[0].split("=>"))
    if {*inputs, *outputs} != {"float"} or len(outputs) != 1:
        return
    for name in profile.activations.types:
        bits = int(name)
        if any(bits in c.activation_bits for c in listed) or not any(bits in c.activation_bits for c in adds):
            continue
        text = re.sub(r"\by(?= =)", "y_sum", _behind_add(form.text)).replace("}", " y = Add(y_sum, half) }")
        spans = {key: (low - _HALF, high - _HALF) for key, (low, high) in form.spans.items()}
        runs = capability.provider or profile.provider.name
        yield Case(op, "float", f"a{bits}", "between integers", text, Scheme(8, bits), profile, spans, runs)


def _passive(profile: TargetProfile, capability: Capability, op: str) -> Iterator[Case]:
    """Operators that run on the Q/DQ of their neighbours: an Add in front of each input brings them."""
    adds = tuple(c for c in profile.capabilities("Add") if c.kind == "elementwise")
    if not adds:
        return
    for bits in capability.activation_bits:
        operand = op in ("MatMul", "Gemm")
        for form in forms_of(op, profile.graph.opset, operand=operand)[:1]:
            case = _case(profile, capability, form, f"a{bits}", Scheme(8, bits), "behind an Add")
            floats = msgspec.structs.replace(case.profile.floats, avoid=True)
            both = msgspec.structs.replace(case.profile, capability=(capability, *adds), floats=floats)
            yield replace(case, text=_behind_add(case.text), profile=both)


def _behind_add(text: str) -> str:
    """``text`` with ``Add(x, half)`` in the place of each input ``x`` and ``z``."""
    interface, _, body = text.partition("{")
    added = "".join(f"{name}_sum = Add({name}, half) " for name in ("x", "z") if re.search(rf"\b{name}\b", body))
    return f"{interface}{{ {added}{re.sub('([(, ])([xz])(?=[,)])', _SUM, body)}"


def _table(profile: TargetProfile, capability: Capability, op: str) -> Iterator[Case]:
    """Rows are stored in 8 bits whatever the scheme; one that quantizes activations, and one that does not."""
    for form in forms_of(op, profile.graph.opset, table=True):
        for bits in capability.activation_bits[:1]:
            yield _case(profile, capability, form, f"w8a{bits}", Scheme(8, bits))
        if not capability.activation_bits:
            width = capability.weight_bits[0]
            yield _case(profile, capability, form, f"w{width}", Scheme(width, None, 32))


def _ranged(profile: TargetProfile, capability: Capability, op: str) -> Iterator[Case]:
    """Activations whose range is found at run time: all forms with a scale per channel, the first per tensor."""
    for bits in capability.activation_bits:
        for width in capability.weight_bits:
            scheme = Scheme(width, bits, None, True)
            forms = forms_of(op, profile.graph.opset)
            for form in forms:
                yield _case(profile, capability, form, scheme.name, scheme, "per channel")
            single = msgspec.structs.replace(capability, per_channel=False)
            yield _case(profile, single, forms[0], scheme.name, scheme, "per tensor")


def _weight_only(profile: TargetProfile, capability: Capability, op: str) -> Iterator[Case]:
    """Blocks of every size that it takes, at rank 3 and 2, with odd sizes."""
    forms = [f for f in forms_of(op, profile.graph.opset) if capability.columns == 1 or f.name != "odd sizes"]
    for width in capability.weight_bits:
        for size in capability.blocks or _WEIGHT_ONLY_BLOCKS:
            scheme = Scheme(width, None, size)
            for form in forms if size == 32 else forms[:1]:
                yield _case(profile, capability, form, scheme.name, scheme)
