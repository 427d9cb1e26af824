"""Web: an npm package in TypeScript with the model, and a page that shows what it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeq.bundle import GraphEntry
from edgeq.stages.embed.platforms.typescript import TYPES, provider_name, script_context, script_files
from edgeq.stages.embed.project import GraphFiles, Platform, Project, Request
from edgeq.stages.embed.releases import check_release, reduced_build
from edgeq.stages.embed.sizes import RuntimeSize, megabytes, operator_files, size_rows

__all__ = ["RUNTIME_FILES", "WEB"]

_PACKAGE, _RUNTIME = "onnxruntime-web", "1.30.0"
"""The npm package: what targets `web` and `web-gpu` were measured with."""

RUNTIME_FILES = {
    "wasm": {
        "ort-wasm-simd-threaded.wasm": (14_239_897, 3_695_884, 2_355_011),
        "ort.wasm.bundle.min.mjs": (73_054, 24_630, 21_707),
    },
    "webgpu": {
        "ort-wasm-simd-threaded.asyncify.wasm": (26_781_914, 6_673_531, 3_992_333),
        "ort.webgpu.bundle.min.mjs": (117_732, 39_328, 33_869),
    },
}
"""What a page fetches of it, by provider: bytes as they are, with gzip (level 6), and with brotli (quality 11)."""

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
    session: Mapping[str, str]
    provider: str
    half: bool


def _make(request: Request) -> Project:
    for entry in request.bundle.manifest.graphs:
        _provider(entry)
    check_release(request, _PACKAGE, _RUNTIME, "web")
    graphs = tuple(_graph(graph) for graph in request.graphs)
    gpu = any(graph.provider == "webgpu" for graph in graphs)
    operators = reduced_build(request, _RUNTIME)
    runtime = _runtime_size("webgpu" if gpu else "wasm")
    sizes = size_rows(request, [runtime], packing="with gzip", reduced=operators and "Emscripten")
    context = script_context(request, "onnxruntime-web", TYPES) | {
        "graphs": graphs,
        "gpu": gpu,
        "providers": "webgpu or wasm" if gpu else "wasm",
        "runtime": _RUNTIME,
        "footprint": sizes,
        "reduced": operators is not None,
    }
    files = (*script_files("web", _PATHS, context), *request.assets("assets/", "demo/"), *operator_files(operators))
    return Project(files, sizes, next=("in this folder: npm install && npm run demo",))


def _runtime_size(provider: str) -> RuntimeSize:
    raw, gzip, brotli = (sum(numbers) for numbers in zip(*RUNTIME_FILES[provider].values(), strict=True))
    note = f"{megabytes(brotli)} with brotli; measured on the npm package"
    return RuntimeSize(f"{_PACKAGE} {_RUNTIME}", "", raw, gzip, note)


def _provider(entry: GraphEntry) -> str:
    return provider_name(entry, _PROVIDERS, "onnxruntime-web", "web or web-gpu")


def _graph(graph: GraphFiles) -> GraphView:
    described = [(file.path, file.entry) for file in graph.placed()]
    files = tuple((path, found.sha256, found.bytes) for path, found in described)
    provider = _provider(graph.entry)
    half = provider == "webgpu" and graph.entry.precision.startswith("fp16")
    return GraphView(graph.entry, files, graph.entry.provider.session, provider, half)


WEB = Platform(
    "web", "an npm package in TypeScript, with a demo page", frozenset({"name", "format"}), _make, targets=("web",)
)
