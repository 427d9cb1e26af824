"""iOS: a Swift package with a typed class, the model as a resource, and tests of the sample tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeq.bundle import GraphEntry
from edgeq.errors import ConfigError
from edgeq.escape import Foreign, comment
from edgeq.interface import PixelInput
from edgeq.stages.embed.meaning import read_meaning
from edgeq.stages.embed.names import SWIFT, camel, pascal, words
from edgeq.stages.embed.project import Platform, Project, ProjectFile, Request
from edgeq.stages.embed.render import render_files
from edgeq.stages.embed.signature import Size, Tensor

__all__ = ["IOS"]

_RUNTIME = "1.24.2"
"""Of ONNX Runtime's Swift package: its newest release that was seen; it carries the Objective-C bindings."""

_TYPES = {
    "float32": ("Float", "float"),
    "int64": ("Int64", "int64"),
    "int32": ("Int32", "int32"),
    "uint8": ("UInt8", "uInt8"),
    "int8": ("Int8", "int8"),
}
"""numpy's name of a type: Swift's, and the case of ORTTensorElementDataType (ort_enums.h of those bindings)."""

_PROVIDERS = {"CPUExecutionProvider": False, "CoreMLExecutionProvider": True}
_OWN = (
    "Outputs",
    "Prediction",
    "Tensors",
    "Pictures",
    "Foundation",
    "CoreGraphics",
    "XCTest",
    "Assets",
    "Npy",
    "Graph",
)
_LOCALS = ("values", "found", "session", "provider", "labels", "top", "image", "run", "classify", "threads", "graph")


@dataclass(frozen=True)
class TensorView:
    """A tensor as templates see it; ``dims`` are expressions of its dimensions."""

    id: str
    name: Foreign
    swift: str
    element: str
    text: str
    dims: tuple[str, ...] = ()

    @property
    def shape(self) -> str:
        return f"[{', '.join(self.dims)}]"


@dataclass(frozen=True)
class SizeView:
    """A dynamic dimension of the inputs: ``default`` is an expression for where it is not given, if there is one."""

    id: str
    text: str
    default: str | None


@dataclass(frozen=True)
class GraphView:
    """A graph among the resources; ``key`` names the folder of what CoreML compiles of it."""

    entry: GraphEntry
    model: str
    coreml: bool
    key: str


def _make(request: Request) -> Project:
    manifest, options = request.bundle.manifest, request.options
    name = options.name or SWIFT.identifiers([manifest.name], pascal, "Model", _OWN)[0]
    meaning = read_meaning(manifest.interface)
    graphs = tuple(_graph(request, graph) for graph in manifest.graphs)
    context: dict[str, Any] = {
        "m": manifest,
        "name": name,
        "module": f"{name}Kit",
        "slug": "-".join(words(manifest.name))[:48].rstrip("-") or "model",
        "graphs": graphs,
        "coreml": any(graph.coreml for graph in graphs),
        "meaning": meaning,
        "pixels": meaning.picture if isinstance(meaning.picture, PixelInput) else None,
        "labels": manifest.labels,
        "samples": manifest.samples,
        "runtime": _RUNTIME,
        "fence": "`" * 3,
        **_code(request),
    }
    return Project(
        (*render_files("ios", _templates(context), context), *_assets(request, graphs, context["module"])),
        notes=("not compiled against ONNX Runtime and not run: that takes Xcode",),
        next=("in Xcode: File, Add Package Dependencies, Add Local, and this folder",),
    )


def _templates(context: Mapping[str, Any]) -> dict[str, str]:
    module, name = context["module"], context["name"]
    found = {
        "README.md": "README.md.jinja",
        "Package.swift": "Package.swift.jinja",
        f"Sources/{module}/{name}.swift": "Model.swift.jinja",
        f"Sources/{module}/Tensors.swift": "Tensors.swift.jinja",
        f"Tests/{module}Tests/{name}Tests.swift": "Tests.swift.jinja",
        f"Tests/{module}Tests/Npy.swift": "Npy.swift.jinja",
    }
    if context["meaning"].picture is not None:
        found[f"Sources/{module}/Pictures.swift"] = "Pictures.swift.jinja"
        if context["pixels"] is None:
            found[f"Sources/{module}/Preparation.swift"] = "Preparation.swift.jinja"
    return found


