"""Web: an npm package in TypeScript with the model, and a page that shows what it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeq.bundle import GraphEntry
from edgeq.errors import ConfigError
from edgeq.escape import Foreign, comment
from edgeq.interface import PixelInput
from edgeq.stages.embed.meaning import Meaning, read_meaning
from edgeq.stages.embed.names import TYPESCRIPT, camel, pascal, words
from edgeq.stages.embed.project import Platform, Project, ProjectFile, Request
from edgeq.stages.embed.render import render_files
from edgeq.stages.embed.signature import Size, Tensor

__all__ = ["WEB"]

_RUNTIME = "1.30.0"
"""Of the npm package onnxruntime-web: what targets `web` and `web-gpu` were measured with."""

_TYPESCRIPT = "5.9.3"

_TYPES = {
    "float32": ("Float32Array", "float32", ""),
    "float64": ("Float64Array", "float64", ""),
    "float16": ("Uint16Array", "float16", ""),
    "int64": ("BigInt64Array", "int64", "n"),
    "int32": ("Int32Array", "int32", ""),
    "int16": ("Int16Array", "int16", ""),
    "int8": ("Int8Array", "int8", ""),
    "uint8": ("Uint8Array", "uint8", ""),
    "bool": ("Uint8Array", "bool", ""),
}
"""numpy's name of a type: the array in JavaScript, ONNX Runtime's name, the suffix of its numbers."""

_PROVIDERS = {"CPUExecutionProvider": "wasm", "WebGpuExecutionProvider": "webgpu"}
_OWN = ("Outputs", "Inputs", "Prediction", "LoadOptions", "Picture", "ort", "Tokenizer", "Tensor", "Session")
_LOCALS = ("feeds", "found", "shape", "result", "session", "labels", "top", "picture", "texts", "options")


@dataclass(frozen=True)
class TensorView:
    """A tensor as templates see it; ``dims`` are expressions of its dimensions and ``count`` of their product."""

    id: str
    name: Foreign
    array: str
    onnx: str
    text: str
    dims: tuple[str, ...] = ()

    @property
    def shape(self) -> str:
        return f"[{', '.join(self.dims)}]"

    @property
    def count(self) -> str:
        return " * ".join(self.dims) or "1"


@dataclass(frozen=True)
class SizeView:
    """A dynamic dimension of the inputs: ``default`` is an expression for where it is not given, if there is one."""

    id: str
    text: str
    default: str | None


@dataclass(frozen=True)
class GraphView:
    """A graph with its files among the assets, and what onnxruntime-web calls its provider."""

    entry: GraphEntry
    files: tuple[tuple[str, str, int], ...]
    provider: str
    half: bool


def _make(request: Request) -> Project:
    manifest, options = request.bundle.manifest, request.options
    slug = "-".join(words(manifest.name))[:48].rstrip("-") or "model"
    graphs = tuple(_graph(request, graph) for graph in manifest.graphs)
    meaning = read_meaning(manifest.interface)
    context: dict[str, Any] = {
        "m": manifest,
        "name": options.name or TYPESCRIPT.identifiers([manifest.name], pascal, "Model", _OWN)[0],
        "slug": slug,
        "graphs": graphs,
        "gpu": any(graph.provider == "webgpu" for graph in graphs),
        "meaning": meaning,
        "pixels": meaning.picture if isinstance(meaning.picture, PixelInput) else None,
        "wordpiece": _is_wordpiece(meaning),
        "labels": manifest.labels,
        "runtime": _RUNTIME,
        "typescript": _TYPESCRIPT,
        "samples": manifest.samples,
        "fence": "`" * 3,
        **_code(request),
    }
    files = (*render_files("web", _templates(context), context), *_assets(request, graphs, bool(context["samples"])))
    return Project(files, next=("npm install && npm run demo",))


def _templates(context: Mapping[str, Any]) -> dict[str, str]:
    found = {
        "README.md": "README.md.jinja",
        "package.json": "package.json.jinja",
        "tsconfig.json": "tsconfig.json.jinja",
        "src/index.ts": "index.ts.jinja",
        "src/files.ts": "files.ts.jinja",
        "demo/index.html": "index.html.jinja",
        "demo/demo.js": "demo.js.jinja",
        "demo/npy.js": "npy.js.jinja",
        "demo/serve.mjs": "serve.mjs.jinja",
    }
    if context["meaning"].picture is not None:
        found["src/pictures.ts"] = "pictures.ts.jinja"
    if context["wordpiece"]:
        found["src/wordpiece.ts"] = "wordpiece.ts.jinja"
    return found


def _is_wordpiece(meaning: Meaning) -> bool:
    return bool(meaning.tokens) and meaning.tokens[0].algorithm == "WordPiece"


def _graph(request: Request, entry: GraphEntry) -> GraphView:
    if entry.provider.name not in _PROVIDERS:
        raise ConfigError(
            f"onnxruntime-web does not have {entry.provider.name}, for which the package was made",
            where=entry.target,
            remedy="make a package for web or web-gpu",
        )
    folder = "" if entry.model == "model.onnx" else "fallback/"
    manifest = request.bundle.manifest
    files = tuple(
        (f"{folder}{name.rpartition('/')[2]}", manifest.files[name].sha256, manifest.files[name].bytes)
        for name in request.graph_files(entry)
    )
    provider = _PROVIDERS[entry.provider.name]
    return GraphView(entry, files, provider, provider == "webgpu" and entry.precision.startswith("fp16"))


def _code(request: Request) -> dict[str, Any]:
    """The signature in TypeScript."""
    signature = request.signature
    sizes = TYPESCRIPT.identifiers((size.name for size in signature.sizes), camel, "size", _LOCALS)
    inputs = TYPESCRIPT.identifiers((t.name for t in signature.inputs), camel, "input", (*_LOCALS, *sizes))
    outputs = TYPESCRIPT.identifiers((t.name for t in signature.outputs), camel, "output", _LOCALS)
    by_size = {str(size.name): id_ for size, id_ in zip(signature.sizes, sizes, strict=True)}
    by_input = {str(tensor.name): id_ for tensor, id_ in zip(signature.inputs, inputs, strict=True)}
    views = tuple(_view(id_, tensor, {}) for id_, tensor in zip(outputs, signature.outputs, strict=True))
    return {
        "inputs": tuple(_view(id_, t, by_size) for id_, t in zip(inputs, signature.inputs, strict=True)),
        "outputs": views,
        "ids": {str(view.name): view.id for view in views} | by_input,
        "sizes": tuple(_size(size, by_size, by_input) for size in signature.sizes),
    }


def _view(id_: str, tensor: Tensor, sizes: Mapping[str, str]) -> TensorView:
    if tensor.dtype not in _TYPES:
        raise ConfigError(
            f"onnxruntime-web cannot pass {tensor.dtype}, the type of {str(tensor.name)!r}",
            remedy=f"give the model a Cast at that place; it can pass {', '.join(_TYPES)}",
        )
    array, onnx, _ = _TYPES[tensor.dtype]
    text = f"{tensor.dtype}[{', '.join(comment(str(dim)) for dim in tensor.shape)}]"
    dims = tuple(str(dim) if isinstance(dim, int) else sizes.get(str(dim), "-1") for dim in tensor.shape)
    return TensorView(id_, tensor.name, array, onnx, text, dims)


def _size(size: Size, sizes: Mapping[str, str], inputs: Mapping[str, str]) -> SizeView:
    default = None if size.default is None else str(size.default)
    if size.of is not None:
        factors = [sizes[str(dim)] for dim in size.known]
        factors += [str(size.of.fixed_size)] if size.of.fixed_size != 1 or not factors else []
        default = f"inputs.{inputs[str(size.of.name)]}.length / ({' * '.join(factors)})"
    return SizeView(sizes[str(size.name)], comment(size.name), default)


def _assets(request: Request, graphs: tuple[GraphView, ...], samples: bool) -> list[ProjectFile]:
    """The models, labels, tokenizer and licences that the package fetches; the samples for the demo page."""
    bundle = request.bundle
    manifest = bundle.manifest
    places: dict[str, str] = {}
    for graph in graphs:
        names = request.graph_files(graph.entry)
        places |= {f"assets/{place}": name for (place, _, _), name in zip(graph.files, names, strict=True)}
    beside = {"LICENSES.md", *manifest.interface.files, *([manifest.labels] if manifest.labels else [])}
    places |= {f"assets/{name}": name for name in sorted(beside) if name in manifest.files}
    if samples and manifest.samples is not None:
        files = (*manifest.samples.inputs.values(), *manifest.samples.outputs.values())
        places |= {f"demo/{name}": name for name in files}
    return [ProjectFile(place, bundle.file(name)) for place, name in places.items()]


WEB = Platform("web", "an npm package in TypeScript, with a demo page", frozenset({"name"}), _make)
