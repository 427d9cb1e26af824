"""The nouns of embedding: what a platform is asked for, and the project that it makes of it."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from edgeq.bundle import Bundle, GraphEntry
from edgeq.embedding import EmbedOptions, SizeRow
from edgeq.errors import ConfigError
from edgeq.stages.embed.signature import Signature, read_signature

__all__ = ["Platform", "Project", "ProjectFile", "Request"]


@dataclass(frozen=True)
class ProjectFile:
    """A file of the project: its path with forward slashes, and its bytes or the file that holds them.

    ``made_from`` is for a file whose bytes differ from run to run: what it follows from. While that is the same, the
    file that is there stays.
    """

    path: str
    content: bytes | Path
    made_from: str | None = None

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    @property
    def deflated_size(self) -> int:
        """Length in bytes once it is compressed as in a ZIP file (zlib, level 6), read in pieces."""
        squeeze = zlib.compressobj(6)
        if isinstance(self.content, bytes):
            return len(squeeze.compress(self.content) + squeeze.flush())
        with self.content.open("rb") as stream:
            pieces = iter(lambda: stream.read(1 << 20), b"")
            return sum(len(squeeze.compress(piece)) for piece in pieces) + len(squeeze.flush())


@dataclass(frozen=True)
class Project:
    """All files of a project, and what to tell of it."""

    files: tuple[ProjectFile, ...]
    sizes: tuple[SizeRow, ...] = ()
    notes: tuple[str, ...] = ()
    next: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        paths = [file.path for file in self.files]
        folded = {path.casefold() for path in paths}
        assert len(folded) == len(paths), f"two files of one name: {sorted(paths)}"


@dataclass(frozen=True)
class Request:
    """What a platform makes a project from. ``scratch`` is a folder for files that are made on the way."""

    bundle: Bundle
    options: EmbedOptions
    scratch: Path

    @cached_property
    def signature(self) -> Signature:
        return read_signature(self.bundle)

    def graph_files(self, graph: GraphEntry) -> tuple[str, ...]:
        """The model file of a graph and, for large models, the weights beside it; the model first."""
        names = (name for name in self.bundle.manifest.files if name.startswith(f"{graph.model}."))
        return (graph.model, *sorted(names))

    def graph_places(self, graph: GraphEntry, first: str = "") -> dict[str, str]:
        """Where the files of a graph go among the assets, and which files of the bundle they are; the model first.

        ``first`` is the folder of the bundle's first graph, such as ``"model/"``; its fallback has one of its own.
        """
        folder = first if graph == self.bundle.manifest.main else "fallback/"
        return {f"{folder}{name.rpartition('/')[2]}": name for name in self.graph_files(graph)}

    def assets(
        self, folder: str, samples: str, *, first: str = "", without: str | None = None
    ) -> tuple[ProjectFile, ...]:
        """The models, labels, tokenizer and licences in ``folder``, the sample tensors in ``samples``.

        Both end in a slash or are empty; ``first`` is that of ``graph_places``, ``without`` a file to leave out.
        """
        manifest = self.bundle.manifest
        places: dict[str, str] = {}
        for graph in manifest.graphs:
            places |= {f"{folder}{place}": name for place, name in self.graph_places(graph, first).items()}
        beside = {"LICENSES.md", *manifest.interface.files, *([manifest.labels] if manifest.labels else [])}
        places |= {f"{folder}{name}": name for name in sorted(beside - {without}) if name in manifest.files}
        if manifest.samples is not None:
            names = (*manifest.samples.inputs.values(), *manifest.samples.outputs.values())
            places |= {f"{samples}{name}": name for name in names}
        return tuple(ProjectFile(place, self.bundle.file(name)) for place, name in places.items())


@dataclass(frozen=True)
class Platform:
    """A kind of app build.

    ``options`` names those of `EmbedOptions` that it knows. ``target`` is part of the names of targets that are made
    for it; None: it runs on any machine.
    """

    name: str
    summary: str
    options: frozenset[str]
    make: Callable[[Request], Project]
    target: str | None = None

    def check(self, options: EmbedOptions) -> None:
        """Raises ConfigError for an option of another platform."""
        if unknown := sorted(set(options.given) - self.options):
            raise ConfigError(
                f"the platform {self.name!r} has no option {', '.join(unknown)}",
                remedy=f"it knows: {', '.join(sorted(self.options)) or 'none'}",
            )

    def notes(self, target: str) -> tuple[str, ...]:
        """What to say of a package that was made for another kind of machine."""
        if self.target is None or self.target in target:
            return ()
        return (
            f"the model was made for {target}: it runs, but its kernels were chosen for another processor; "
            f"--target {self.target} makes one for this platform",
        )
