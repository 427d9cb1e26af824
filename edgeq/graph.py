"""Small helpers around ``onnx_ir.Model``, the one graph type between stages."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeq.errors import ConfigError, ModelError, OutputError

__all__ = [
    "EXTERNAL_DATA_THRESHOLD",
    "Names",
    "TensorInfo",
    "check_float",
    "constant_array",
    "feeds_relu",
    "fingerprint",
    "input_infos",
    "load_model",
    "model_size",
    "name_nodes",
    "named_sizes",
    "open_dims",
    "outer_nodes",
    "output_infos",
    "real_inputs",
    "save_model",
    "saved_bytes",
    "set_initializer",
    "unique_name",
]

EXTERNAL_DATA_THRESHOLD = 1_500_000_000
"""Models with more bytes of weights are written with external data (protobuf ends at 2 GiB)."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Name, numpy dtype and shape of a model input or output; a dynamic dimension is its name or None."""

    name: str
    dtype: np.dtype
    shape: tuple[int | str | None, ...]

    def describe(self) -> str:
        dims = ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.name}: {self.dtype}[{dims}]"


def load_model(path: str | os.PathLike[str]) -> ir.Model:
    """Read an ONNX file; weights in external data stay on disk until they are needed.

    Model files are data from strangers: external data must lie beside the model, reached by a
    relative path without symbolic links out of its folder.

    Raises:
        ModelError: not a file, does not parse, holds no graph, or its external data is missing,
            truncated or outside the model's folder.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError("the model file does not exist", where=str(path), remedy="check the path")
    try:
        model = ir.load(path)
    except Exception as error:  # protobuf, onnx_ir and numpy each raise their own types here
        raise ModelError(
            f"the file is not a readable ONNX model: {_first_line(error)}",
            where=str(path),
            remedy="check that the download is complete and that the file is ONNX, not another format",
        ) from None
    if not len(model.graph) and not model.graph.outputs:
        raise ModelError("the file holds no graph: it is empty or not an ONNX model", where=str(path))
    _check_external_data(model, path)
    open_dims(model)
    name_nodes(model)
    return model


def _check_external_data(model: ir.Model, path: Path) -> None:
    folder = path.parent.resolve()
    for name, tensor in _tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            location = str(tensor.location)
            data = folder / location
            if Path(location).is_absolute() or not data.resolve().is_relative_to(folder):
                raise ModelError(
                    f"external data {location!r} of tensor {name!r} lies outside the model's folder",
                    where=str(path),
                    remedy="do not trust this file; external data must be beside the model",
                )
            if not data.is_file():
                raise ModelError(
                    f"external data {location!r} of tensor {name!r} is missing",
                    where=str(path),
                    remedy="put the data file beside the model",
                )
            end = (tensor.offset or 0) + (tensor.length or tensor.nbytes)
            if end > data.stat().st_size:
                raise ModelError(
                    f"external data {location!r} of tensor {name!r} is truncated: "
                    f"needs {end} bytes, has {data.stat().st_size}",
                    where=str(path),
                    remedy="fetch the data file again",
                )


def save_model(model: ir.Model, path: str | os.PathLike[str]) -> None:
    """Write an ONNX file, with external data ``<name>.data`` beside it if the weights are too large.

    Raises:
        OutputError: the disk is full or the folder is not writable.
    """
    path = Path(path)
    try:
        if model_size(model) > EXTERNAL_DATA_THRESHOLD:
            ir.save(model, path, external_data=f"{path.name}.data")
        else:
            path.write_bytes(to_bytes(model))
    except OSError as error:
        raise OutputError(f"cannot write the model: {error.strerror or error}", where=str(path)) from None


def to_bytes(model: ir.Model) -> bytes:
    """Serialize with all weights inside, the same bytes for the same model; external data is read, not referred to."""
    if any(isinstance(tensor, ir.ExternalTensor) for _, tensor in _tensors(model)):
        model = model.clone()
        for graph in model.graphs():
            for value in graph.initializers.values():
                if isinstance(value.const_value, ir.ExternalTensor):
                    value.const_value = _inside(value.const_value)
        for node in _all_nodes(model):
            for name, attribute in list(node.attributes.items()):
                if isinstance(attribute.value, ir.ExternalTensor):
                    node.attributes[name] = ir.AttrTensor(name, _inside(attribute.value))
    return ir.to_proto(model).SerializeToString(deterministic=True)


def _inside(tensor: ir.ExternalTensor) -> ir.Tensor:
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)


def _tensors(model: ir.Model) -> Iterator[tuple[str | None, ir.TensorProtocol]]:
    """Every initializer and every tensor in a node's attributes, with the name of its value."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.name, value.const_value
    for node in _all_nodes(model):
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                yield node.outputs[0].name, attribute.as_tensor()


