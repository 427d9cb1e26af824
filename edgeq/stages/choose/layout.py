"""Which nodes run in integers, and which tensors are quantized for them: structure only, no numbers.

The layout follows from the graph, the target profile and the scheme. It is found before
calibration, so that only tensors which need statistics are observed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from edgeq.graph import constant_array, outer_nodes
from edgeq.qtypes import NodeFormat, Scheme
from edgeq.roles import is_float, roles_of
from edgeq.stages.choose.kernels import bounds_refusal, find_kernel
from edgeq.target import Capability, TargetProfile

__all__ = ["Layout", "effective_format", "find_layout"]

_QUANTIZING = frozenset({"compute", "elementwise", "moves-data"})
"""The kinds that read and write quantized activations; of the others only a weight is stored in integers."""

_SMALL = 0.1
"""The share of all weights that the smallest layers, which keep 8 bits, hold together at most. Measured on
EfficientNet-Lite0, W4A8 for android-npu, effort 0: 9.8 dB and 3.41 MB with a limit of 0.5 % for each layer alone (3.6 %
of the weights), 10.8 dB and 3.56 MB with a tenth for all, 12.2 dB and 3.77 MB with a fifth."""


@dataclass(frozen=True)
class Layout:
    """The structural half of a plan.

    ``integer`` maps the name of each integer node to its capability; ``reasons`` tells for every
    other node why it stays float. ``activations`` maps each tensor to be quantized to the nodes
    that read its quantized form (all readers if it leaves an integer kernel), ``owner`` to the
    tensor whose statistics and scale it shares. ``absorbed`` maps Relu and Clip nodes to the node
    whose kernel takes them over. ``produced`` holds tensors that leave an integer kernel,
    ``constants`` the owners that are constants: a table, whose scale its looked-up rows share.
    ``node_bits`` and ``tensor_bits`` hold the nodes and tensors whose activations have another width
    than the scheme's: a kernel reads and writes one width, a tensor has that of the kernel it leaves,
    or, computed in float, the largest of its readers'. ``formats`` holds the nodes that were given a
    format of their own, ``ranged`` the tensors whose range is found at run time, with the nodes for which it is.
    ``edges`` are the first and the last node with weights, the ones whose errors nothing averages out: below 8
    bits their weights stay at 8 (the protocol of the literature, e.g. BRECQ, arXiv 2102.05426), unless they were
    given a format of their own. ``small`` are the smallest layers with integer activations, which hold a tenth of the
    weights together: 4 bits save little there, and they stay at 8, too. A part of a model keeps those of the whole.
    """

    scheme: Scheme
    integer: Mapping[str, Capability]
    reasons: Mapping[str, str]
    activations: Mapping[str, tuple[str, ...]]
    owner: Mapping[str, str]
    absorbed: Mapping[str, str]
    produced: frozenset[str] = field(default_factory=frozenset)
    constants: frozenset[str] = field(default_factory=frozenset)
    node_bits: Mapping[str, int] = field(default_factory=dict)
    tensor_bits: Mapping[str, int] = field(default_factory=dict)
    formats: Mapping[str, NodeFormat] = field(default_factory=dict)
    ranged: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    edges: frozenset[str] = frozenset()
    small: frozenset[str] = frozenset()

    def bits_in(self, node: str) -> int | None:
        """The width of the static activations that ``node`` reads and writes; None where it has none."""
        capability = self.integer.get(node)
        if capability is not None and capability.kind in ("weight-only", "dynamic"):
            return None
        return self.node_bits.get(node, self.scheme.static_bits)

    def bits_of(self, tensor: str) -> int | None:
        """The width in which ``tensor`` is quantized; None where only weights are."""
        return self.tensor_bits.get(tensor, self.scheme.static_bits)

    def format_of(self, node: str) -> NodeFormat:
        """The format that was asked for: the node's own, or the scheme's."""
        return effective_format(self.formats.get(node), self.scheme)

    @property
    def dynamic(self) -> frozenset[str]:
        """The nodes that find the range of their activations at run time."""
        return frozenset(name for name, capability in self.integer.items() if capability.kind == "dynamic")

    @property
    def calibrated(self) -> bool:
        """Whether the plan cannot do without statistics: some ranges must be known before."""
        return any(owner not in self.constants for owner in self.owner.values())

    @property
    def observed(self) -> tuple[str, ...]:
        """The tensors whose statistics the plan needs, in graph order, each once (a constant needs none).

        Then come those whose range is found at run time: the plan can do without, smoothing cannot.
        """
        owners = dict.fromkeys(self.owner[name] for name in self.activations)
        return (
            *(owner for owner in owners if owner not in self.constants),
            *(tensor for tensor in self.ranged if tensor not in owners),
        )

    def channel_axes(self, model: ir.Model) -> dict[str, int]:
        """The channel axis of each observed tensor that a Conv or Gemm (axis 1) or a MatMul (the last) reads."""
        axes: dict[str, int] = {}
        for node in model.graph:
            value = node.inputs[0] if node.inputs else None
            if value is None or value.shape is None or str(node.name) not in self.integer:
                continue
            axis = {"Conv": 1, "Gemm": 1, "MatMul": len(value.shape) - 1}.get(node.op_type)
            # A shared scale belongs to a tensor of another shape: its channels are not these.
            owned = self.owner.get(str(value.name), value.name) == value.name
            if axis is not None and owned and isinstance(value.shape[axis], int):
                axes[str(value.name)] = axis
        return axes


def effective_format(own: NodeFormat | None, scheme: Scheme) -> NodeFormat:
    """``own``, with the scheme's weights where it names none; the scheme's format where there is none."""
    if own is None:
        return scheme.format
    if own.weight_bits is None and own.activation_bits is not None and not scheme.floating:
        block = None if scheme.weight_only else scheme.block
        return NodeFormat(scheme.weight_bits, own.activation_bits, own.dynamic, block)
    return own


def find_layout(
    model: ir.Model, target: TargetProfile, scheme: Scheme, *, formats: Mapping[str, NodeFormat] | None = None
) -> Layout:
    """Decide for every node of the main graph whether it runs in integers on ``target``.

    ``formats`` gives some nodes, by name, another format than the scheme's: float, 16-bit islands for what
    8 bits break, other weights, weights alone, ranges found at run time. ``formats_of`` tells what a target
    offers; a node that cannot have its format stays float, and ``reasons`` says why. A node without a format
    of its own that has kernels of another width only becomes an island by itself. Kernels that only move
    data take the width of what they move.
    """
    search = _Search(model, target, scheme, formats or {})
    search.nominate()
    search.absorb()
    search.move_widths()
    if not target.floats.avoid:
        search.prune()
    return search.layout()


class _Search:
    """One search; the methods run once, in the order of ``find_layout``."""

    def __init__(
        self, model: ir.Model, target: TargetProfile, scheme: Scheme, formats: Mapping[str, NodeFormat]
    ) -> None:
        self.nodes = list(model.graph)
        self.outer = outer_nodes(model)
        self.target = target
        self.scheme = scheme
        names = {str(node.name) for node in self.nodes}
        self.formats = {name: own for name, own in formats.items() if name in names}
        self.integer: dict[str, Capability] = {}
        self.reasons: dict[str, str] = {}
        self.absorbed: dict[str, str] = {}
        self.absorbing: dict[str, ir.Node] = {}
        self.constants: set[str] = set()
        widths = {name: own.static_bits for name, own in self.formats.items()}
        self.widths: dict[str, int] = {name: bits for name, bits in widths.items() if bits is not None}

    # -- step 1: what could run in integers, judged node by node

    def nominate(self) -> None:
        for node in self.nodes:
            name = str(node.name)
            wanted = effective_format(self.formats.get(name), self.scheme)
            choice = find_kernel(node, self.target, self.scheme, wanted, wanted.static_bits)
            width = self._other_width()
            if isinstance(choice, str) and name not in self.formats and width is not None:
                other = find_kernel(node, self.target, self.scheme, wanted, width)
                if not isinstance(other, str) and other.kind in ("compute", "elementwise"):
                    choice, self.widths[name] = other, width
            if isinstance(choice, str):
                self.reasons[name] = choice
            else:
                self.integer[name] = choice

    def _bits(self, name: str) -> int | None:
        return self.widths.get(name, self.scheme.static_bits)

    def _other_width(self) -> int | None:
        """What a kernel may have that has none of the scheme's width.

        Fewer bits only where floats are to be avoided: there a provider takes an operator between Q and DQ
        for an integer one, whether its kernel of that width is right or not (the HTP's Log of 16 bits: -7 dB).
        """
        other = {4: 8, 8: 16, 16: 8}.get(self.scheme.static_bits or 0)
        if str(other) not in self.target.activations.types or (other == 8 and not self.target.floats.avoid):
            return None
        return other

    # -- step 2: Relu and Clip that the producer's kernel takes over

    def absorb(self) -> None:
        for node in self.nodes:
            value = node.inputs[0] if node.inputs else None
            if node.op_type not in self.target.absorbs or value is None or not self._absorbable(node):
                continue
            producer = value.producer()
            if producer is None or value.is_graph_output() or len(value.uses()) != 1:
                continue
            capability = self.integer.get(str(producer.name))
            if capability is None or capability.kind not in ("compute", "elementwise") or not capability.absorbs:
                continue
            self.absorbed[str(node.name)] = str(producer.name)
            self.absorbing[str(producer.name)] = node
            self.integer.pop(str(node.name), None)
            self.reasons[str(node.name)] = f"absorbed by {producer.name}"

    def _absorbable(self, node: ir.Node) -> bool:
        """Whether the kernel before ``node`` can do its work.

        A kernel that computes it before rounding takes any constant bounds. Where the integers' ends
        are to cut, their range must lie within the bounds; zero is always in it, so it must be within,
        too. Symmetric types reach as far below zero as above, beyond any Relu.
        """
        if bounds_refusal(node):
            return False
        if self.target.activations.absorption == "kernel":
            return True
        if self.target.activations.symmetric:
            return False
        if node.op_type != "Clip":
            return True
        low, high = (constant_array(v) for v in (*node.inputs[1:], None, None)[:2])
        return (low is None or float(low) <= 0) and (high is None or float(high) >= 0)

    def outputs_of(self, node: ir.Node) -> list[ir.Value]:
        """The float tensors that leave the kernel: those of the absorbed Relu or Clip, if there is one."""
        return [value for value in self.absorbing.get(str(node.name), node).outputs if is_float(value)]

    def move_widths(self) -> None:
        """Kernels that only move data take the width of what they move; one that cannot falls to floats."""
        if not self.widths:
            return
        for node in self.nodes:
            name = str(node.name)
            capability, data = self.integer.get(name), self.data_inputs(node)
            if capability is None or capability.kind != "moves-data" or not data:
                continue
            width = self._tensor_width(data[0], {str(n.name) for n in self.nodes if str(n.name) in self.integer})
            if width is None or width == self._bits(name):
                continue
            if width in capability.activation_bits:
                self.widths[name] = width
            else:
                del self.integer[name]
                self.reasons[name] = f"{self.target.name} has no {width}-bit integer kernel for {node.op_type}"

    def _tensor_width(self, value: ir.Value, quantizes: Container[str]) -> int | None:
        """The width of a tensor: that of the kernel that it leaves, or the largest of its integer readers'."""
        producer = value.producer()
        if producer is not None and self._leaves_integer(value):
            return self._bits(self.absorbed.get(str(producer.name), str(producer.name)))
        widths = [self._bits(reader) for reader in self.readers(value) if reader in quantizes]
        return max((width for width in widths if width is not None), default=None)

    # -- step 3: elementwise kernels and data movement only between integer neighbours

    def prune(self) -> None:
        changed = True
        while changed:
            changed = False
            for node in self.nodes:
                capability = self.integer.get(str(node.name))
                if capability is None or capability.kind not in ("elementwise", "moves-data"):
                    continue
                reason = self._not_worth(node)
                if reason:
                    del self.integer[str(node.name)]
                    self.reasons[str(node.name)] = reason
                    follower = self.absorbing.pop(str(node.name), None)
                    if follower is not None:
                        del self.absorbed[str(follower.name)]
                        self.reasons[str(follower.name)] = reason
                    changed = True

    def _not_worth(self, node: ir.Node) -> str | None:
        for value in self.data_inputs(node):
            if not self._leaves_integer(value):
                return "an input is computed in float, so integers would only add conversions"
        if not any(reader in self.integer for value in self.outputs_of(node) for reader in self.readers(value)):
            return "no integer kernel reads its output"
        return None

    def readers(self, value: ir.Value) -> list[str]:
        """The nodes of the main graph that read ``value``, if only from inside one of their subgraphs."""
        return [str(self.outer.get(reader, reader).name) for reader, _ in value.uses()]

    def _leaves_integer(self, value: ir.Value) -> bool:
        producer = value.producer()
        if producer is None:
            return False
        name = self.absorbed.get(str(producer.name), str(producer.name))
        capability = self.integer.get(name)
        return capability is not None and capability.kind in _QUANTIZING

    def data_inputs(self, node: ir.Node) -> list[ir.Value]:
        """The float activations that ``node`` reads (constants left out)."""
        roles = roles_of(node.op_type)
        positions = roles.data if roles.data is not None else tuple(range(len(node.inputs)))
        if roles.weight is not None and len(node.inputs) > roles.weight:
            positions = (*positions, roles.weight)
        values = [node.inputs[i] for i in positions if i < len(node.inputs)]
        return [v for v in values if v is not None and is_float(v) and constant_array(v) is None]

    # -- step 4: the tensors that follow from it

    def layout(self) -> Layout:
        activations: dict[str, dict[str, None]] = {}
        owner: dict[str, str] = {}
        produced: set[str] = set()
        quantizes = {name for name, c in self.integer.items() if c.kind in _QUANTIZING}
        for node in self.nodes:
            name = str(node.name)
            if name not in quantizes:
                continue
            for value in self.data_inputs(node):
                activations.setdefault(str(value.name), {})[name] = None
                owner.setdefault(str(value.name), str(value.name))
            # A Relu that the Q behind it cuts off needs that Q (and without it, ONNX Runtime's CPU kernels
            # fuse nothing at all, see docs/targets.md, traps); one that the kernel computes needs none.
            cut = name in self.absorbing and self.target.activations.absorption != "kernel"
            required = self.integer[name].output == "required" or cut or self._would_merge(node)
            for output in self.outputs_of(node):
                wanted = [reader for reader in self.readers(output) if required or reader in quantizes]
                if required or wanted:
                    produced.add(str(output.name))
                    activations.setdefault(str(output.name), {}).update(dict.fromkeys(wanted))
                    owner[str(output.name)] = self._owner(node, output, owner)
        return Layout(
            self.scheme,
            self.integer,
            self.reasons,
            {tensor: tuple(readers) for tensor, readers in activations.items()},
            owner,
            self.absorbed,
            frozenset(produced),
            frozenset(owner.values()) & self.constants,
            *self._widths(activations, quantizes),
            self.formats,
            self._ranged(),
            edges=self._edges(),
            small=self._small(),
        )

    def _edges(self) -> frozenset[str]:
        if self.scheme.weight_bits >= 8:
            return frozenset()
        heavy = [
            str(node.name)
            for node in self.nodes
            if str(node.name) in self.integer
            and self.integer[str(node.name)].kind in ("compute", "weight-only", "dynamic")
            and roles_of(node.op_type).weight is not None
        ]
        return frozenset((heavy[0], heavy[-1])) - frozenset(self.formats) if len(heavy) > 2 else frozenset()

    def _small(self) -> frozenset[str]:
        """See ``Layout.small`` and ``_SMALL``; depthwise layers, above all."""
        if self.scheme.weight_bits >= 8:
            return frozenset()
        sizes: dict[str, int] = {}
        for node in self.nodes:
            capability, position = self.integer.get(str(node.name)), roles_of(node.op_type).weight
            if capability is None or capability.kind != "compute" or position is None or len(node.inputs) <= position:
                continue
            array = constant_array(node.inputs[position])
            if array is not None and capability.weight_bits and 8 in capability.weight_bits:
                sizes[str(node.name)] = array.size
        held, most = 0, sum(sizes.values()) * _SMALL
        limit = 0
        for size, count in sorted(Counter(sizes.values()).items()):  # layers of one size: all or none
            held += size * count
            if held > most:
                break
            limit = size
        return frozenset(name for name, size in sizes.items() if size <= limit) - frozenset(self.formats)

    def _ranged(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for node in self.nodes:
            capability = self.integer.get(str(node.name))
            if capability is not None and capability.kind == "dynamic":
                tensor = str(node.inputs[0].name)  # type: ignore[union-attr]
                found[tensor] = (*found.get(tensor, ()), str(node.name))
        return found

    def _widths(self, tensors: Iterable[str], quantizes: Container[str]) -> tuple[dict[str, int], dict[str, int]]:
        """The nodes and the tensors whose width is not the scheme's."""
        values = {str(v.name): v for node in self.nodes for v in (*node.inputs, *node.outputs) if v is not None}
        usual = self.scheme.static_bits
        nodes = {name: bits for name, bits in self.widths.items() if name in quantizes and bits != usual}
        held = {name: self._tensor_width(values[name], quantizes) for name in tensors} if nodes else {}
        return nodes, {name: bits for name, bits in held.items() if bits is not None and bits != usual}

    def _would_merge(self, node: ir.Node) -> bool:
        """A matrix product and the Add behind it, which ONNX Runtime makes a float Gemm of unless a Q parts them.

        Where the Add is of a constant, ``shape_float`` has parted them already.
        """
        if self.target.graph.linear != "guarded-add" or node.op_type != "MatMul":
            return False
        output = node.outputs[0]
        readers = [reader.op_type for reader, _ in output.uses()]
        return readers == ["Add"] and output.shape is not None and len(output.shape) == 2

    def _owner(self, node: ir.Node, output: ir.Value, owner: Mapping[str, str]) -> str:
        if self.integer[str(node.name)].kind != "moves-data":
            return str(output.name)
        data = self.data_inputs(node)
        return owner[str(data[0].name)] if data else self._table_of(node)

    def _table_of(self, node: ir.Node) -> str:
        """The constant that ``node`` moves: its own range is known, and rows that calibration never saw fit, too."""
        position = (roles_of(node.op_type).data or (0,))[0]
        name = str(node.inputs[position].name)  # type: ignore[union-attr]
        self.constants.add(name)
        return name
