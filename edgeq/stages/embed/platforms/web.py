"""Web: an npm package in TypeScript with the model, and a page that shows what it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from edgeq.bundle import GraphEntry
from edgeq.errors import ConfigError
from edgeq.interface import PixelInput
from edgeq.stages.embed.code import Dialect
from edgeq.stages.embed.meaning import Meaning, read_meaning
from edgeq.stages.embed.names import TYPESCRIPT, camel, slug
from edgeq.stages.embed.project import Platform, Project, Request
from edgeq.stages.embed.render import render_files

__all__ = ["WEB"]

_RUNTIME = "1.30.0"
"""Of the npm package onnxruntime-web: what targets `web` and `web-gpu` were measured with."""

_TYPESCRIPT = "5.9.3"


class ScriptType(NamedTuple):
    """The array in JavaScript that holds a type, and ONNX Runtime's name of it."""

    array: str
    onnx: str


_TYPES = {
    "float32": ScriptType("Float32Array", "float32"),
    "float64": ScriptType("Float64Array", "float64"),
    "float16": ScriptType("Uint16Array", "float16"),
    "int64": ScriptType("BigInt64Array", "int64"),
    "int32": ScriptType("Int32Array", "int32"),
    "int16": ScriptType("Int16Array", "int16"),
    "int8": ScriptType("Int8Array", "int8"),
    "uint8": ScriptType("Uint8Array", "uint8"),
    "bool": ScriptType("Uint8Array", "bool"),
}

_PROVIDERS = {"CPUExecutionProvider": "wasm", "WebGpuExecutionProvider": "webgpu"}
_OWN = ("Outputs", "Inputs", "Prediction", "LoadOptions", "Picture", "ort", "Tokenizer", "Tensor", "Session")
_LOCALS = ("feeds", "found", "shape", "result", "session", "labels", "top", "picture", "texts", "options")
_SCRIPT = Dialect(TYPESCRIPT, camel, "onnxruntime-web", _TYPES, _LOCALS, length="inputs.{}.length")


@dataclass(frozen=True)
class GraphView:
    """A graph with its files among the assets, and what onnxruntime-web calls its provider."""

    entry: GraphEntry
    files: tuple[tuple[str, str, int], ...]
    provider: str
    half: bool


def _make(request: Request) -> Project:
    manifest, options = request.bundle.manifest, request.options
    graphs = tuple(_graph(request, graph) for graph in manifest.graphs)
    meaning, code = read_meaning(manifest.interface), _SCRIPT.write(request.signature)
    context: dict[str, Any] = {
        "m": manifest,
        "name": TYPESCRIPT.class_name(manifest.name, options.name, _OWN),
        "slug": slug(manifest.name),
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
        "inputs": code.inputs,
        "outputs": code.outputs,
        "sizes": code.sizes,
        "ids": code.ids,
    }
    files = (*render_files("web", _templates(context), context), *request.assets("assets/", "demo/"))
    return Project(files, next=("in this folder: npm install && npm run demo",))


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
    manifest = request.bundle.manifest
    files = tuple(
        (place, manifest.files[name].sha256, manifest.files[name].bytes)
        for place, name in request.graph_places(entry).items()
    )
    provider = _PROVIDERS[entry.provider.name]
    return GraphView(entry, files, provider, provider == "webgpu" and entry.precision.startswith("fp16"))


WEB = Platform("web", "an npm package in TypeScript, with a demo page", frozenset({"name"}), _make, target="web")
