"""iOS: a Swift package with a typed class, the model as a resource, and tests of the sample tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from edgeq.bundle import GraphEntry
from edgeq.errors import ConfigError
from edgeq.interface import PixelInput
from edgeq.stages.embed.code import Dialect
from edgeq.stages.embed.meaning import read_meaning
from edgeq.stages.embed.names import SWIFT, camel, slug
from edgeq.stages.embed.project import GraphFiles, Platform, Project, Request
from edgeq.stages.embed.releases import check_release, reduced_build
from edgeq.stages.embed.render import render_files
from edgeq.stages.embed.sample_tokens import sample_tokens
from edgeq.stages.embed.sizes import RuntimeSize, operator_files, size_rows
from edgeq.stages.embed.texts import embeds, read_texts

__all__ = ["IOS"]

_PACKAGE, _RUNTIME = "onnxruntime-swift-package-manager", "1.24.2"
"""ONNX Runtime's Swift package: its newest release that was seen; it carries the Objective-C bindings."""


_RUNTIME_SIZE = RuntimeSize(
    f"onnxruntime {_RUNTIME}", "", None, None, "not to be had here: Xcode fetches it, and its size report tells"
)


class SwiftType(NamedTuple):
    """Swift's name of a type, and the case of ORTTensorElementDataType (ort_enums.h of those bindings)."""

    swift: str
    element: str


_TYPES = {
    "float32": SwiftType("Float", "float"),
    "int64": SwiftType("Int64", "int64"),
    "int32": SwiftType("Int32", "int32"),
    "uint8": SwiftType("UInt8", "uInt8"),
    "int8": SwiftType("Int8", "int8"),
}

_PROVIDERS = {"CPUExecutionProvider": False, "CoreMLExecutionProvider": True}
_OWN = (
    "Outputs",
    "Prediction",
    "Tensors",
    "Pictures",
    "Texts",
    "Tokens",
    "Characters",
    "Cursor",
    "Foundation",
    "CoreGraphics",
    "XCTest",
    "Assets",
    "Npy",
    "Graph",
    "Detection",
    "Detections",
    "BoxAgreement",
)
_LOCALS = ("values", "found", "session", "provider", "labels", "top", "image", "run", "classify", "threads", "graph")
_SWIFT = Dialect(SWIFT, camel, "ONNX Runtime's Objective-C API", _TYPES, _LOCALS, length="{}.count")


@dataclass(frozen=True)
class GraphView:
    """A graph among the resources; ``key`` names the folder of what CoreML compiles of it."""

    entry: GraphEntry
    model: str
    session: Mapping[str, str]
    coreml: bool
    key: str


def _make(request: Request) -> Project:
    manifest, options = request.bundle.manifest, request.options
    name = SWIFT.class_name(manifest.name, options.name, _OWN)
    meaning, code, texts = read_meaning(manifest), _SWIFT.write(request.signature), read_texts(request)
    for entry in manifest.graphs:
        _check_provider(entry)
    check_release(request, _PACKAGE, _RUNTIME, "ios")
    operators = reduced_build(request, _RUNTIME)
    graphs = tuple(_graph(graph) for graph in request.graphs)
    context: dict[str, Any] = {
        "m": manifest,
        "name": name,
        "module": f"{name}Kit",
        "slug": slug(manifest.name),
        "graphs": graphs,
        "coreml": any(graph.coreml for graph in graphs),
        "meaning": meaning,
        "texts": texts,
        "embeds": embeds(request, texts),
        "pixels": meaning.picture if isinstance(meaning.picture, PixelInput) else None,
        "labels": manifest.labels,
        "samples": manifest.samples,
        "agreement": meaning.boxes and meaning.boxes.least_agreement(manifest.main, manifest.samples),
        "tokens": sample_tokens(request.bundle),
        "runtime": _RUNTIME,
        "footprint": size_rows(request, [_RUNTIME_SIZE], reduced=operators and "Xcode"),
        "reduced": operators is not None,
        "fence": "`" * 3,
        "inputs": code.inputs,
        "outputs": code.outputs,
        "sizes": code.sizes,
        "ids": code.ids,
    }
    folder = f"Sources/{context['module']}/Assets/"
    assets = request.assets(folder, f"Tests/{context['module']}Tests/", without=texts.file if texts else None)
    return Project(
        (
            *render_files("ios", _templates(context), context),
            *assets,
            *([texts.vocabulary(folder)] if texts else []),
            *operator_files(operators),
        ),
        sizes=context["footprint"],
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
    if context["texts"] is not None:
        found |= {f"Sources/{module}/{name}.swift": f"{name}.swift.jinja" for name in ("Texts", "Characters")}
    if context["meaning"].boxes is not None:
        found[f"Sources/{module}/Detections.swift"] = "Detections.swift.jinja"
    if context["agreement"] is not None:
        found[f"Tests/{module}Tests/BoxAgreement.swift"] = "BoxAgreement.swift.jinja"
    return found


def _check_provider(entry: GraphEntry) -> None:
    if entry.provider.name not in _PROVIDERS:
        raise ConfigError(
            f"ONNX Runtime for iOS does not have {entry.provider.name}, for which the package was made",
            where=entry.target,
            remedy="make a package for ios or ios-npu",
        )


def _graph(graph: GraphFiles) -> GraphView:
    coreml = _PROVIDERS[graph.entry.provider.name]
    return GraphView(graph.entry, graph.placed()[0].path, graph.session, coreml, graph.key[:16])


IOS = Platform("ios", "a Swift package", frozenset({"name", "format"}), _make, targets=("ios",))
