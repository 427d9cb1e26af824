"""C and C++: one header with a typed interface to ONNX Runtime's C API, and an example that checks the samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from edgeq.bundle import GraphEntry
from edgeq.errors import ConfigError
from edgeq.interface import ImageInput, PixelInput
from edgeq.stages.embed.code import Dialect
from edgeq.stages.embed.meaning import read_meaning
from edgeq.stages.embed.names import C, constant, pascal, snake, words
from edgeq.stages.embed.platforms.wheels import VERSION, library_sizes
from edgeq.stages.embed.project import Platform, Project, Request
from edgeq.stages.embed.releases import needed_release, reduced_build
from edgeq.stages.embed.render import render_files
from edgeq.stages.embed.sample_tokens import sample_tokens
from edgeq.stages.embed.sizes import RuntimeSize, operator_files, size_rows
from edgeq.stages.embed.texts import embeds, read_texts

__all__ = ["C_HEADER"]


class CType(NamedTuple):
    """C's name of a type, and the end of its name in ONNX Runtime's enumeration."""

    c: str
    ending: str

    @property
    def onnx(self) -> str:
        return f"ONNX_TENSOR_ELEMENT_DATA_TYPE_{self.ending}"


_TYPES = {
    "float32": CType("float", "FLOAT"),
    "float16": CType("uint16_t", "FLOAT16"),
    "float64": CType("double", "DOUBLE"),
    "int64": CType("int64_t", "INT64"),
    "int32": CType("int32_t", "INT32"),
    "int16": CType("int16_t", "INT16"),
    "int8": CType("int8_t", "INT8"),
    "uint64": CType("uint64_t", "UINT64"),
    "uint32": CType("uint32_t", "UINT32"),
    "uint16": CType("uint16_t", "UINT16"),
    "uint8": CType("uint8_t", "UINT8"),
    "bool": CType("uint8_t", "BOOL"),
}
"""By numpy's names; 16-bit floats are passed as their bits."""

_C = Dialect(C, snake, "the C example", _TYPES, size="in.{}")

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
class GraphView:
    """A graph with its model file in the project, and what its provider is called in C."""

    entry: GraphEntry
    model: str
    session: Mapping[str, str]
    appended: str | None


def _make(request: Request) -> Project:
    manifest, options = request.bundle.manifest, request.options
    prefix = C.identifiers([options.name or manifest.name], snake, "model")[0]
    for entry in manifest.graphs:
        _appended(entry)
    operators = reduced_build(request, VERSION)
    graphs = tuple(
        GraphView(graph.entry, graph.placed("model/")[0].path, graph.session, _appended(graph.entry))
        for graph in request.graphs
    )
    meaning, code, texts = read_meaning(manifest), _C.write(request.signature), read_texts(request)
    context: dict[str, Any] = {
        "m": manifest,
        "p": prefix,
        "P": constant(words(prefix)),
        "title": options.name or pascal(words(manifest.name)) or "Model",
        "graphs": graphs,
        "meaning": meaning,
        "texts": texts,
        "embeds": embeds(request, texts),
        "slots": 1 << (2 * len(texts.tokenizer.vocabulary)).bit_length() if texts else 0,
        "found": meaning.boxes,
        "agreement": meaning.boxes and meaning.boxes.least_agreement(manifest.main, manifest.samples),
        "tokens": sample_tokens(request.bundle),
        "shows": meaning.picture is not None and (meaning.scores is not None or meaning.boxes is not None),
        "image": meaning.picture if isinstance(meaning.picture, ImageInput) else None,
        "pixels": meaning.picture if isinstance(meaning.picture, PixelInput) else None,
        "inputs": code.inputs,
        "outputs": code.outputs,
        "sizes": code.sizes,
        "ids": code.ids,
        "labels": request.signature.labels,
        "fence": "`" * 3,
        "release": needed_release(request),
        "measured": VERSION,
        "footprint": size_rows(
            request, _runtime_sizes(request, graphs), reduced=operators and "a C++ compiler and CMake"
        ),
        "reduced": operators is not None,
    }
    templates = {
        "README.md": "README.md.jinja",
        "Makefile": "Makefile.jinja",
        "CMakeLists.txt": "CMakeLists.txt.jinja",
        f"{prefix}.h": "model.h.jinja",
        "example.c": "example.c.jinja",
        "npy.h": "npy.h.jinja",
    }
    if texts is not None:
        templates[f"{prefix}_tokenizer.h"] = "tokenizer.h.jinja"
    assets = request.assets("", "", first="model/", without=texts.file if texts else None)
    return Project(
        (
            *render_files("c", templates, context),
            *assets,
            *([texts.vocabulary("")] if texts else []),
            *operator_files(operators),
        ),
        sizes=context["footprint"],
        notes=(
            "ONNX Runtime's header and library are not part of it: README.md says where they come from",
            *(note for graph in request.graphs for note in graph.notes),
        ),
        next=("in this folder: make ORT=FOLDER_OF_ONNX_RUNTIME check",),
    )


def _runtime_sizes(request: Request, graphs: Sequence[GraphView]) -> list[RuntimeSize]:
    if (provider := graphs[0].appended) is not None:
        return [RuntimeSize(f"ONNX Runtime's library with {provider}", "", None, None, "not measured")]
    return library_sizes(request.bundle.manifest.target)


def _appended(entry: GraphEntry) -> str | None:
    if entry.provider.name not in _APPENDED:
        raise ConfigError(
            f"the C example cannot start {entry.provider.name}, for which the package was made",
            where=entry.target,
            remedy=f"embed it as python, or make a package for one of {', '.join(_APPENDED)}",
        )
    return _APPENDED[entry.provider.name]


C_HEADER = Platform("c", "a single header for C and C++, with an example", frozenset({"name", "format"}), _make)