def _all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """The nodes of the main graph, of model-local functions, and of their subgraphs."""
    parts: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for part in parts:
        yield from ir.traversal.RecursiveGraphIterator(part)


def check_float(model: ir.Model) -> None:
    """Raise ModelError for a model that holds nothing to quantize, or that was quantized before.

    Refused are ``QuantizeLinear``, ``DequantizeLinear``, ``QLinear*``, ``*Integer``,
    ``DynamicQuantize*``, ONNX Runtime's ``MatMulNBits`` and its like, anywhere in the model; and
    models with most of their weights in float16, bfloat16 or float64: only float32 is quantized.
    """
    found = Counter(node.op_type for node in _all_nodes(model) if _QUANTIZED.fullmatch(node.op_type))
    if found:
        raise ModelError(
            f"the model is already quantized: it holds {', '.join(f'{n} {op}' for op, n in found.most_common())}",
            remedy="give the float model that it was made from; `edgeq inspect` describes this one",
        )
    sizes: Counter[ir.DataType] = Counter()
    for _, tensor in _tensors(model):
        sizes[tensor.dtype] += tensor.nbytes
    for dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE):
        if sizes[dtype] > sizes[ir.DataType.FLOAT]:
            raise ModelError(
                f"the weights are {_NAMES[dtype]}, and edgeq quantizes float32 only",
                remedy="export the model again in float32, before any conversion to another type",
            )


_NAMES = {ir.DataType.FLOAT16: "float16", ir.DataType.BFLOAT16: "bfloat16", ir.DataType.DOUBLE: "float64"}

_QUANTIZED = re.compile(
    "QuantizeLinear|DequantizeLinear|DynamicQuantize.*|QLinear.*|.*Integer|MatMulIntegerToFloat"
    "|.*(NBits|Bnb4|BlockQuantized|QuantizeBFP)|Q(Gemm|Attention|MoE|Ordered.*|EmbedLayerNormalization)"
)


def outer_nodes(model: ir.Model) -> dict[ir.Node, ir.Node]:
    """For every node inside a subgraph, the If, Loop or Scan of the main graph that it belongs to."""
    outer = {}
    for node in model.graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                outer.update(dict.fromkeys(ir.traversal.RecursiveGraphIterator(attribute.as_graph()), node))
            elif attribute.type == ir.AttributeType.GRAPHS:
                for part in attribute.as_graphs():
                    outer.update(dict.fromkeys(ir.traversal.RecursiveGraphIterator(part), node))
    return outer


def saved_bytes(model: ir.Model) -> int:
    """The size of the files that ``save_model`` writes, external data included."""
    if model_size(model) <= EXTERNAL_DATA_THRESHOLD:
        return len(to_bytes(model))
    with tempfile.TemporaryDirectory(prefix="edgeq-") as folder:
        save_model(model, Path(folder) / "model.onnx")
        return sum(file.stat().st_size for file in Path(folder).iterdir())


def model_size(model: ir.Model) -> int:
    """Bytes of all initializers."""
    return sum(
        value.const_value.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )


def fingerprint(model: ir.Model) -> str:
    """sha256 of the graph and its weights, subgraphs too: equal for equal models, whatever file they came from."""
    digest = hashlib.sha256()
    parts: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for part in parts:
        _digest(digest, part)
    return digest.hexdigest()


