"""Python: a module that pip installs, with a typed class, the model inside, and a test of its sample tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeq.bundle import GraphEntry
from edgeq.escape import Foreign
from edgeq.interface import PixelInput
from edgeq.stages.embed.meaning import Meaning, read_meaning
from edgeq.stages.embed.names import PYTHON, slug, snake
from edgeq.stages.embed.platforms.wheels import wheel_sizes
from edgeq.stages.embed.project import Platform, Project, ProjectFile, Request
from edgeq.stages.embed.releases import at_least, needed_release
from edgeq.stages.embed.render import render_files
from edgeq.stages.embed.sample_tokens import sample_tokens
from edgeq.stages.embed.signature import Tensor
from edgeq.stages.embed.sizes import RuntimeSize, size_rows

__all__ = ["PYTHON_MODULE"]

_OWN = (
    *("Outputs", "Prediction", "Detection", "Path", "Image", "ImageOps", "Tokenizer", "ASSETS"),
    *("Sequence", "Any", "dataclass", "annotations"),
)
"""Names that the generated module has or imports."""

_LOCALS = ("run", "classify", "embed", "provider", "labels", "threads", "feeds", "session", "top", "image", "texts")


@dataclass(frozen=True)
class TensorView:
    """A tensor as templates see it: its identifier, its name in the graph, numpy's type, its shape in words."""

    id: str
    name: Foreign
    dtype: str
    text: str

    @property
    def numpy(self) -> str:
        """The type as numpy's own name of it, for code."""
        return f"np.{'bool_' if self.dtype == 'bool' else 'str_' if self.dtype == 'string' else self.dtype}"


@dataclass(frozen=True)
class GraphView:
    """A graph with its model file among the assets."""

    entry: GraphEntry
    model: str
    session: Mapping[str, str]


def _make(request: Request) -> Project:
    manifest, options = request.bundle.manifest, request.options
    module = PYTHON.identifiers([manifest.name], snake, "model")[0]
    graphs = tuple(GraphView(graph.entry, graph.placed()[0].path, graph.session) for graph in request.graphs)
    meaning = read_meaning(manifest)
    outputs = _views(request.signature.outputs, "output")
    context: dict[str, Any] = {
        "m": manifest,
        "name": PYTHON.class_name(manifest.name, options.name, _OWN),
        "module": module,
        "slug": slug(manifest.name),
        "graphs": graphs,
        "meaning": meaning,
        "inputs": _views(request.signature.inputs, "input"),
        "outputs": outputs,
        "ids": {str(view.name): view.id for view in outputs},
        "labels": _labels(meaning),
        "agreement": meaning.boxes and meaning.boxes.least_agreement(manifest.main, manifest.samples),
        "tokens": sample_tokens(request.bundle),
        "requirements": _requirements(graphs, meaning, needed_release(request)),
        "footprint": size_rows(request, _runtime_sizes(request), packing="in wheels"),
        "pixels": isinstance(meaning.picture, PixelInput),
        "plugins": any(graph.entry.provider.registration == "plugin" for graph in graphs),
        "fence": "`" * 3,
    }
    templates = {
        "README.md": "README.md.jinja",
        "pyproject.toml": "pyproject.toml.jinja",
        f"src/{module}/__init__.py": "init.py.jinja",
        f"src/{module}/model.py": "model.py.jinja",
        f"src/{module}/sessions.py": "sessions.py.jinja",
        f"tests/test_{module}.py": "test_model.py.jinja",
    }
    if meaning.picture is not None:
        templates[f"src/{module}/pictures.py"] = "pictures.py.jinja"
    if meaning.boxes is not None:
        templates[f"src/{module}/detections.py"] = "detections.py.jinja"
    if meaning.tokens:
        templates[f"src/{module}/texts.py"] = "texts.py.jinja"
    return Project(
        (
            *render_files("python", templates, context),
            ProjectFile(f"src/{module}/py.typed", b"# This package has type annotations (PEP 561).\n"),
            *request.assets(f"src/{module}/assets/", "tests/"),
        ),
        sizes=context["footprint"],
        notes=tuple(note for graph in request.graphs for note in graph.notes),
        next=("in this folder: pip install . (or make a wheel of it: pip wheel --no-deps .)",),
    )


def _views(tensors: tuple[Tensor, ...], noun: str) -> tuple[TensorView, ...]:
    ids = PYTHON.identifiers((tensor.name for tensor in tensors), snake, noun, _LOCALS)
    return tuple(TensorView(id_, t.name, t.dtype, t.text) for id_, t in zip(ids, tensors, strict=True))


def _labels(meaning: Meaning) -> str | None:
    """The file with the names of the classes that the outputs tell of."""
    classes = meaning.scores or (meaning.boxes.classes if meaning.boxes is not None else None)
    return None if classes is None else classes.labels


def _requirements(graphs: tuple[GraphView, ...], meaning: Meaning, release: str) -> tuple[str, ...]:
    """What pip installs. A second graph runs on the CPU provider, which every build of ONNX Runtime has.

    ``release`` is the oldest one of ONNX Runtime that reads the models.
    """
    first = graphs[0].entry.provider
    plugin = first.registration == "plugin"
    versions = first.version if plugin else at_least(first.version, release)  # other builds have the same versions
    found = {"numpy": "numpy>=1.26", first.package: f"{first.package}{versions}"}
    if plugin:
        found["onnxruntime"] = f"onnxruntime{at_least('>=1.24.2', release)}"
    if meaning.picture is not None:
        found["pillow"] = "pillow>=10"
    if meaning.tokens:
        found["tokenizers"] = "tokenizers>=0.20"
    return tuple(found[name] for name in sorted(found))


def _runtime_sizes(request: Request) -> list[RuntimeSize]:
    first, target = request.bundle.manifest.provider, request.bundle.manifest.target
    named = f"{first.package}{first.version}"
    if first.registration == "plugin":
        return wheel_sizes(target, beside=(named,))
    if first.package == "onnxruntime":
        return wheel_sizes(target)
    return [RuntimeSize(named, "", None, None, "not measured: `pip download --no-deps` fetches its wheel")]


PYTHON_MODULE = Platform("python", "a module that pip installs", frozenset({"name", "format"}), _make)
