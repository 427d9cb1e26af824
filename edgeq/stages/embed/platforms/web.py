"""Web: an npm package in TypeScript with the model, and a page that shows what it does."""

from __future__ import annotations

from dataclasses import dataclass

from edgeq.bundle import GraphEntry
from edgeq.errors import ConfigError
from edgeq.stages.embed.platforms.typescript import TYPES, script_context, script_files
from edgeq.stages.embed.project import Platform, Project, Request

__all__ = ["WEB"]

_RUNTIME = "1.30.0"
"""Of the npm package onnxruntime-web: what targets `web` and `web-gpu` were measured with."""

_PROVIDERS = {"CPUExecutionProvider": "wasm", "WebGpuExecutionProvider": "webgpu"}
_PATHS = (
    "README.md",
    "package.json",
    "tsconfig.json",
    "src/index.ts",
    "src/files.ts",
    "demo/index.html",
    "demo/demo.js",
    "demo/npy.js",
    "demo/serve.mjs",
)


@dataclass(frozen=True)
class GraphView:
    """A graph with its files among the assets, and what onnxruntime-web calls its provider."""

    entry: GraphEntry
    files: tuple[tuple[str, str, int], ...]
    provider: str
    half: bool


def _make(request: Request) -> Project:
    graphs = tuple(_graph(request, graph) for graph in request.bundle.manifest.graphs)
    gpu = any(graph.provider == "webgpu" for graph in graphs)
    context = script_context(request, "onnxruntime-web", TYPES) | {
        "graphs": graphs,
        "gpu": gpu,
        "providers": "webgpu or wasm" if gpu else "wasm",
        "runtime": _RUNTIME,
    }
    files = (*script_files("web", _PATHS, context), *request.assets("assets/", "demo/"))
    return Project(files, next=("in this folder: npm install && npm run demo",))


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
