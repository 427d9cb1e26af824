"""Which kernel of a target a node may have in a format, judged from the node alone, and which formats it offers."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from edgeq.graph import constant_array
from edgeq.qtypes import NodeFormat, Scheme
from edgeq.roles import is_float, roles_of
from edgeq.target import Capability, TargetProfile

__all__ = ["bounds_refusal", "find_kernel", "formats_of"]


def find_kernel(
    node: ir.Node, target: TargetProfile, scheme: Scheme, wanted: NodeFormat, bits: int | None
) -> Capability | str:
    """The first capability that fits ``node``, or why there is none.

    ``wanted`` is its format, ``bits`` the width of its static activations (None where there are none). A weight
    of a width that no kernel has is taken in 8 bits, if there is a kernel for those.
    """
    inside = sum(1 for _ in _inner_nodes(node))
    if inside:
        return f"the {inside} nodes inside {node.op_type} stay float"
    if node.domain not in ("", "ai.onnx"):
        return f"{target.name} has no integer kernel for {node.domain}::{node.op_type}"
    if not any(is_float(value) for value in node.inputs) or not is_float(node.outputs[0]):
        return "works on integers already"
    if wanted.floating:
        return "fp16 quantizes nothing" if scheme.floating else "kept in float: its format says so"
    reason = f"{target.name} has no integer kernel for {node.op_type} in {wanted.name}"
    if target.weights.beside_integers == "none" and _meets_integers(wanted, scheme):
        return f"{target.name} takes no weights alone beside integer activations"
    for capability in target.capabilities(node.op_type):
        if capability.passive or capability.kind == "float":
            continue
        if capability.kind != "table" and _kind_of(capability) != _kind_asked(wanted):
            continue
        refusal = _refusal(node, capability, target, wanted, bits)
        if refusal is None:
            return capability
        reason = refusal
    return reason


def formats_of(node: ir.Node, target: TargetProfile, scheme: Scheme) -> tuple[NodeFormat, ...]:
    """What ``target`` offers for ``node`` in a model of ``scheme``: fewest bits first, float last.

    ``node`` is one of the graph in the target's form (``shape_float``). ``find_layout`` gives it each of these
    formats, but elementwise kernels and data movement only between integer neighbours. Float is offered
    where the provider itself computes the operator in floats, and does not do so slowly (``floats.avoid``).
    Operators without weights have formats such as ``a8``. A node that nothing is offered for but float, or
    that computes no floats, has float alone.
    """
    found = [wanted for wanted in _candidates(node, target, scheme) if _fits(node, target, scheme, wanted)]
    ordered = sorted(dict.fromkeys(found), key=_cost)
    if not ordered or _runs_floats(node, target):
        ordered.append(NodeFormat(None, None))
    return tuple(ordered)


def _cost(wanted: NodeFormat) -> tuple[int, int, int, bool]:
    return wanted.activation_bits or 32, wanted.weight_bits or 32, wanted.block or 0, wanted.dynamic


def _candidates(node: ir.Node, target: TargetProfile, scheme: Scheme) -> Iterator[NodeFormat]:
    roles, size = roles_of(node.op_type), scheme.block
    weight = node.inputs[roles.weight] if roles.weight is not None and len(node.inputs) > roles.weight else None
    constant = constant_array(weight) is not None
    for capability in target.capabilities(node.op_type):
        if capability.passive or capability.kind == "float":
            continue
        widths = capability.weight_bits if constant else (None,)
        if capability.kind == "table":
            yield scheme.format
        elif capability.kind == "weight-only":
            sizes = (
                [size] if size is not None else [b for b in (32,) if not capability.blocks or b in capability.blocks]
            )
            yield from (NodeFormat(bits, None, False, b) for bits in widths if bits for b in sizes or capability.blocks)
        elif capability.kind == "dynamic":
            pairs = ((w, a) for w in widths for a in capability.activation_bits)
            yield from (NodeFormat(w, a, True) for w, a in pairs if w)
        else:
            for activation in capability.activation_bits:
                sizes = [size] if size in capability.blocks else list(capability.blocks[:2])
                blocks = sizes if constant and capability.blocks else [None]
                yield from (NodeFormat(bits, activation, False, b) for bits in widths or (None,) for b in blocks)


def _fits(node: ir.Node, target: TargetProfile, scheme: Scheme, wanted: NodeFormat) -> bool:
    bits = wanted.static_bits
    if bits is not None and str(bits) not in target.activations.types:
        return False
    kernel = find_kernel(node, target, scheme, wanted, bits)
    if isinstance(kernel, str):
        return False
    exact = wanted.weight_bits is None or wanted.weight_bits in kernel.weight_bits
    return kernel.kind == "table" or (exact and (wanted.block is None) == (not _blocked(kernel)))


def _blocked(kernel: Capability) -> bool:
    return kernel.kind == "weight-only" or bool(kernel.blocks)


def _runs_floats(node: ir.Node, target: TargetProfile) -> bool:
    if target.floats.avoid:
        return False
    listed = any(c.kind == "float" and c.provider is None for c in target.capabilities(node.op_type))
    return target.floats.runs == "all" or (target.floats.runs == "listed" and listed)


def _inner_nodes(node: ir.Node) -> Iterator[ir.Node]:
    for attribute in node.attributes.values():
        graphs: tuple[ir.Graph, ...] = ()
        if attribute.type == ir.AttributeType.GRAPH:
            graphs = (attribute.as_graph(),)
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs = tuple(attribute.as_graphs())
        for graph in graphs:
            yield from ir.traversal.RecursiveGraphIterator(graph)


def _meets_integers(wanted: NodeFormat, scheme: Scheme) -> bool:
    """Whether weights alone and quantized activations would stand in one graph."""
    static = scheme.static_bits is not None
    return (wanted.weight_only and static) or (scheme.weight_only and wanted.static_bits is not None)


def _kind_of(capability: Capability) -> str:
    return capability.kind if capability.kind in ("weight-only", "dynamic") else "static"


def _kind_asked(wanted: NodeFormat) -> str:
    return "weight-only" if wanted.weight_only else "dynamic" if wanted.dynamic else "static"


def _refusal(
    node: ir.Node, capability: Capability, target: TargetProfile, wanted: NodeFormat, bits: int | None
) -> str | None:
    roles = roles_of(node.op_type)
    if capability.kind == "table":
        return _table_refusal(node, capability)
    if bits is not None and bits not in capability.activation_bits:
        return f"{target.name} has no {bits}-bit integer kernel for {node.op_type}"
    if wanted.dynamic and wanted.activation_bits not in capability.activation_bits:
        return f"{target.name} has no {wanted.activation_bits}-bit kernel for {node.op_type} that finds its range"
    if roles.weight is None or not capability.weight_bits:
        return bounds_refusal(node)
    weight = node.inputs[roles.weight] if len(node.inputs) > roles.weight else None
    if weight is None or constant_array(weight) is None:
        return "both operands are activations" if capability.constant_weight else None
    refusal = _weight_refusal(node, weight, capability, target, wanted)
    if refusal is not None:
        return refusal
    if roles.bias is not None and (wanted.dynamic or (not wanted.weight_only and target.bias.mode == "int32")):
        refusal = _bias_refusal(node, roles.bias)
        if refusal is not None:
            return refusal
    if wanted.weight_bits not in (None, *capability.weight_bits) and 8 not in capability.weight_bits:
        return f"{target.name} has no kernel for {node.op_type} with {wanted.weight_bits}-bit weights"
    return None


def _weight_refusal(
    node: ir.Node, weight: ir.Value, capability: Capability, target: TargetProfile, wanted: NodeFormat
) -> str | None:
    """What is wrong with the shape of a constant weight."""
    rank = None if weight.shape is None else len(weight.shape)
    if capability.blocks and not wanted.weight_only:
        rows = weight.shape[0] if weight.shape is not None and rank == 2 else None
        if wanted.block not in capability.blocks or not isinstance(rows, int) or rows % wanted.block:
            return f"its weight does not divide into blocks of {wanted.block}"
    if wanted.weight_only and rank != 2:
        return "only matrices are stored in blocks"
    if wanted.weight_only and not _divides(weight, capability.columns):
        return f"its output channels are no multiple of {capability.columns}"
    if wanted.weight_only and capability.blocks and wanted.block not in capability.blocks:
        return f"{target.name} has no kernel for {node.op_type} with blocks of {wanted.block}"
    if wanted.dynamic and rank != 2:
        return "only matrices are multiplied by activations whose range is found at run time"
    if wanted.dynamic and node.op_type == "Gemm" and node.attributes.get_int("transA", 0) == 1:
        return "its first operand is transposed, which the kernel does not do"
    return None


def _table_refusal(node: ir.Node, capability: Capability) -> str | None:
    table = constant_array(node.inputs[0])
    if table is None or table.dtype != "float32" or table.ndim != 2 or node.attributes.get_int("axis", 0) != 0:
        return "only rows of a constant matrix can be looked up in integers"
    if capability.blocks and not any(table.shape[1] % size == 0 for size in capability.blocks):
        return f"its rows do not divide into blocks of {' or '.join(map(str, capability.blocks))}"
    return None if table.nbytes >= 1 << 16 else "the table is too small to be worth it"


def bounds_refusal(node: ir.Node) -> str | None:
    """Why the kernel of a Clip cannot be an integer one; None for everything else."""
    if node.op_type == "Clip" and any(v is not None and constant_array(v) is None for v in node.inputs[1:]):
        return "the bounds of Clip are computed at run time"
    return None


def _divides(weight: ir.Value, columns: int) -> bool:
    """Whether a matrix ``[K, N]`` has a number of columns that ``columns`` divides."""
    count = None if weight.shape is None else weight.shape[-1]
    return columns == 1 or (isinstance(count, int) and count % columns == 0)


def _bias_refusal(node: ir.Node, position: int) -> str | None:
    """Integer kernels add one int32 per channel to the plain product (measured, ONNX Runtime 1.32)."""
    bias = node.inputs[position] if len(node.inputs) > position else None
    if bias is None:
        return None
    array = constant_array(bias)
    if array is None:
        return "its bias is computed at run time, and integer kernels add constants only"
    if array.ndim != 1:
        return f"its bias has the shape {list(array.shape)}, and integer kernels add one number per channel"
    if node.attributes.get_float("alpha", 1.0) != 1.0 or node.attributes.get_float("beta", 1.0) != 1.0:
        return "it scales its product or bias by alpha or beta, which integer kernels do not"
    return None
