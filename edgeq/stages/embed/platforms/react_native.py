"""React Native: an npm package in TypeScript with the model, for apps on Android and iOS."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeq.bundle import GraphEntry, Manifest
from edgeq.stages.embed.code import TensorCode
from edgeq.stages.embed.platforms.android_runtime import PACKAGE, RUNTIME, RUNTIME_BYTES
from edgeq.stages.embed.platforms.typescript import TYPES, ScriptType, provider_name, script_context, script_files
from edgeq.stages.embed.project import GraphFiles, Platform, Project, Request
from edgeq.stages.embed.releases import check_release, reduced_build
from edgeq.stages.embed.sizes import RuntimeSize, operator_files, size_rows

__all__ = ["REACT_NATIVE"]

_VERSIONS = {
    "runtime": "1.24.3",  # of onnxruntime-react-native: its newest, and what is said of it in the templates
    "files": "2.40.3",  # of @dr.pogodin/react-native-fs
    "react_native": "0.81.6",  # the newest that builds with Gradle 8, which that runtime's build.gradle needs
    "oldest": "0.76",  # the oldest whose Hermes was looked at (its compiler)
    "react_types": "19.1.9",
    "native": RUNTIME,  # of onnxruntime-android, which the README pins
}

# Without float16: the binding looks for Float16Array when it returns one, and Hermes has none.
_TYPES = {name: type_ for name, type_ in TYPES.items() if name != "float16"}

_RUNTIME_SIZES = (
    RuntimeSize(f"{PACKAGE} {RUNTIME}", "arm64-v8a", *RUNTIME_BYTES["arm64-v8a"], "measured on the AAR"),
    RuntimeSize("onnxruntime-c", "iOS", None, None, "not to be had here: CocoaPods fetches it"),
)

_PROVIDERS = {"CPUExecutionProvider": "cpu", "XnnpackExecutionProvider": "xnnpack", "CoreMLExecutionProvider": "coreml"}
_COREML_FLAGS = {("RequireStaticInputShapes", "1"): 0x008, ("ModelFormat", "MLProgram"): 0x010}
"""The options of a profile as bits of coreml_provider_factory.h, which is all that the binding passes on."""
_COREML_DEFAULTS = {("EnableOnSubgraphs", "0"), ("MLComputeUnits", "ALL")}


@dataclass(frozen=True)
class FileView:
    """A file of the project: its place, among the assets if it is a model's, and what it must be on the device."""

    place: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class GraphView:
    """A graph with its files; ``key`` changes with them. ``options`` are what the provider is passed in JavaScript.

    ``left`` are settings of the package that the binding does not pass on.
    """

    key: str
    files: tuple[FileView, ...]
    provider: str
    options: Mapping[str, str]
    left: tuple[str, ...]


@dataclass(frozen=True)
class SampleOutput:
    """An output with reference values, the ``at``-th of the sample files; those of boxes have no ``sqnr_db``."""

    tensor: TensorCode[ScriptType]
    at: int
    sqnr_db: float | None


def _make(request: Request) -> Project:
    manifest = request.bundle.manifest
    for entry in manifest.graphs:
        _provider(entry)
    check_release(request, PACKAGE, RUNTIME, "android or ios")
    graphs = tuple(_graph(graph) for graph in request.graphs)
    operators = reduced_build(request, RUNTIME)
    sizes = size_rows(request, _RUNTIME_SIZES, reduced=operators and "the NDK for Android, Xcode for iOS")
    context = script_context(request, "onnxruntime-react-native", _TYPES)
    context |= _VERSIONS | {
        "graphs": graphs,
        "providers": " or ".join(dict.fromkeys(graph.provider for graph in graphs)),
        "label_names": request.signature.labels,
        "left": tuple(dict.fromkeys(name for graph in graphs for name in graph.left)),
        "footprint": sizes,
        "reduced": operators is not None,
    }
    paths = ["README.md", "package.json", "tsconfig.json", "src/index.ts", "src/files.ts"]
    if manifest.labels:
        paths.append("src/labels.ts")
    if manifest.samples is not None:
        paths.append("src/check.ts")
        context |= _samples(manifest, context)
    files = (*script_files("react-native", paths, context), *request.assets("assets/", ""), *operator_files(operators))
    return Project(
        files,
        sizes=sizes,
        notes=("not run on a phone: that takes Gradle or Xcode",),
        next=("in this folder: npm install && npm pack; its README says what the app needs",),
    )


def _provider(entry: GraphEntry) -> str:
    return provider_name(entry, _PROVIDERS, "onnxruntime-react-native", "android, android-xnnpack, ios or ios-npu")


def _graph(graph: GraphFiles) -> GraphView:
    files = tuple(FileView(file.path, file.entry.sha256, file.entry.bytes) for file in graph.placed())
    key = hashlib.sha256("".join(file.sha256 for file in files).encode()).hexdigest()[:16]
    provider = _provider(graph.entry)
    options = set(graph.entry.provider.options.items())
    passed: dict[str, str] = {}
    if provider == "cpu":
        passed = {"useArena": "true"}
    elif provider == "coreml":
        passed = {"coreMlFlags": f"0x{sum(bit for option, bit in _COREML_FLAGS.items() if option in options):03x}"}
        options -= _COREML_FLAGS.keys() | _COREML_DEFAULTS
    left = tuple(f"{name}={value}" for name, value in (*sorted(options), *sorted(graph.session.items())))
    return GraphView(key, files, provider, passed, left)


def _samples(manifest: Manifest, context: Mapping[str, Any]) -> dict[str, Any]:
    """The files of the sample tensors, those of the inputs first, and the outputs that can be compared."""
    samples = manifest.samples
    assert samples is not None
    names = [samples.inputs[str(tensor.name)] for tensor in context["inputs"]]
    meaning, outputs = context["meaning"], list[SampleOutput]()
    boxes = meaning.boxes.names if context["agreement"] is not None else ()
    for tensor in context["outputs"]:
        name = str(tensor.name)
        recorded = samples.sqnr_db.get(name) if meaning.sqnr_counts(name) else None
        if recorded is not None or name in boxes:
            outputs.append(SampleOutput(tensor, len(names), recorded))
            names.append(samples.outputs[name])
    files = tuple(FileView(name, manifest.files[name].sha256, manifest.files[name].bytes) for name in names)
    return {
        "sample_files": files,
        "sample_outputs": tuple(output for output in outputs if output.sqnr_db is not None),
        "sample_boxes": tuple(output for output in outputs if output.sqnr_db is None),
    }


REACT_NATIVE = Platform(
    "react-native",
    "an npm package in TypeScript for React Native",
    frozenset({"name", "format"}),
    _make,
    targets=("android", "ios"),
)
