"""C and C++: one header with a typed interface to ONNX Runtime's C API, and an example that checks the samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgeq.bundle import GraphEntry
from edgeq.errors import ConfigError
from edgeq.escape import Foreign, comment
from edgeq.interface import ImageInput, PixelInput
from edgeq.stages.embed.meaning import read_meaning
from edgeq.stages.embed.names import C, constant, pascal, snake, words
from edgeq.stages.embed.project import Platform, Project, ProjectFile, Request
from edgeq.stages.embed.render import render_files
from edgeq.stages.embed.signature import Size, Tensor

__all__ = ["C_HEADER"]

_TYPES = {
    "float32": ("float", "FLOAT"),
    "float16": ("uint16_t", "FLOAT16"),
    "float64": ("double", "DOUBLE"),
    "int64": ("int64_t", "INT64"),
    "int32": ("int32_t", "INT32"),
    "int16": ("int16_t", "INT16"),
    "int8": ("int8_t", "INT8"),
    "uint64": ("uint64_t", "UINT64"),
    "uint32": ("uint32_t", "UINT32"),
    "uint16": ("uint16_t", "UINT16"),
    "uint8": ("uint8_t", "UINT8"),
    "bool": ("uint8_t", "BOOL"),
}
"""numpy's name of a type: C's, and the end of its name in ONNX Runtime's enumeration. 16-bit floats are bits."""

_APPENDED = {
    "CPUExecutionProvider": None,
    "CoreMLExecutionProvider": "CoreML",
    "OpenVINOExecutionProvider": "OpenVINO",
    "QNNExecutionProvider": "QNN",
    "VitisAIExecutionProvider": "VitisAI",
    "WebGpuExecutionProvider": "WebGPU",
    "XnnpackExecutionProvider": "XNNPACK",
}
"""What SessionOptionsAppendExecutionProvider calls a provider; None: it is always there."""


@dataclass(frozen=True)
class TensorView:
    """A tensor as templates see it; ``dims`` are expressions of its dimensions, for inputs."""

    id: str
    name: Foreign
    c: str
    onnx: str
    rank: int
    text: str
    dims: tuple[str, ...] = ()


@dataclass(frozen=True)
class SizeView:
    """A dynamic dimension of the inputs: a member of the struct of inputs; ``default`` stands for 0."""

    id: str
    text: str
    default: int | None


@dataclass(frozen=True)
class GraphView:
    """A graph with its model file in the project, and what its provider is called in C."""

    entry: GraphEntry
    model: str
    appended: str | None


def _make(request: Request) -> Project:
    manifest, options = request.bundle.manifest, request.options
    prefix = C.identifiers([options.name or manifest.name], snake, "model")[0]
    graphs = tuple(_graph(request, graph) for graph in manifest.graphs)
    meaning = read_meaning(manifest.interface)
    signature = request.signature
    sizes = C.identifiers((size.name for size in signature.sizes), snake, "size")
    members = C.identifiers((tensor.name for tensor in signature.inputs), snake, "input", sizes)
    results = C.identifiers((tensor.name for tensor in signature.outputs), snake, "output")
    dims = {str(size.name): f"in.{id_}" for size, id_ in zip(signature.sizes, sizes, strict=True)}
    outputs = tuple(_view(id_, tensor, {}) for id_, tensor in zip(results, signature.outputs, strict=True))
    context: dict[str, Any] = {
        "m": manifest,
        "p": prefix,
        "P": constant(words(prefix)),
        "title": options.name or pascal(words(manifest.name)) or "Model",
        "graphs": graphs,
        "meaning": meaning,
        "image": meaning.picture if isinstance(meaning.picture, ImageInput) else None,
        "pixels": meaning.picture if isinstance(meaning.picture, PixelInput) else None,
        "inputs": tuple(_view(id_, tensor, dims) for id_, tensor in zip(members, signature.inputs, strict=True)),
        "outputs": outputs,
        "ids": {str(view.name): view.id for view in outputs},
        "sizes": tuple(_size(id_, size) for id_, size in zip(sizes, signature.sizes, strict=True)),
        "labels": signature.labels,
        "fence": "`" * 3,
    }
    templates = {
        "README.md": "README.md.jinja",
        "Makefile": "Makefile.jinja",
        "CMakeLists.txt": "CMakeLists.txt.jinja",
        f"{prefix}.h": "model.h.jinja",
        "example.c": "example.c.jinja",
        "npy.h": "npy.h.jinja",
    }
    return Project(
        (*render_files("c", templates, context), *_assets(request, graphs)),
        notes=("ONNX Runtime's header and library are not part of it: README.md says where they come from",),
        next=("make ORT=FOLDER_OF_ONNX_RUNTIME check",),
    )


def _graph(request: Request, entry: GraphEntry) -> GraphView:
    if entry.provider.name not in _APPENDED:
        raise ConfigError(
            f"the C example cannot start {entry.provider.name}, for which the package was made",
            where=entry.target,
            remedy=f"embed it as python, or make a package for one of {', '.join(_APPENDED)}",
        )
    folder = "model" if entry.model == "model.onnx" else "fallback"
    file = request.graph_files(entry)[0].rpartition("/")[2]
    return GraphView(entry, f"{folder}/{file}", _APPENDED[entry.provider.name])


def _view(id_: str, tensor: Tensor, dims: dict[str, str]) -> TensorView:
    if tensor.dtype not in _TYPES:
        raise ConfigError(
            f"the C example cannot pass {tensor.dtype}, the type of {str(tensor.name)!r}",
            remedy=f"give the model a Cast at that place; it can pass {', '.join(_TYPES)}",
        )
    c, onnx = _TYPES[tensor.dtype]
    text = f"{tensor.dtype}[{', '.join(comment(str(dim)) for dim in tensor.shape)}]"
    shape = tuple(str(dim) if isinstance(dim, int) else dims.get(str(dim), "-1") for dim in tensor.shape)
    return TensorView(id_, tensor.name, c, f"ONNX_TENSOR_ELEMENT_DATA_TYPE_{onnx}", len(tensor.shape), text, shape)


def _size(id_: str, size: Size) -> SizeView:
    return SizeView(id_, comment(size.name), size.default)


def _assets(request: Request, graphs: tuple[GraphView, ...]) -> list[ProjectFile]:
    """The models with their weights, the samples, the tokenizer and the licences."""
    bundle = request.bundle
    manifest = bundle.manifest
    places: dict[str, str] = {}
    for graph in graphs:
        folder = graph.model.partition("/")[0]
        for name in request.graph_files(graph.entry):
            places[f"{folder}/{name.rpartition('/')[2]}"] = name
    places |= {name: name for name in ("LICENSES.md", *sorted(manifest.interface.files)) if name in manifest.files}
    if manifest.samples is not None:
        for name in (*manifest.samples.inputs.values(), *manifest.samples.outputs.values()):
            places[name] = name
    return [ProjectFile(place, bundle.file(name)) for place, name in places.items()]


C_HEADER = Platform("c", "a single header for C and C++, with an example", frozenset({"name"}), _make)