def _digest(digest: hashlib._Hash, part: ir.Graph | ir.Function) -> None:
    digest.update(f"{[v.name for v in part.inputs]} -> {[v.name for v in part.outputs]}".encode())
    if isinstance(part, ir.Graph):
        for value in part.initializers.values():
            digest.update(f"{value.name}:{value.dtype}:{value.shape}".encode())
            if value.const_value is not None:
                digest.update(value.const_value.tobytes())
    for node in part:
        names = [v.name if v is not None else "" for v in (*node.inputs, *node.outputs)]
        digest.update(f"{node.domain}:{node.op_type}:{names}".encode())
        for key, attribute in sorted(node.attributes.items()):
            digest.update(f"{key}={attribute.type}".encode())
            # The text of a tensor or graph leaves out its numbers, and tells where it lies in memory.
            if attribute.is_ref():
                digest.update(f"{attribute.ref_attr_name}".encode())
            elif attribute.type == ir.AttributeType.TENSOR:
                tensor = attribute.as_tensor()
                digest.update(f"{tensor.dtype}:{tensor.shape}".encode() + tensor.tobytes())
            elif attribute.type == ir.AttributeType.GRAPH:
                _digest(digest, attribute.as_graph())
            elif attribute.type == ir.AttributeType.GRAPHS:
                for graph in attribute.as_graphs():
                    _digest(digest, graph)
            else:
                digest.update(f"{attribute.value}".encode())


def open_dims(model: ir.Model) -> None:
    """Make dimensions that exporters write as ``-1``, ``""`` or ``?`` what they mean: dynamic, without a name.

    A name means one size wherever it stands; two axes called ``?`` need not be of one size.
    """
    for node in _all_nodes(model):
        for output in node.outputs:
            _open_dims(output)
    for part in model.graphs():
        for value in (*part.inputs, *part.outputs):
            _open_dims(value)


def _open_dims(value: ir.Value) -> None:
    if value.shape is None:
        return
    dims = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
    opened = [None if _has_no_size(dim) else dim for dim in dims]
    if opened != dims:
        value.shape = ir.Shape(opened)


def _has_no_size(dim: int | str | None) -> bool:
    if isinstance(dim, int):
        return dim < 0
    return dim is not None and (not any(c.isalnum() for c in dim) or dim.lstrip("-").isdigit() or dim == "None")


def name_nodes(model: ir.Model) -> None:
    """Give every node and value of the main graph a unique name: plans, reports and profiles refer to it."""
    taken: set[str] = set()
    for index, node in enumerate(model.graph):
        if not node.name or node.name in taken:
            node.name = unique_name(node.name or f"{node.op_type}_{index}", taken)
        taken.add(node.name)
        for number, output in enumerate(node.outputs):
            if output.name is None:
                output.name = f"{node.name}_output_{number}"


class Names:
    """The names of all values of the main graph; ``fresh`` gives one that is not taken, and takes it."""

    def __init__(self, model: ir.Model) -> None:
        self._taken = set(model.graph.initializers) | {str(value.name) for value in model.graph.inputs}
        self._taken.update(str(output.name) for node in model.graph for output in node.outputs)

    @property
    def taken(self) -> frozenset[str]:
        """All of them."""
        return frozenset(self._taken)

    def fresh(self, stem: str) -> str:
        """``stem``, or ``stem_1``, ... if that is taken; from now on it is."""
        name = unique_name(stem, self._taken)
        self._taken.add(name)
        return name


def feeds_relu(node: ir.Node) -> bool:
    """Whether a Relu reads the product: in front of another product that keeps ONNX Runtime from fusing this one.

    As in T5's feed-forward layers (measured, ONNX Runtime 1.32): with weights of 4 bits, 512x2048, such a pair takes 18
    times the CPU time of MatMulNBits for one token, as the weights are restored in every run.
    """
    return any(use.node.op_type == "Relu" for use in node.outputs[0].uses())


def unique_name(stem: str, taken: Collection[str]) -> str:
    """``stem``, or ``stem_1``, ``stem_2``, ... if that is among ``taken``."""
    name, number = stem, 0
    while name in taken:
        number += 1
        name = f"{stem}_{number}"
    return name


