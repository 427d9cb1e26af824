"""Android: a Gradle library module with a typed Kotlin API, the model as an asset, and tests on the device."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from edgeq.bundle import GraphEntry
from edgeq.errors import ConfigError
from edgeq.stages.embed.names import KOTLIN, pascal, snake, words
from edgeq.stages.embed.platforms.android_code import kotlin_code
from edgeq.stages.embed.platforms.android_runtime import (
    ABIS,
    COMPILE_SDK,
    GRADLE_PLUGIN,
    KOTLIN_PLUGIN,
    MIN_SDK,
    RUNTIME,
    AndroidProvider,
    find_provider,
)
from edgeq.stages.embed.project import Platform, Project, ProjectFile, Request
from edgeq.stages.embed.render import render_files

__all__ = ["ANDROID"]

_ASSETS = "src/main/assets/edgeq"


@dataclass(frozen=True)
class GraphView:
    """A graph as the templates see it: its asset folder and file, and how a session with it is made.

    ``key`` changes with the content: what was copied for another key is another model.
    """

    entry: GraphEntry
    folder: str
    files: tuple[str, ...]
    key: str
    provider: AndroidProvider

    @property
    def model(self) -> str:
        return self.files[0]


def _make(request: Request) -> Project:
    manifest, options = request.bundle.manifest, request.options
    name = options.name or KOTLIN.identifiers([manifest.name], pascal, "Model")[0]
    slug = "-".join(words(manifest.name)) or "model"
    package = _package(options.package or f"edgeq.{KOTLIN.identifiers([manifest.name], snake, 'model')[0]}")
    graphs = tuple(_graph(request, slug, graph) for graph in manifest.graphs)
    context = {
        "m": manifest,
        "name": name,
        "slug": slug,
        "package": package,
        "code": kotlin_code(request.signature),
        "signature": request.signature,
        "graph": graphs[0],
        "graphs": graphs,
        "runtime": RUNTIME,
        "gradle": {
            "plugin": GRADLE_PLUGIN,
            "kotlin": KOTLIN_PLUGIN,
            "compile_sdk": COMPILE_SDK,
            "min_sdk": MIN_SDK,
        },
        "abis": _abis(options.abis),
        "fence": "`" * 3,
    }
    files = render_files("android", _templates(package.replace(".", "/"), name), context)
    return Project(
        files=(*files, *_assets(request, slug, graphs)),
        next=(f'in your app\'s settings.gradle.kts: include(":{slug}"), and the folder as its projectDir',),
    )


def _templates(folder: str, name: str) -> dict[str, str]:
    """The template of each generated file, by path."""
    return {
        "README.md": "README.md.jinja",
        "build.gradle.kts": "build.gradle.kts.jinja",
        "settings.gradle.kts": "settings.gradle.kts.jinja",
        "consumer-rules.pro": "consumer-rules.pro.jinja",
        "src/main/AndroidManifest.xml": "AndroidManifest.xml.jinja",
        f"src/main/kotlin/{folder}/{name}.kt": "Model.kt.jinja",
        f"src/main/kotlin/{folder}/ModelFiles.kt": "ModelFiles.kt.jinja",
        f"src/main/kotlin/{folder}/Runtime.kt": "Runtime.kt.jinja",
        f"src/main/kotlin/{folder}/Tensors.kt": "Tensors.kt.jinja",
    }


def _graph(request: Request, slug: str, entry: GraphEntry) -> GraphView:
    files = request.graph_files(entry)
    key = hashlib.sha256("".join(request.bundle.manifest.files[file].sha256 for file in files).encode()).hexdigest()
    provider = find_provider(entry.provider.name, entry.target)
    folder = f"edgeq/{slug}/{'' if entry.model == files[0] == 'model.onnx' else 'fallback'}".rstrip("/")
    return GraphView(entry, folder, tuple(file.rpartition("/")[2] for file in files), key[:16], provider)


def _assets(request: Request, slug: str, graphs: Sequence[GraphView]) -> list[ProjectFile]:
    """The models and what is read beside them, as they lie in the bundle."""
    bundle = request.bundle
    places = {
        f"src/main/assets/{graph.folder}/{file}": name
        for graph in graphs
        for name, file in zip(request.graph_files(graph.entry), graph.files, strict=True)
    }
    for name in (bundle.manifest.labels, "LICENSES.md", "tokenizer.json"):
        if name in bundle.manifest.files:
            places[f"{_ASSETS}/{slug}/{name}"] = str(name)
    return [ProjectFile(place, bundle.file(name)) for place, name in places.items()]


def _package(package: str) -> str:
    parts = package.split(".")
    if len(parts) < 2 or not all(part.isidentifier() and part not in KOTLIN.keywords for part in parts):
        raise ConfigError(
            f"{package!r} is no package name for Android",
            where="--package",
            remedy="give lower-case words with dots between them, such as com.example.vision",
        )
    return package


def _abis(abis: tuple[str, ...] | None) -> tuple[str, ...]:
    if unknown := sorted(set(abis or ()) - set(ABIS)):
        raise ConfigError(
            f"onnxruntime-android has no libraries for {', '.join(unknown)}",
            where="--abi",
            remedy=f"choose among {', '.join(ABIS)}",
        )
    return abis or ABIS[:1]


ANDROID = Platform("android", "a Gradle library module in Kotlin", frozenset({"name", "package", "abis"}), _make)
