"""Which nodes change format together, and what may be chosen for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgeq.formats import NodeFormat
from edgeq.graph import constant_array
from edgeq.roles import roles_of

__all__ = ["Group", "Structure", "find_groups"]


@dataclass(frozen=True)
class Group:
    """Nodes of the main graph, by name and in graph order, and the formats offered, as a target lists them.

    ``formats`` are those of ``head``, the node that has the weights (else the first). ``needs`` names groups, in
    sets: of each set at least one must compute in integers, too, where this one is to.
    """

    name: str
    head: str
    nodes: tuple[str, ...]
    formats: tuple[NodeFormat, ...]
    needs: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Structure:
    """What a layout says of a graph: the ``kind`` of each integer node's kernel (see ``Capability.kind``), which
    nodes are absorbed into which, and whose scale each tensor shares. ``avoid_floats`` is the target's.
    """

    kinds: Mapping[str, str]
    absorbed: Mapping[str, str]
    owner: Mapping[str, str]
    avoid_floats: bool = False


def find_groups(
    model: ir.Model, structure: Structure, offered: Mapping[str, Sequence[NodeFormat]]
) -> tuple[Group, ...]:
    """Every node of the main graph in exactly one group, in graph order of their first nodes.

    Together are: a kernel and the Relu or Clip that it absorbs; a product and the constant that is added to it;
    nodes that move data and what computed it (they share its scale); layers with weights that read the same
    tensor (Q, K and V). ``offered`` holds the formats of nodes by name; nodes without any stay float.
    """
    return _Search(model, structure, offered).groups()


class _Search:
    def __init__(self, model: ir.Model, structure: Structure, offered: Mapping[str, Sequence[NodeFormat]]) -> None:
        self.nodes = list(model.graph)
        self.structure = structure
        self.offered = offered
        self.parent = {node: node for node in self.nodes}
        self.by_name = {str(node.name): node for node in self.nodes}

    def groups(self) -> tuple[Group, ...]:
        self._fuse()
        self._share_scales()
        self._share_inputs()
        members: dict[ir.Node, list[ir.Node]] = {}
        for node in self.nodes:
            members.setdefault(self._root(node), []).append(node)
        named = {root: self._named(nodes) for root, nodes in members.items()}
        return tuple(self._group(nodes, named) for nodes in members.values())

    def _root(self, node: ir.Node) -> ir.Node:
        while self.parent[node] is not node:
            node = self.parent[node]
        return node

    def _join(self, first: ir.Node | None, second: ir.Node | None) -> None:
        if first in self.parent and second in self.parent:
            self.parent[self._root(second)] = self._root(first)

    def _kind(self, node: ir.Node) -> str:
        return self.structure.kinds.get(str(node.name), "float")

    def _data(self, node: ir.Node) -> list[ir.Value]:
        """What a node reads that is computed."""
        return [value for value in node.inputs if value is not None and constant_array(value) is None]

    def _weighted(self, node: ir.Node) -> bool:
        """Whether the node multiplies by constants."""
        position = roles_of(node.op_type).weight
        weight = node.inputs[position] if position is not None and len(node.inputs) > position else None
        return constant_array(weight) is not None and self._kind(node) not in ("float", "table")

    # -- what belongs together

    def _fuse(self) -> None:
        for name, into in self.structure.absorbed.items():
            self._join(self.by_name.get(into), self.by_name.get(name))
        for node in self.nodes:
            data = self._data(node)
            if self._kind(node) != "elementwise" or node.op_type != "Add" or len(data) != 1:
                continue
            producer = data[0].producer()
            alone = len(data[0].uses()) == 1 and not data[0].is_graph_output()
            if producer is not None and alone and self._kind(producer) == "compute":
                self._join(producer, node)

    def _share_scales(self) -> None:
        for node in self.nodes:
            if self._kind(node) != "moves-data":
                continue
            for value in self._data(node)[:1]:
                producer = value.producer()
                name = "" if producer is None else str(producer.name)
                name = self.structure.absorbed.get(name, name)
                if name in self.structure.kinds and self.structure.kinds[name] != "table":
                    self._join(self.by_name[name], node)
                else:  # several movers of one float tensor share its scale
                    for reader, _ in value.uses():
                        if reader in self.parent and self._kind(reader) == "moves-data":
                            self._join(node, reader)

    def _share_inputs(self) -> None:
        first: dict[ir.Value, ir.Node] = {}
        for node in self.nodes:
            if self._weighted(node) and self._kind(node) == "compute" and node.inputs[0] is not None:
                self._join(first.setdefault(node.inputs[0], node), node)

    # -- what may be chosen

    def _head(self, nodes: Sequence[ir.Node]) -> ir.Node:
        rank = {"compute": 0, "weight-only": 0, "dynamic": 0, "table": 1, "elementwise": 1, "moves-data": 2}
        # min() takes the first of equals: the one that stands first in the graph
        return min(nodes, key=lambda node: (rank.get(self._kind(node), 3), not self._weighted(node)))

    def _named(self, nodes: Sequence[ir.Node]) -> str:
        return str(self._head(nodes).name)

    def _group(self, nodes: Sequence[ir.Node], named: Mapping[ir.Node, str]) -> Group:
        head = self._head(nodes)
        heads = [node for node in nodes if self._weighted(node)] or [head]
        common = [f for f in self.offered.get(str(head.name), ()) if all(f in self._formats(n) for n in heads)]
        names = tuple(str(node.name) for node in nodes)
        formats = tuple(common) or (NodeFormat(None, None),)
        return Group(named[self._root(head)], str(head.name), names, formats, self._needs(nodes, head, named))

    def _formats(self, node: ir.Node) -> Sequence[NodeFormat]:
        return self.offered.get(str(node.name), ())

    def _needs(
        self, nodes: Sequence[ir.Node], head: ir.Node, named: Mapping[ir.Node, str]
    ) -> tuple[tuple[str, ...], ...]:
        """An elementwise kernel, or one that moves data, is integer where all it reads comes from integers, and
        somebody reads it in integers.
        """
        if self.structure.avoid_floats or self._kind(head) not in ("elementwise", "moves-data"):
            return ()
        own = self._root(head)
        producers = [value.producer() for node in nodes for value in self._data(node)]
        before = [self._root(node) for node in producers if node in self.parent]
        readers = [reader for node in nodes for value in node.outputs for reader, _ in value.uses()]
        behind = [self._root(node) for node in readers if node in self.parent]
        all_of = dict.fromkeys(named[root] for root in before if root is not own)
        one_of = tuple(dict.fromkeys(named[root] for root in behind if root is not own))
        return (*((name,) for name in all_of), *((one_of,) if one_of else ()))
