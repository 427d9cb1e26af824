"""What a format costs a group in time and bytes: measured where this machine tells of the target, else estimated.

Measured: ONNX Runtime's profile of the float model and of quantized ones gives the time of each kernel; the
conversions between floats and integers are timed by themselves, per element. Estimated: products and bytes
moved, at fixed rates (the roofline model, Williams et al. 2009); only ratios mean anything there.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeq.formats import NodeFormat
from edgeq.graph import constant_array
from edgeq.roles import roles_of
from edgeq.runtime import open_session, session_options
from edgeq.stages.mix.groups import Group
from edgeq.stages.mix.problem import FLOAT
from edgeq.target import Provider

__all__ = [
    "Profile",
    "Rates",
    "estimate_conversion",
    "estimate_group",
    "group_bytes",
    "measure_rates",
    "profile",
    "tensor_shapes",
]

_PLUMBING = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_PRODUCTS_PER_MS = 1e9
"""Products of 8-bit integers, nominal; wider types take as many times longer as they have more bits."""

_BYTES_PER_MS = 1e7
"""Nominal bandwidth of memory: 10 GB/s."""

_KERNEL_MS = 2e-3
"""Nominal overhead of one kernel."""


@dataclass(frozen=True)
class Profile:
    """Median time in ms of each kernel, under the name of the node of the model that it belongs to; ``rest`` is
    that of kernels which the runtime put in between (layout changes), or named after nothing.
    """

    nodes: Mapping[str, float]
    rest: float

    def group(self, group: Group) -> float:
        """The ms of a group's kernels."""
        return sum(self.nodes.get(name, 0.0) for name in group.nodes)


@dataclass(frozen=True)
class Rates:
    """Time of conversions: ns per element from float to integers and back, and ms for each kernel more.

    ``to_integer`` and ``to_float`` hold what is true of images (rank 4), too: there the layout changes with the
    type, as integer kernels compute channels last and float ones in blocks of channels.
    """

    quantize_ns: float
    dequantize_ns: float
    layout_ns: float
    kernel_ms: float

    def to_integer(self, elements: int, rank: int) -> float:
        """The ms of quantizing a tensor that a float kernel computes."""
        return self._ms(self.quantize_ns, elements, rank)

    def to_float(self, elements: int, rank: int) -> float:
        """The ms of dequantizing a tensor that an integer kernel computes."""
        return self._ms(self.dequantize_ns, elements, rank)

    def _ms(self, nanoseconds: float, elements: int, rank: int) -> float:
        layout = rank == 4
        return (nanoseconds + layout * self.layout_ns) * elements * 1e-6 + self.kernel_ms * (1 + layout)


