"""What every preparation pass shares: its two base classes, and small steps on a graph.

Passes work on the main graph. The bodies of If, Loop and Scan are left as they are, but values
they capture count as used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from edgeq.graph import constant_array

__all__ = [
    "Effect",
    "NodePass",
    "PrepPass",
    "add_initializer",
    "bypass",
    "change_constant",
    "constant_ints",
    "graph_of",
    "is_node",
    "opset",
    "register_initializer",
    "replace",
    "same_dims",
    "same_shape",
    "sole_consumer",
    "static_shape",
]

Effect = Literal["annotates", "exact", "reorders"]
"""What a pass does to the numbers: nothing (it changes types, shapes or metadata only), nothing but
by rewriting the graph (outputs stay equal to the bit), or floating-point rounding."""


class PrepPass(ir.passes.InPlacePass):
    """One preparation pass: ``call`` changes the model in place and says whether it did.

    A second run right after the first finds nothing to do.
    """

    name: ClassVar[str]
    effect: ClassVar[Effect] = "exact"


class NodePass(PrepPass):
    """A pass that looks at one node at a time, among the standard operators named in ``ops``."""

    ops: ClassVar[frozenset[str]]

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in model.graph:
            if node.domain == "" and node.op_type in self.ops and self.rewrite(node):
                modified = True
        return ir.passes.PassResult(model, modified)

    def rewrite(self, node: ir.Node) -> bool:
        """Rewrite the graph around ``node``; true if that changed anything."""
        raise NotImplementedError


def is_node(node: ir.Node | None, *ops: str) -> bool:
    """True for a node of the standard domain whose operator is one of ``ops``."""
    return node is not None and node.domain == "" and node.op_type in ops


def graph_of(node: ir.Node) -> ir.Graph:
    """The main graph that ``node`` is in."""
    if not isinstance(node.graph, ir.Graph):
        raise ValueError(f"{node.name} is not in a graph")
    return node.graph


def opset(node: ir.Node) -> int:
    """The version of the standard operators in ``node``'s graph."""
    return graph_of(node).opset_imports.get("", 1)


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """The one node of the same graph that reads ``value`` once, if nothing else can see it."""
    uses = list(value.uses())
    producer = value.producer()
    if len(uses) != 1 or value.is_graph_output() or producer is None or uses[0].node.graph is not producer.graph:
        return None
    return uses[0].node


def constant_ints(node: ir.Node, attribute: str, index: int) -> tuple[int, ...] | None:
    """Integers that older operator versions keep in ``attribute`` and newer ones in input ``index``.

    None if they are absent or computed.
    """
    if attribute in node.attributes:
        return tuple(int(number) for number in node.attributes.get_ints(attribute, ()))
    if len(node.inputs) <= index:
        return None
    array = constant_array(node.inputs[index])
    return None if array is None else tuple(int(number) for number in array.ravel())


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """All dimensions of ``value`` if every one is known."""
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return tuple(int(dim) for dim in value.shape if isinstance(dim, int))


def same_dims(a: ir.Value | None, b: ir.Value | None) -> bool:
    """True if both shapes are known and equal, dimension by dimension, by number or by name."""
    if a is None or b is None or a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    pairs = zip(a.shape, b.shape, strict=True)
    return all(x == y and (isinstance(x, int) or x.value is not None) for x, y in pairs)


def same_shape(a: ir.Value | None, b: ir.Value | None) -> bool:
    """True if ``b``, which has as many elements as ``a``, must have the same shape.

    One unknown dimension at the same place follows from the number of elements; more than one
    must carry the same names.
    """
    if a is None or b is None or a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    known: list[tuple[int, int]] = []
    unknown: list[bool] = []
    for x, y in zip(a.shape, b.shape, strict=True):
        if isinstance(x, int) and isinstance(y, int):
            known.append((x, y))
        else:
            unknown.append(not isinstance(x, int) and not isinstance(y, int) and x.value is not None and x == y)
    if any(x != y for x, y in known):
        return False
    return all(unknown) or (len(unknown) == 1 and (0, 0) not in known)


def bypass(node: ir.Node, source: ir.Value | None) -> bool:
    """Let every reader of ``node``'s first output read ``source`` instead, and remove the node.

    A graph output keeps its name, so ``source`` takes it over; that is impossible, and nothing is
    done, if ``source`` is an input, an initializer or an output of the graph itself.
    """
    output = node.outputs[0]
    if source is None or any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
        return False
    if output.is_graph_output():
        producer = source.producer()
        if producer is None or producer.graph is not node.graph or source.is_graph_output():
            return False
    if source.const_value is None and (source.shape is None or _known(output.shape) > _known(source.shape)):
        source.shape = output.shape
    if source.type is None:
        source.type = output.type
    name, was_output = output.name, output.is_graph_output()
    output.replace_all_uses_with(source, replace_graph_outputs=True)
    graph_of(node).remove(node, safe=True)
    if was_output:
        source.name = name
    return True


def replace(
    node: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, int | float | Sequence[int]] | None = None,
) -> ir.Node:
    """Put a new standard operator in ``node``'s place; its first output keeps name, type and shape."""
    old, graph = node.outputs[0], graph_of(node)
    new = ir.node(op_type, inputs, dict(attributes or {}), name=node.name)
    output = new.outputs[0]
    output.type, output.shape = old.type, old.shape
    graph.insert_after(node, new)
    old.replace_all_uses_with(output, replace_graph_outputs=True)
    name = old.name
    graph.remove(node, safe=True)
    output.name = name
    return new


def add_initializer(node: ir.Node, stem: str, array: np.ndarray) -> ir.Value:
    """A new initializer of ``node``'s graph, named ``stem`` or, if that is taken, ``stem_1``, ..."""
    graph = graph_of(node)
    taken = {value.name for value in graph.inputs} | set(graph.initializers)
    taken.update(output.name for other in graph.all_nodes() for output in other.outputs)
    name, number = stem, 0
    while name in taken:
        number += 1
        name = f"{stem}_{number}"
    return register_initializer(graph, name, ir.tensor(array, name=name))


def register_initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Make ``tensor`` an initializer called ``name``, a name that is free."""
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def change_constant(node: ir.Node, index: int, array: np.ndarray) -> None:
    """Give ``node`` the constant ``array`` as input ``index``; other readers keep the old one."""
    old = node.inputs[index] if index < len(node.inputs) else None
    if old is not None and old.is_initializer() and len(old.uses()) == 1 and not old.is_graph_output():
        old.const_value = ir.tensor(array, name=old.name)
        old.shape = ir.Shape(array.shape)
        return
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    stem = old.name if old is not None and old.name else f"{node.name}.{index}"
    node.replace_input_with(index, add_initializer(node, stem, array))


def _known(shape: ir.Shape | None) -> int:
    return 0 if shape is None else sum(isinstance(dim, int) for dim in shape)
