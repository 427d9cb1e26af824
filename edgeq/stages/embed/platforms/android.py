"""Android: a Gradle library module with a typed Kotlin API, the model as an asset, and tests on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgeq.errors import ConfigError
from edgeq.stages.embed.names import KOTLIN, snake, words
from edgeq.stages.embed.platforms.android_code import kotlin_code
from edgeq.stages.embed.platforms.android_graphs import GraphView, graph_views
from edgeq.stages.embed.platforms.android_meaning import (
    BoxesView,
    PictureView,
    RankedView,
    boxes_view,
    picture_view,
    ranked_view,
)
from edgeq.stages.embed.platforms.android_runtime import (
    ABIS,
    COMPILE_SDK,
    GRADLE_PLUGIN,
    PACKAGE,
    PLAY_BASE_BYTES,
    RUNTIME,
    RUNTIME_BYTES,
    AndroidProvider,
)
from edgeq.stages.embed.platforms.android_samples import bench_view, sample_files, sample_view
from edgeq.stages.embed.platforms.android_text import TextView, text_view
from edgeq.stages.embed.project import Platform, Project, ProjectFile, Request
from edgeq.stages.embed.releases import reduced_build
from edgeq.stages.embed.render import render_files
from edgeq.stages.embed.sample_tokens import sample_tokens
from edgeq.stages.embed.sizes import RuntimeSize, operator_files, size_rows

__all__ = ["ANDROID"]

_OWN_CLASSES = frozenset({"BenchActivity", "ModelFiles", "Npy", "OrtRuntime", "Pictures", "Plugin", "Tensors"})
_OWN_CLASSES |= {"Characters", "Texts", "Tokens"}
_OWN_CLASSES |= {"Label", "Outputs", "Context", "Fp16Conversions", "IOException", "Log", "OnnxJavaType", "OnnxTensor"}
_OWN_CLASSES |= {"OrtException", "OrtSession", "Bitmap", "RectF", "Detection", "Detections", "BoxAgreement"}
"""Classes that the generated code has or imports: the model's may not be called so."""


def _make(request: Request) -> Project:
    manifest, options = request.bundle.manifest, request.options
    slug = "-".join(words(manifest.name))[:48].rstrip("-") or "model"
    graphs = graph_views(request, slug)
    code = kotlin_code(request.signature, has_fallback=len(graphs) > 1)
    ranked, picture = ranked_view(request, code), picture_view(request, code)
    text, boxes = text_view(request, code), boxes_view(request, code)
    asset_bytes = sum(graph.bytes for graph in request.graphs)
    packed = asset_bytes > PLAY_BASE_BYTES
    context: dict[str, Any] = {
        "m": manifest,
        "name": KOTLIN.class_name(manifest.name, options.name, _OWN_CLASSES),
        "slug": slug,
        "package": _package(options.package or f"edgeq.{KOTLIN.identifiers([manifest.name], snake, 'model')[0]}"),
        "code": code,
        "graph": graphs[0],
        "graphs": graphs,
        "plugin": next((graph for graph in graphs if graph.provider.plugin), None),
        "dependencies": graphs[0].provider.dependencies,
        "vendor_libraries": graphs[0].provider.vendor_libraries,
        "min_sdk": max(graph.provider.min_sdk for graph in graphs),
        "ranked": ranked,
        "picture": picture,
        "text": text,
        "boxes": boxes,
        "imports": sorted(code.imports | _more_imports(picture, ranked, boxes, text)),
        "labels": manifest.labels and f"edgeq/{slug}/{manifest.labels}",
        "runtime": RUNTIME,
        "abis": _abis(options.abis, graphs),
        "gradle": {"plugin": GRADLE_PLUGIN, "compile_sdk": COMPILE_SDK},
        "folder": f"edgeq/{slug}/samples",
        "samples": sample_view(request.bundle, code, boxes),
        "tokens": sample_tokens(request.bundle),
        "bench": bench_view(request.bundle, code) if options.bench else None,
        "packed": packed,
        "pack_name": slug.replace("-", "_"),
        "asset_bytes": asset_bytes,
        "fence": "`" * 3,
    }
    operators = reduced_build(request, RUNTIME)
    runtimes = [_runtime_size(abi, graphs[0].provider) for abi in context["abis"]]
    context["footprint"] = size_rows(request, runtimes, reduced=operators and "the NDK")
    context["reduced"] = operators is not None
    files = [
        *render_files("android", _templates(context), context),
        *_assets(request, slug, graphs, "asset-pack/" if packed else ""),
        *sample_files(request.bundle, f"src/androidTest/assets/edgeq/{slug}/samples"),
        *operator_files(operators),
    ]
    if text is not None:
        files.append(text.texts.vocabulary(f"src/main/assets/edgeq/{slug}/"))
    return Project(tuple(files), sizes=context["footprint"], notes=_notes(context), next=_next(context))