def constant_array(value: ir.Value | None) -> np.ndarray | None:
    """The array behind an initializer or the output of a Constant node; None for anything computed."""
    if value is None:
        return None
    if value.const_value is not None and not value.is_graph_input():
        return value.const_value.numpy()
    producer = value.producer()
    if producer is not None and producer.op_type == "Constant" and producer.domain == "":
        tensor = ir.convenience.get_const_tensor(value)
        return None if tensor is None else tensor.numpy()
    return None


def set_initializer(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    """Add (or replace) an initializer of the main graph and return its value."""
    tensor = ir.tensor(array, name=name)
    existing = model.graph.initializers.get(name)
    if existing is not None:
        existing.const_value = tensor
        existing.dtype = tensor.dtype
        existing.shape = ir.Shape(array.shape)
        return existing
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.initializers[name] = value
    return value


def real_inputs(model: ir.Model) -> list[ir.Value]:
    """Graph inputs that a caller must feed (old models list their initializers as inputs too)."""
    return [value for value in model.graph.inputs if value.name not in model.graph.initializers]


def input_infos(model: ir.Model, fixed_dims: Mapping[str, int] | None = None) -> tuple[TensorInfo, ...]:
    """The inputs a caller must feed, as they are once ``fixed_dims`` are fixed (see `named_sizes`)."""
    infos = tuple(_info(value) for value in real_inputs(model))
    sizes = named_sizes(model, fixed_dims or {})
    return tuple(
        TensorInfo(i.name, i.dtype, tuple(sizes.get(f"{i.name}:{axis}", d) for axis, d in enumerate(i.shape)))
        for i in infos
    )


def named_sizes(model: ir.Model, fixed_dims: Mapping[str, int]) -> dict[str, int]:
    """``fixed_dims`` resolved to places ``"input:axis"``; the more specific key wins.

    A key is a dimension's name (``"batch"``), one axis of an input (``"input_ids:1"``), or an input
    with a single dynamic dimension.

    Raises:
        ConfigError: a key names nothing, or a size is not a positive integer.
    """
    dynamic = {
        f"{value.name}:{axis}": (str(value.name), dim.value)
        for value in real_inputs(model)
        for axis, dim in enumerate(value.shape or ())
        if not isinstance(dim, int)
    }
    sizes: dict[str, int] = {}
    for key, size in sorted(fixed_dims.items(), key=lambda item: item[0] in dynamic):
        if not isinstance(size, int) or size < 1:
            raise ConfigError(f"dimension {key!r} must be a positive integer, got {size!r}")
        places = [place for place, (_, name) in dynamic.items() if key in (place, name)]
        of_input = [place for place, (name, _) in dynamic.items() if name == key]
        if not places and len(of_input) == 1:
            places = of_input
        if not places:
            listing = ", ".join(f"{place} ({name or 'unnamed'})" for place, (_, name) in dynamic.items())
            raise ConfigError(
                f"no input has one dynamic dimension {key!r}",
                remedy=f"choose among: {listing}" if listing else "the model's inputs are static already: omit it",
            )
        sizes.update(dict.fromkeys(places, size))
    return sizes


def output_infos(model: ir.Model) -> tuple[TensorInfo, ...]:
    """The model's outputs."""
    return tuple(_info(value) for value in model.graph.outputs)


def _info(value: ir.Value) -> TensorInfo:
    if value.dtype is None or value.shape is None:
        raise ModelError(
            f"tensor {value.name!r} of the model's interface has no type or shape",
            remedy="export the model again with full input and output types",
        )
    dims = tuple(d if isinstance(d, int) else d.value for d in value.shape)
    return TensorInfo(str(value.name), value.dtype.numpy(), dims)


def feeds_for(infos: Sequence[TensorInfo], arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[TensorInfo, np.ndarray]]:
    """Pair each input with its array; raises ModelError naming the inputs that are missing."""
    missing = [info.describe() for info in infos if info.name not in arrays]
    if missing:
        raise ModelError(
            f"no data for input {', '.join(missing)}; got {', '.join(sorted(arrays)) or 'nothing'}",
            remedy="name the arrays as the model's inputs",
        )
    for info in infos:
        yield info, arrays[info.name]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
