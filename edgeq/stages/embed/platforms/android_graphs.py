"""The graphs of a bundle on Android: which assets they are, and how a session with each is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgeq.bundle import GraphEntry
from edgeq.stages.embed.platforms.android_runtime import PACKAGE, RUNTIME, AndroidProvider, find_provider
from edgeq.stages.embed.project import GraphFiles, ProjectFile, Request
from edgeq.stages.embed.releases import check_release

__all__ = ["GraphView", "graph_views"]

_NO_CPU = {"session.disable_cpu_ep_fallback": "1"}
"""A session fails where a node would be left to the CPU, so that the fallback takes over at once."""


@dataclass(frozen=True)
class GraphView:
    """A graph as the templates see it.

    ``folder`` holds its files among the assets. ``key`` changes with their content: what was copied under another
    key is another model. ``entries`` go to the session, ``options`` to the provider.
    """

    entry: GraphEntry
    provider: AndroidProvider
    folder: str
    assets: tuple[ProjectFile, ...]
    key: str
    entries: Mapping[str, str]
    options: Mapping[str, str]

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
    providers = [find_provider(entry.provider.name, entry.target) for entry in request.bundle.manifest.graphs]
    check_release(request, PACKAGE, RUNTIME, "android")
    *others, last = zip(request.graphs, providers, strict=True)
    views = [_view(graph, provider, slug, {} if _needs_cpu(graph.entry) else _NO_CPU) for graph, provider in others]
    return (*views, _view(*last, slug, {}))


def _view(graph: GraphFiles, provider: AndroidProvider, slug: str, entries: Mapping[str, str]) -> GraphView:
    placed = [replace(file, path=f"edgeq/{slug}/{file.path}") for file in graph.placed("model/")]
    return GraphView(
        entry=graph.entry,
        provider=provider,
        folder=placed[0].path.rpartition("/")[0],
        assets=tuple(placed),
        key=graph.key[:16],
        entries={**graph.session, **entries},
        options={key: value for key, value in graph.entry.provider.options.items() if key not in provider.desk_options},
    )


def _needs_cpu(entry: GraphEntry) -> bool:
    """Whether some nodes were planned for the CPU, so that a session may not refuse them."""
    return any(node.provider != entry.provider.name for node in entry.forecast)
