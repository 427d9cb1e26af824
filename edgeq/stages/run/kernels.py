"""Which kernel of ONNX Runtime's CPU provider does each node's work, read from the optimized graph.

ONNX Runtime writes the graph it is going to run. Nodes are found there by a label put into
their names beforehand, or by the tensors they produce; what is found neither way was merged into
a neighbour.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgeq.node_times import INTEGER

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

__all__ = ["PLUMBING", "Kernel", "Kernels", "label_nodes", "labelled", "read_kernels"]

PLUMBING = frozenset({"QuantizeLinear", "DequantizeLinear"})
_LABEL = re.compile(r"edgeq_(\d+)_")
_ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish"})
_MOVERS = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
_GLUE = frozenset({"Reshape", "Transpose", "ReorderInput", "ReorderOutput"})
_INDEX_OPS = frozenset(
    (
        "Shape",
        "Size",
        "NonZero",
        "ArgMax",
        "ArgMin",
        "NonMaxSuppression",
        "Equal",
        "Less",
        "Greater",
        "Not",
        "And",
        "Or",
    )
)

Kind = Literal["integer", "moves data", "float"]
Element = Literal["quantized", "stored", "index", "float"]


@dataclass(frozen=True)
class Kernel:
    """``op_type`` runs; ``head`` is the index of the node it is named after; ``kind`` as in ``NodePlacement``.

    ``dequantizes`` tells of the DequantizeLinear kernels left directly in front of it: whether there are
    some of ``"quantized"`` activations, and some of ``"stored"`` constants.
    """

    op_type: str
    kind: Kind
    head: int
    dequantizes: frozenset[Element] = frozenset()


@dataclass(frozen=True)
class Kernels:
    """For each node that is not Q/DQ its kernel, None if it was computed while loading; and the Q/DQ kernels left."""

    by_node: dict[int, Kernel | None]
    quantize: int
    dequantize: int


def label_nodes(model: ir.Model) -> ir.Model:
    """A copy of ``model`` (sharing its tensors) whose node ``i`` is named ``edgeq_i_``."""
    copy = model.clone()
    for index, node in enumerate(copy.graph):
        node.name = f"edgeq_{index}_"
    return copy


def labelled(name: str) -> int | None:
    """The index in a label; ONNX Runtime puts words before and behind it."""
    match = _LABEL.search(name)
    return int(match.group(1)) if match else None


def read_kernels(model: ir.Model, optimized: Path) -> Kernels:
    """Map the nodes of ``model`` to ``optimized``, the file that ONNX Runtime wrote for ``label_nodes(model)``."""
    import onnx

    graph = onnx.load(str(optimized), load_external_data=False).graph
    nodes = list(model.graph)
    index_of = {node: index for index, node in enumerate(nodes)}
    producer = {output.name: i for i, node in enumerate(nodes) for output in node.outputs if output.name}
    makes = {output: number for number, run in enumerate(graph.node) for output in run.output}
    owner: dict[int, int] = {}
    for number, run in enumerate(graph.node):
        if run.op_type in PLUMBING:
            continue
        # A layout change that ONNX Runtime put behind a kernel produces the tensor in the kernel's name.
        glue = run.op_type in _GLUE and labelled(run.name) is None and run.input[0] in makes
        for index in _named(run, nodes, producer):
            owner.setdefault(index, makes[run.input[0]] if glue and nodes[index].op_type != run.op_type else number)
    _before_quantizers(graph, nodes, makes, owner)
    constants = {tensor.name for tensor in graph.initializer}
    folded = {i for i, node in enumerate(nodes) if all(output.name in constants for output in node.outputs)}
    for index, node in enumerate(nodes):
        if node.op_type not in PLUMBING and index not in folded:
            _adopt(index, node, index_of, owner)
    for index in [i for i in owner if nodes[i].op_type in _MOVERS and _cannot_move(graph.node[owner[i]], i, nodes)]:
        del owner[index]
    kinds, dequantizes = _kinds(graph)
    heads = _heads(nodes, graph, owner)
    found: dict[int, Kernel | None] = {}
    for index, node in enumerate(nodes):
        if node.op_type in PLUMBING:
            continue
        at = owner.get(index)
        found[index] = None if at is None else Kernel(graph.node[at].op_type, kinds[at], heads[at], dequantizes[at])
    ops = [run.op_type for run in graph.node]
    return Kernels(found, ops.count("QuantizeLinear"), ops.count("DequantizeLinear"))


def _before_quantizers(
    graph: onnx.GraphProto, nodes: list[ir.Node], makes: dict[str, int], owner: dict[int, int]
) -> None:
    """Operators that are functions are written out without names: the Q behind them tells where they end."""
    index_of = {node: index for index, node in enumerate(nodes)}
    for run in graph.node:
        label = labelled(run.name)
        if run.op_type != "QuantizeLinear" or label is None or not run.input or run.input[0] not in makes:
            continue
        value = nodes[label].inputs[0] if nodes[label].op_type == "QuantizeLinear" else None
        producer = value.producer() if value is not None else None
        number = makes[run.input[0]]
        if producer in index_of and graph.node[number].op_type not in PLUMBING:
            owner.setdefault(index_of[producer], number)


def _named(run: onnx.NodeProto, nodes: list[ir.Node], producer: dict[str, int]) -> list[int]:
    """The nodes that ``run`` names: by label, by NCHWc's habit of naming after the tensor, by its outputs."""
    label = labelled(run.name)
    tensors = [re.sub(r"_nchwc(_token_\d+)?$", "", run.name), *run.output]
    indices = [label] if label is not None else []
    indices += [producer[tensor] for tensor in tensors if tensor in producer]
    named = [index for index in dict.fromkeys(indices) if nodes[index].op_type not in PLUMBING]
    if named or not indices:
        return named
    # A fused integer kernel produces the tensor of the Q behind it: its node is the one in front.
    fronts = [value.producer() for index in indices for value in nodes[index].inputs[:1] if value is not None]
    return [producer[str(node.outputs[0].name)] for node in fronts if node and node.op_type not in PLUMBING]