def profile(
    model: ir.Model, inputs: Mapping[str, np.ndarray], *, provider: Provider | None = None, seconds: float = 1.0
) -> Profile:
    """Time every kernel of ``model`` on one thread of this machine, on ``provider`` (default: the CPU).

    Q/DQ count as ``rest``, as do kernels of several nodes that the runtime does not name after one.
    """
    labelled = model.clone()
    for index, node in enumerate(labelled.graph):
        node.name = f"edgeq_{index}_"
    with tempfile.TemporaryDirectory(prefix="edgeq-mix-") as folder:
        options = session_options(threads=1, config=provider.session if provider else None)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        with open_session(labelled, options, provider) as session:
            start, runs = time.perf_counter(), 0
            while runs < 8 or (time.perf_counter() - start < seconds and runs < 500):
                session.run(None, dict(inputs))
                runs += 1
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    times: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time"):
            times.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event["dur"] * 1e-3)
    found: dict[str, float] = {}
    rest, owner = 0.0, _Owners(model)
    for name, seen in times.items():
        found_node = owner.of(name)
        # The first runs allocate memory and pages.
        spent = float(np.median(seen[len(seen) // 4 :]))
        if found_node is None or found_node.op_type in _PLUMBING:
            rest += spent
        else:
            found[str(found_node.name)] = found.get(str(found_node.name), 0.0) + spent
    return Profile(found, rest)


class _Owners:
    """Which node a kernel's name tells of: by the label in it, or by the tensor that it is called after."""

    def __init__(self, model: ir.Model) -> None:
        self.nodes = list(model.graph)
        self.tensors = {str(value.name): node for node in self.nodes for value in node.outputs if value.name}

    def of(self, kernel: str) -> ir.Node | None:
        label = re.search(r"edgeq_(\d+)_", kernel)
        if label is not None and int(label[1]) < len(self.nodes):
            return self.nodes[int(label[1])]
        while kernel:
            if kernel in self.tensors:
                return self.tensors[kernel]
            kernel = kernel.rpartition("_")[0]
        return None


def measure_rates(elements: int = 1 << 18) -> Rates:
    """Time the conversions between float32 and uint8 on one thread of this machine."""
    x = ir.Value(name="x", shape=ir.Shape([1, 64, elements // 4096, 64]), type=ir.TensorType(ir.DataType.FLOAT))
    scale = ir.Value(name="s", const_value=ir.tensor(np.float32(0.02), name="s"))
    zero = ir.Value(name="z", const_value=ir.tensor(np.uint8(128), name="z"))
    quantize = ir.node("QuantizeLinear", [x, scale, zero], name="edgeq_0_")
    move = ir.node("Transpose", [quantize.outputs[0]], {"perm": [0, 2, 3, 1]}, name="edgeq_1_")
    restore = ir.node("DequantizeLinear", [move.outputs[0], scale, zero], name="edgeq_2_")
    small = ir.node("Relu", [ir.Value(name="y", shape=ir.Shape([1]), type=x.type)], name="edgeq_3_")
    for name, node, kind in (
        ("q", quantize, ir.DataType.UINT8),
        ("t", move, ir.DataType.UINT8),
        ("d", restore, ir.DataType.FLOAT),
        ("r", small, ir.DataType.FLOAT),
    ):
        node.outputs[0].name, node.outputs[0].type = name, ir.TensorType(kind)
    graph = ir.Graph(
        [x, small.inputs[0]],  # type: ignore[list-item]
        [restore.outputs[0], small.outputs[0]],
        nodes=[quantize, move, restore, small],
        initializers=[scale, zero],
        opset_imports={"": 21},
        name="conversions",
    )
    model = ir.Model(graph, ir_version=10)
    feed = np.random.default_rng(0).standard_normal(tuple(int(d) for d in x.shape)).astype(np.float32)  # type: ignore[union-attr, arg-type]
    with tempfile.TemporaryDirectory(prefix="edgeq-mix-") as folder:
        options = session_options(threads=1, optimization="none")
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        with open_session(model, options) as session:
            for _ in range(40):
                session.run(None, {"x": feed, "y": np.ones(1, np.float32)})
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    spent: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time"):
            spent.setdefault(str(event["args"]["op_name"]), []).append(event["dur"] * 1e3)
    middle = {op: float(np.median(times)) / feed.size for op, times in spent.items()}
    overhead = middle["Relu"] * feed.size * 1e-6
    return Rates(middle["QuantizeLinear"], middle["DequantizeLinear"], middle["Transpose"], max(overhead, 1e-3))


def tensor_shapes(
    model: ir.Model, names: Iterable[str], sample: Mapping[str, np.ndarray]
) -> dict[str, tuple[int, ...]]:
    """The shapes that tensors have for one batch: of its own, of the inputs, else found by running the model."""
    values = {str(v.name): v for node in model.graph for v in node.outputs}
    shapes = {name: tuple(array.shape) for name, array in sample.items()}
    open_ones = []
    for name in names:
        shape = values[name].shape if name in values else None
        if shape is not None and all(isinstance(d, int) for d in shape):
            shapes[name] = tuple(int(d) for d in shape)  # type: ignore[arg-type]
        elif name in values:
            open_ones.append(name)
    if open_ones:
        copy = model.clone()
        held = {str(v.name): v for node in copy.graph for v in node.outputs}
        copy.graph.outputs[:] = [held[name] for name in open_ones]
        with open_session(copy, session_options(threads=1)) as session:
            found = session.run(open_ones, dict(sample))
        shapes.update({name: array.shape for name, array in zip(open_ones, found, strict=True)})
    return shapes


# -- without measuring


def _weight(node: ir.Node) -> np.ndarray | None:
    """The constant that a node multiplies by, or looks rows up in."""
    position = 0 if node.op_type == "Gather" else roles_of(node.op_type).weight
    return constant_array(node.inputs[position] if position is not None and len(node.inputs) > position else None)


def group_bytes(nodes: Sequence[ir.Node], wanted: NodeFormat, *, float_bytes: int = 4) -> float:
    """What the weights of some nodes take in a file, in bytes: integers with their scales, or floats."""
    seen: set[int] = set()
    size = 0.0
    for node in nodes:
        weight = _weight(node)
        if weight is None or id(weight) in seen:
            continue
        seen.add(id(weight))
        if wanted.weight_bits is None:
            size += weight.size * float_bytes
        else:
            scales = weight.size / wanted.block if wanted.block else max(weight.shape, default=1)
            size += weight.size * wanted.weight_bits / 8 + 4 * scales
    return size


def estimate_group(
    nodes: Sequence[ir.Node], wanted: NodeFormat, shapes: Mapping[str, Sequence[int]], *, float_bytes: int = 4
) -> float:
    """The ms that some nodes would take on nominal hardware: the larger of computing and moving bytes.

    ``shapes`` holds those of computed tensors; a node of which nothing is known counts as one kernel.
    """
    bits = (wanted.activation_bits if wanted.static_bits or wanted.dynamic else None) or 8 * float_bytes
    weight_bits = wanted.weight_bits or 8 * float_bytes
    spent = 0.0
    for node in nodes:
        moved = [math.prod(shapes.get(str(v.name), ())) for v in (*node.inputs, *node.outputs) if v is not None]
        weight = _weight(node)
        loaded = sum(moved) * bits / 8 + (0 if weight is None else weight.size * weight_bits / 8)
        products = _products(node, weight, shapes) * bits / 8
        spent += max(products / _PRODUCTS_PER_MS, loaded / _BYTES_PER_MS) + _KERNEL_MS
    return spent


def estimate_conversion(elements: int, before: int, after: int, *, float_bytes: int = 4) -> float:
    """The ms of turning a tensor from one domain into another on nominal hardware: what it reads and writes."""
    moved = sum(elements * (domain / 8 if domain != FLOAT else float_bytes) for domain in (before, after))
    return moved / _BYTES_PER_MS + _KERNEL_MS


def _products(node: ir.Node, weight: np.ndarray | None, shapes: Mapping[str, Sequence[int]]) -> float:
    """How many products a node computes."""
    out = math.prod(shapes.get(str(node.outputs[0].name), (0,)))
    if node.op_type in ("Conv", "ConvTranspose") and weight is not None:
        return float(out * math.prod(weight.shape[1:]))
    if node.op_type in ("MatMul", "Gemm") and node.inputs[0] is not None:
        first = shapes.get(str(node.inputs[0].name), (1,))
        return float(out * (first[0] if node.attributes.get_int("transA", 0) else first[-1]))
    return 0.0