def _graph(request: Request, entry: GraphEntry) -> GraphView:
    if entry.provider.name not in _PROVIDERS:
        raise ConfigError(
            f"ONNX Runtime for iOS does not have {entry.provider.name}, for which the package was made",
            where=entry.target,
            remedy="make a package for ios or ios-npu",
        )
    folder = "" if entry.model == "model.onnx" else "fallback/"
    file = request.graph_files(entry)[0]
    key = request.bundle.manifest.files[file].sha256[:16]
    return GraphView(entry, f"{folder}{file.rpartition('/')[2]}", _PROVIDERS[entry.provider.name], key)


def _code(request: Request) -> dict[str, Any]:
    """The signature in Swift."""
    signature = request.signature
    sizes = SWIFT.identifiers((size.name for size in signature.sizes), camel, "size", _LOCALS)
    inputs = SWIFT.identifiers((t.name for t in signature.inputs), camel, "input", (*_LOCALS, *sizes))
    outputs = SWIFT.identifiers((t.name for t in signature.outputs), camel, "output", _LOCALS)
    by_size = {str(size.name): id_ for size, id_ in zip(signature.sizes, sizes, strict=True)}
    by_input = {str(tensor.name): id_ for tensor, id_ in zip(signature.inputs, inputs, strict=True)}
    views = tuple(_view(id_, tensor, {}) for id_, tensor in zip(outputs, signature.outputs, strict=True))
    return {
        "inputs": tuple(_view(id_, t, by_size) for id_, t in zip(inputs, signature.inputs, strict=True)),
        "outputs": views,
        "ids": {str(view.name): view.id for view in views},
        "sizes": tuple(_size(size, by_size, by_input) for size in signature.sizes),
    }


def _view(id_: str, tensor: Tensor, sizes: Mapping[str, str]) -> TensorView:
    if tensor.dtype not in _TYPES:
        raise ConfigError(
            f"ONNX Runtime's Objective-C API cannot pass {tensor.dtype}, the type of {str(tensor.name)!r}",
            remedy=f"give the model a Cast at that place; it can pass {', '.join(_TYPES)}",
        )
    swift, element = _TYPES[tensor.dtype]
    text = f"{tensor.dtype}[{', '.join(comment(str(dim)) for dim in tensor.shape)}]"
    dims = tuple(str(dim) if isinstance(dim, int) else sizes.get(str(dim), "-1") for dim in tensor.shape)
    return TensorView(id_, tensor.name, swift, element, text, dims)


def _size(size: Size, sizes: Mapping[str, str], inputs: Mapping[str, str]) -> SizeView:
    default = None if size.default is None else str(size.default)
    if size.of is not None:
        factors = [sizes[str(dim)] for dim in size.known]
        factors += [str(size.of.fixed_size)] if size.of.fixed_size != 1 or not factors else []
        default = f"{inputs[str(size.of.name)]}.count / ({' * '.join(factors)})"
    return SizeView(sizes[str(size.name)], comment(size.name), default)


def _assets(request: Request, graphs: tuple[GraphView, ...], module: str) -> list[ProjectFile]:
    """The models, labels, tokenizer and licences as resources of the module; the samples as those of its tests."""
    bundle = request.bundle
    manifest = bundle.manifest
    places: dict[str, str] = {}
    for graph in graphs:
        folder = graph.model.rpartition("/")[0]
        for name in request.graph_files(graph.entry):
            places["/".join(part for part in (folder, name.rpartition("/")[2]) if part)] = name
    beside = {"LICENSES.md", *manifest.interface.files, *([manifest.labels] if manifest.labels else [])}
    places |= {name: name for name in sorted(beside) if name in manifest.files}
    files = {f"Sources/{module}/Assets/{place}": name for place, name in places.items()}
    if manifest.samples is not None:
        for name in (*manifest.samples.inputs.values(), *manifest.samples.outputs.values()):
            files[f"Tests/{module}Tests/{name}"] = name
    return [ProjectFile(place, bundle.file(name)) for place, name in files.items()]


IOS = Platform("ios", "a Swift package", frozenset({"name"}), _make)