def _adopt(index: int, node: ir.Node, index_of: dict[ir.Node, int], owner: dict[int, int]) -> None:
    """Give a node that vanished to the neighbour that must have taken it in."""
    if index in owner:
        return
    behind, before = _reach(node, index_of, owner, forward=True), _reach(node, index_of, owner, forward=False)
    # An activation merges into what it follows, a part of a pattern into the pattern's end.
    order = (before, behind) if node.op_type in _ACTIVATIONS else (behind, before)
    taken = next((number for number in order if number is not None), None)
    if taken is not None:
        owner[index] = taken


def _cannot_move(run: onnx.NodeProto, index: int, nodes: list[ir.Node]) -> bool:
    """Whether ``run`` is a plain kernel of another operator: what vanished beside it cancelled with another move."""
    op = _plain(run.op_type)
    return run.op_type not in _MOVERS and op != nodes[index].op_type and any(node.op_type == op for node in nodes)


def _plain(op: str) -> str:
    return re.sub(r"^(QLinear|Q)(?=[A-Z])", "", op)


def _reach(node: ir.Node, index_of: dict[ir.Node, int], owner: dict[int, int], *, forward: bool) -> int | None:
    seen, queue = {node}, [node]
    while queue:
        current = queue.pop(0)
        for neighbour in _neighbours(current, forward):
            if neighbour in seen or neighbour not in index_of:
                continue
            seen.add(neighbour)
            if index_of[neighbour] in owner:
                return owner[index_of[neighbour]]
            queue.append(neighbour)
    return None


def _neighbours(node: ir.Node, forward: bool) -> Iterable[ir.Node]:
    if forward:
        for output in node.outputs:
            yield from (use.node for use in output.uses())
    else:
        for value in node.inputs:
            producer = value.producer() if value is not None else None
            if producer is not None:
                yield producer


def _heads(nodes: list[ir.Node], graph: onnx.GraphProto, owner: dict[int, int]) -> dict[int, int]:
    """Per kernel the node that gives it its name: the one of the kernel's own operator, or the last."""
    members: dict[int, list[int]] = {}
    for index, number in sorted(owner.items()):
        members.setdefault(number, []).append(index)
    heads = {}
    for number, indices in members.items():
        op = re.sub(r"^(QLinear|Fused|DynamicQuantize|Q)|Integer\w*$|NBits$", "", graph.node[number].op_type)
        alike = ("MatMul", "MatMulInteger", "Gemm") if op in ("MatMul", "Gemm") else (op,)
        heads[number] = next((i for i in indices if nodes[i].op_type in alike), indices[-1])
    return heads


def _kinds(graph: onnx.GraphProto) -> tuple[list[Kind], list[frozenset[Element]]]:
    """How each kernel computes, and what is dequantized for it.

    The optimized graph holds no types, so they are followed from its inputs.
    """
    element: dict[str, Element] = {"": "float"}
    for value in graph.input:
        element[value.name] = _element(value.type.tensor_type.elem_type)
    for tensor in graph.initializer:
        held = _element(tensor.data_type)
        element[tensor.name] = "stored" if held == "quantized" else held
    kinds: list[Kind] = []
    dequantizes: list[frozenset[Element]] = []
    restored: dict[str, Element] = {}
    for run in graph.node:
        main = run.input[1] if run.op_type == "Where" else (run.input[0] if run.input else "")
        found = element.get(main, "float")
        integer = INTEGER.fullmatch(run.op_type) is not None
        kinds.append("integer" if integer else "float" if found == "float" else "moves data")
        produced = _produced(run, found, integer)
        element.update(dict.fromkeys(run.output, produced))
        if run.op_type == "TopK":
            element[run.output[1]] = "index"
        dequantizes.append(frozenset(restored[name] for name in run.input if name in restored))
        if run.op_type == "DequantizeLinear":
            restored[run.output[0]] = found
    return kinds, dequantizes


def _produced(run: onnx.NodeProto, found: Element, integer: bool) -> Element:
    if run.op_type == "QuantizeLinear" or run.op_type.startswith("QLinear"):
        return "quantized"
    if run.op_type == "QGemm":
        return "quantized" if len(run.input) > 8 and run.input[8] else "float"
    if run.op_type == "DequantizeLinear" or integer:
        return "float"
    if run.op_type in _INDEX_OPS:
        return "index"
    if run.op_type == "ConstantOfShape":  # its input is a shape; without a value it makes floats
        return next((_element(a.t.data_type) for a in run.attribute if a.name == "value"), "float")
    if run.op_type == "Cast":
        return _element(next(a.i for a in run.attribute if a.name == "to"))
    return found


def _element(data_type: int) -> Element:
    import onnx

    name = onnx.TensorProto.DataType.Name(data_type)
    if name in ("INT32", "INT64", "UINT32", "UINT64", "BOOL", "STRING"):
        return "index"
    return "quantized" if name.removeprefix("U").startswith("INT") else "float"
