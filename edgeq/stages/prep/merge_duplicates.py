"""Equal small constants become one, and equal nodes on equal operands become one.

Weights are never shared: one initializer behind two DequantizeLinear is not fused by ONNX Runtime's
integer kernels, and two layers with equal biases still need a bias scale each. So only integers
(shapes, axes, indices) and single numbers are merged, and never an operand of a compute operator.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import onnx_ir as ir

from edgeq.stages.prep.rewrite import PrepPass, bypass

__all__ = ["MergeDuplicates"]

_MOST_ELEMENTS = 64
_OWNS_ITS_CONSTANTS = frozenset(
    {
        "BatchNormalization",
        "Conv",
        "ConvTranspose",
        "Einsum",
        "Gather",
        "Gemm",
        "GRU",
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "LSTM",
        "MatMul",
        "RMSNormalization",
        "RNN",
    }
)
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


class MergeDuplicates(PrepPass):
    """Common subexpression elimination; two outputs of the model stay two."""

    name = "merge duplicates"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = _merge_constants(model)
        seen: dict[Hashable, ir.Node] = {}
        for node in model.graph:
            key = _key(node)
            if key is None:
                continue
            first = seen.setdefault(key, node)
            if first is not node:
                for mine, theirs in zip(node.outputs[1:], first.outputs[1:], strict=True):
                    mine.replace_all_uses_with(theirs)
                modified |= bypass(node, first.outputs[0])
        return ir.passes.PassResult(model, modified)


def _merge_constants(model: ir.Model) -> bool:
    modified = False
    seen: dict[Hashable, ir.Value] = {}
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or not _mergeable(value, tensor):
            continue
        array = tensor.numpy()
        first = seen.setdefault((tensor.dtype, array.shape, array.tobytes()), value)
        if first is not value:
            value.replace_all_uses_with(first)
            del model.graph.initializers[str(value.name)]
            modified = True
    return modified


def _mergeable(value: ir.Value, tensor: ir.TensorProtocol) -> bool:
    if value.is_graph_output() or value.is_graph_input() or tensor.size > _MOST_ELEMENTS:
        return False
    if not (tensor.dtype.is_integer() and tensor.dtype.itemsize >= 1) and tensor.size != 1:
        return False
    # The indices of a Gather may be shared; its table may not.
    return all(
        node.op_type not in _OWNS_ITS_CONSTANTS or (node.op_type == "Gather" and index == 1)
        for node, index in value.uses()
    )


def _key(node: ir.Node) -> Hashable | None:
    """Equal for nodes that compute the same; None for those that must stay."""
    if node.op_type in _RANDOM:
        return None
    if len(node.outputs) > 1 and any(output.is_graph_output() for output in node.outputs):
        return None
    attributes: list[tuple[str, Hashable]] = []
    for name, attribute in sorted(node.attributes.items()):
        if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            return None
        content = attribute.value
        if attribute.type is ir.AttributeType.TENSOR:
            array = np.asarray(content.numpy())
            content = (str(array.dtype), array.shape, array.tobytes())
        elif isinstance(content, (list, tuple)):
            content = tuple(content)
        if not isinstance(content, Hashable):
            return None
        attributes.append((name, content))
    operands = tuple(id(value) for value in node.inputs)
    return (node.domain, node.op_type, node.overload, operands, len(node.outputs), tuple(attributes))
