"""The graphs of a bundle on Android: which assets they are, and how a session with each is made."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from edgeq.bundle import GraphEntry
from edgeq.errors import ConfigError
from edgeq.graph import load_model
from edgeq.stages.embed.ort_format import OrtModel, convert_to_ort
from edgeq.stages.embed.platforms.android_runtime import MAX_IR, MAX_OPSET, RUNTIME, AndroidProvider, find_provider
from edgeq.stages.embed.project import ProjectFile, Request

__all__ = ["GraphView", "graph_views"]

_MAPPED = {"session.use_memory_mapped_ort_model": "1"}
"""For the ort format: the file is not read into memory first (ONNX Runtime 1.29, session option keys)."""

_NO_CPU = {"session.disable_cpu_ep_fallback": "1"}
"""A session fails where a node would be left to the CPU, so that the fallback takes over at once."""


@dataclass(frozen=True)
class GraphView:
    """A graph as the templates see it.

    ``folder`` holds its files among the assets. ``key`` changes with their content: what was copied under another
    key is another model. ``entries`` go to the session, ``options`` to the provider. ``operators`` is the
    configuration of a reduced build, for graphs of the CPU.
    """

    entry: GraphEntry
    provider: AndroidProvider
    folder: str
    assets: tuple[ProjectFile, ...]
    key: str
    bytes: int
    deflated: int
    entries: Mapping[str, str]
    options: Mapping[str, str]
    operators: str | None

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files in ``folder``, the model first."""
        return tuple(asset.path.rpartition("/")[2] for asset in self.assets)


def graph_views(request: Request, slug: str) -> tuple[GraphView, ...]:
    """All graphs of the bundle, the one to try first in front.

    Raises:
        ConfigError: a graph's provider does not exist on Android, or its opset is too new.
        ModelError: a graph cannot be converted to the ort format.
    """
    graphs = request.bundle.manifest.graphs
    return tuple(
        _view(request, entry, f"edgeq/{slug}/{'fallback' if i else 'model'}") for i, entry in enumerate(graphs)
    )


def _view(request: Request, entry: GraphEntry, folder: str) -> GraphView:
    provider = find_provider(entry.provider.name, entry.target)
    _check_versions(request, entry)
    names = request.graph_files(entry)
    sha256 = hashlib.sha256("".join(request.bundle.manifest.files[name].sha256 for name in names).encode()).hexdigest()
    files = [ProjectFile(f"{folder}/{name.rpartition('/')[2]}", request.bundle.file(name)) for name in names]
    last = entry.model == request.bundle.manifest.graphs[-1].model
    only = len(request.bundle.manifest.graphs) == 1  # a reduced build has no place for plugins
    entries = {**entry.provider.session, **({} if last or _needs_cpu(entry) else _NO_CPU)}
    converted = _converted(request, entry, sha256) if provider.method is None and provider.plugin is None else None
    key = sha256
    if converted is not None and request.options.format == "ort":
        key = converted.key
        files = [ProjectFile(f"{folder}/model.ort", converted.path, key)]
        entries |= _MAPPED
    return GraphView(
        entry=entry,
        provider=provider,
        folder=folder,
        assets=tuple(files),
        key=key[:16],
        bytes=sum(file.size for file in files),
        deflated=sum(file.deflated_size for file in files),
        entries=entries,
        options={key: value for key, value in entry.provider.options.items() if key not in provider.desk_options},
        operators=converted.operators if converted is not None and only else None,
    )


def _converted(request: Request, entry: GraphEntry, sha256: str) -> OrtModel:
    model = request.bundle.file(entry.model)
    return convert_to_ort(model, entry.provider.session, request.scratch, sha256=sha256)


def _needs_cpu(entry: GraphEntry) -> bool:
    """Whether some nodes were planned for the CPU, so that a session may not refuse them."""
    return any(node.provider != entry.provider.name for node in entry.forecast)


def _check_versions(request: Request, entry: GraphEntry) -> None:
    model = load_model(request.bundle.file(entry.model))
    opset = model.opset_imports.get("", 1)
    if opset > MAX_OPSET or (model.ir_version or 1) > MAX_IR:
        raise ConfigError(
            f"{entry.model} has opset {opset} and IR version {model.ir_version}; onnxruntime-android {RUNTIME} runs "
            f"up to {MAX_OPSET} and {MAX_IR}",
            remedy="export the model again with a target of Android, which chooses the opset",
        )
