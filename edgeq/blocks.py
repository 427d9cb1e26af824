"""Cut a graph into blocks that few tensors connect, and take a block or a plan's share of it out.

A block is what a method looks at as a whole: the residual blocks of a CNN, the attention and the
feed-forward half of a transformer layer (the granularity of BRECQ, Li et al. 2021, arXiv 2102.05426).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, replace

import onnx_ir as ir

from edgeq.graph import constant_array
from edgeq.qtypes import QuantPlan

__all__ = ["Block", "extract", "extract_block", "find_blocks", "restrict_plan"]


@dataclass(frozen=True)
class Block:
    """Consecutive nodes of the main graph, by name, and the computed tensors that go in and out.

    ``inputs`` are read inside and computed (or fed) outside, constants excluded; ``outputs`` are
    computed inside and read outside, or are outputs of the model. ``heavy`` are the nodes with weights.
    """

    nodes: tuple[str, ...]
    heavy: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def name(self) -> str:
        """The block is called as its last heavy node."""
        return self.heavy[-1] if self.heavy else self.nodes[-1]


def find_blocks(model: ir.Model, heavy: Container[str], *, most: int = 4) -> tuple[Block, ...]:
    """All nodes of the main graph in blocks of at most ``most`` heavy nodes, in graph order.

    ``heavy`` holds the names of the nodes with weights. A block ends where a single tensor that depends
    on a heavy node is still to be read: a residual branch is never split, and is a block of its own.
    Layers of a chain are merged up to ``most``. Where no such place comes for three times as many, a block
    ends with several tensors. ``most=1`` gives layers wherever there are no branches.
    """
    nodes = list(model.graph)
    parts: list[list[ir.Node]] = []
    branched = False
    for part in _parts(nodes, heavy, most):
        count = _count(part, heavy)
        before = _count(parts[-1], heavy) if parts else 0
        chain = count <= 1 and not branched and before + count <= most
        if parts and (count == 0 or before == 0 or chain):
            parts[-1].extend(part)
        else:
            parts.append(part)
        branched = count > 1 or (count == 0 and branched)
    return tuple(_block(part, heavy) for part in parts)


def _count(nodes: Iterable[ir.Node], heavy: Container[str]) -> int:
    return sum(str(node.name) in heavy for node in nodes)


def _parts(nodes: list[ir.Node], heavy: Container[str], most: int) -> Iterator[list[ir.Node]]:
    """The nodes between two places where one tensor connects all before to all behind."""
    # An output of the model leaves it where it is computed: it connects nothing to what comes behind.
    waiting = {value: len(value.uses()) for node in nodes for value in node.outputs}
    depends: set[ir.Value] = set()
    live: set[ir.Value] = set()
    part: list[ir.Node] = []
    for node in nodes:
        part.append(node)
        read = [value for value, _ in _reads(node)]
        for value in read:
            if value in waiting:
                waiting[value] -= 1
                if not waiting[value]:
                    live.discard(value)
        if str(node.name) in heavy or any(value in depends for value in read):
            depends.update(node.outputs)
            live.update(value for value in node.outputs if waiting[value])
        if len(live) == 1 or _count(part, heavy) >= 3 * most:
            yield part
            part = []
    if part:
        yield part


def _reads(node: ir.Node) -> Iterator[tuple[ir.Value, bool]]:
    """What a node reads, and what the nodes in its subgraphs read from outside (then with True)."""
    yield from ((value, False) for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        graphs: tuple[ir.Graph, ...] = ()
        if attribute.type == ir.AttributeType.GRAPH:
            graphs = (attribute.as_graph(),)
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs = tuple(attribute.as_graphs())
        for graph in graphs:
            for inner in ir.traversal.RecursiveGraphIterator(graph):
                yield from ((value, True) for value in inner.inputs if value is not None and value.graph is node.graph)


def _block(nodes: list[ir.Node], heavy: Container[str]) -> Block:
    inside = {value for node in nodes for value in node.outputs}
    members = set(nodes)
    inputs: dict[str, None] = {}
    for node in nodes:
        for value, _ in _reads(node):
            if value not in inside and constant_array(value) is None:
                inputs[str(value.name)] = None
    outputs = [
        str(value.name)
        for node in nodes
        for value in node.outputs
        if value.is_graph_output() or any(user not in members for user, _ in value.uses())
    ]
    names = tuple(str(node.name) for node in nodes)
    return Block(names, tuple(name for name in names if name in heavy), tuple(inputs), tuple(outputs))


def extract_block(model: ir.Model, block: Block) -> ir.Model:
    """The block as a model of its own: a copy that shares the arrays of the weights with ``model``."""
    return extract(model, block.inputs, block.outputs)


def extract(model: ir.Model, inputs: Iterable[str], outputs: Iterable[str]) -> ir.Model:
    """What lies between some tensors, as a model of its own; arrays are shared, names are kept.

    Raises:
        ValueError: a tensor does not exist, or ``inputs`` do not suffice to compute ``outputs``.
    """
    graph = ir.convenience.extract(model.graph, tuple(inputs), tuple(outputs))
    return ir.Model(graph, ir_version=model.ir_version, functions=tuple(model.functions.values()))


def restrict_plan(plan: QuantPlan, part: ir.Model) -> QuantPlan:
    """The decisions that concern a part of the model, so that ``insert`` can carry them out there.

    Inputs of the part are quantized again by the decisions about them, which changes no number that was
    quantized before.
    """
    nodes = {str(node.name) for node in part.graph}
    values = {str(value.name) for value in part.graph.inputs} | set(part.graph.initializers)
    values.update(str(value.name) for node in part.graph for value in node.outputs)
    decisions = []
    for decision in plan.decisions:
        consumers = tuple(name for name in decision.consumers if name in nodes)
        known = decision.tensor in values or decision.role == "bias"
        if known and (consumers or (decision.role == "activation" and decision.tensor in plan.produced)):
            decisions.append(replace(decision, consumers=consumers))
    kept = {name: node for name, node in plan.nodes.items() if name in nodes}
    return replace(plan, decisions=tuple(decisions), nodes=kept, produced=plan.produced & values)