def _templates(context: Mapping[str, Any]) -> dict[str, str]:
    """The template of each generated file, by path."""
    name, folder = context["name"], str(context["package"]).replace(".", "/")
    main, test, debug = (f"src/{kind}/kotlin/{folder}" for kind in ("main", "androidTest", "debug"))
    found = {
        "README.md": "README.md.jinja",
        "build.gradle.kts": "build.gradle.kts.jinja",
        "settings.gradle.kts": "settings.gradle.kts.jinja",
        "consumer-rules.pro": "consumer-rules.pro.jinja",
        "make-aar.sh": "make-aar.sh.jinja",
        "src/main/AndroidManifest.xml": "AndroidManifest.xml.jinja",
        f"{main}/{name}.kt": "Model.kt.jinja",
        f"{main}/ModelFiles.kt": "ModelFiles.kt.jinja",
        f"{main}/OrtRuntime.kt": "OrtRuntime.kt.jinja",
        f"{main}/Tensors.kt": "Tensors.kt.jinja",
    }
    if context["picture"]:
        found[f"{main}/Pictures.kt"] = "Pictures.kt.jinja"
    if context["boxes"]:
        found[f"{main}/Detections.kt"] = "Detections.kt.jinja"
    if context["text"]:
        found |= {f"{main}/{name}.kt": f"{name}.kt.jinja" for name in ("Texts", "Characters")}
    if context["plugin"]:
        found[f"{main}/Plugin.kt"] = "Plugin.kt.jinja"
    if context["samples"]:
        found |= {f"{test}/{name}Test.kt": "ModelTest.kt.jinja", f"{test}/Npy.kt": "Npy.kt.jinja"}
    if context["samples"] and context["samples"].boxes:
        found[f"{test}/BoxAgreement.kt"] = "BoxAgreement.kt.jinja"
    if context["bench"]:
        found |= {
            "src/debug/AndroidManifest.xml": "BenchManifest.xml.jinja",
            f"{debug}/BenchActivity.kt": "BenchActivity.kt.jinja",
        }
    if context["packed"]:
        found["asset-pack/build.gradle.kts"] = "AssetPack.gradle.kts.jinja"
    return found


def _more_imports(
    picture: PictureView | None, ranked: RankedView | None, boxes: BoxesView | None, text: TextView | None
) -> frozenset[str]:
    """What `classify`, `detect` and `embed` import in the class of the model."""
    takes_pictures = picture is not None and (ranked is not None or (boxes is not None and boxes.detects))
    found = picture.imports if picture is not None and takes_pictures else frozenset()
    found |= ranked.imports if ranked is not None else frozenset()
    return found | ({"kotlin.math.sqrt"} if text is not None else frozenset())


def _assets(request: Request, slug: str, graphs: Sequence[GraphView], pack: str) -> list[ProjectFile]:
    """The models, in the pack if there is one, and what is read beside them, as they lie in the bundle."""
    bundle = request.bundle
    models = [replace(file, path=f"{pack}src/main/assets/{file.path}") for graph in graphs for file in graph.assets]
    beside = [name for name in (bundle.manifest.labels, "LICENSES.md", "tokenizer.json") if name is not None]
    return models + [
        ProjectFile(f"src/main/assets/edgeq/{slug}/{name}", bundle.file(name))
        for name in beside
        if name in bundle.manifest.files
    ]


def _runtime_size(abi: str, provider: AndroidProvider) -> RuntimeSize:
    raw, deflated = RUNTIME_BYTES[abi]
    beside = tuple(f"{one.module} {one.version}" for one in provider.dependencies)
    return RuntimeSize(f"{PACKAGE} {RUNTIME}", abi, raw, deflated, "measured on the AAR", beside)


def _package(package: str) -> str:
    parts = package.split(".")
    if len(parts) < 2 or not all(part.isidentifier() and part not in KOTLIN.keywords for part in parts):
        raise ConfigError(
            f"{package!r} is no package name for Android",
            where="--package",
            remedy="give lower-case words with dots between them, such as com.example.vision",
        )
    return package


def _abis(abis: tuple[str, ...] | None, graphs: Sequence[GraphView]) -> tuple[str, ...]:
    known = [abi for abi in ABIS if all(abi in graph.provider.abis for graph in graphs)]
    if unknown := [abi for abi in abis or () if abi not in known]:
        raise ConfigError(
            f"there are no libraries for {', '.join(unknown)}",
            where="--abi",
            remedy=f"choose among {', '.join(known)}",
        )
    return abis or ABIS[:1]


def _notes(context: Mapping[str, Any]) -> tuple[str, ...]:
    graph: GraphView = context["graph"]
    notes = ["Gradle was not run: no Maven repository is read here. The README of the module says what was checked."]
    if graph.provider.plugin:
        notes.append(
            f"nothing was run on a phone's {graph.entry.provider.name}; the versions of its libraries in "
            "build.gradle.kts are those of its release notes"
        )
    return tuple(notes)


def _next(context: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        f'in the app\'s settings.gradle.kts: include(":{context["slug"]}"), with this folder as its projectDir',
        f'in the app\'s build.gradle.kts: implementation(project(":{context["slug"]}")); README.md has the rest',
        f"on a device: ./gradlew :{context['slug']}:connectedAndroidTest",
    )


ANDROID = Platform(
    "android",
    "a Gradle library module in Kotlin",
    frozenset({"name", "package", "format", "abis", "bench"}),
    _make,
    targets=("android",),
)
