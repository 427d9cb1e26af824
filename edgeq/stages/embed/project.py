"""The nouns of embedding: what a platform is asked for, and the project that it makes of it."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from edgeq.bundle import Bundle, FileEntry, GraphEntry, file_entry
from edgeq.embedding import EmbedOptions, SizeRow
from edgeq.errors import ConfigError, ModelError
from edgeq.stages.embed.ort_format import MAPPED, OrtModel, convert_to_ort
from edgeq.stages.embed.signature import Signature, read_signature
from edgeq.target import CPU_PROVIDER

__all__ = ["GraphFiles", "Platform", "Project", "ProjectFile", "Request"]


@dataclass(frozen=True)
class ProjectFile:
    """A file of the project: its path with forward slashes, and its bytes or the file that holds them.

    ``made_from`` is for a file whose bytes differ from run to run: what it follows from. While that is the same, the
    file that is there is taken again (`Request.made`).
    """

    path: str
    content: bytes | Path
    made_from: str | None = None

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    @property
    def entry(self) -> FileEntry:
        """Its sha256 and its length in bytes."""
        if isinstance(self.content, bytes):
            return FileEntry(sha256=hashlib.sha256(self.content).hexdigest(), bytes=len(self.content))
        return file_entry(self.content)

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
class GraphFiles:
    """A graph as the project holds it: ``files`` by their bare names, the model first, and what a session is made with.

    ``key`` changes with their content. ``converted`` is the model in ONNX Runtime's own format, if that is what was
    asked for; ``onnx_bytes`` is the length of the bundle's files.
    """

    entry: GraphEntry
    files: tuple[ProjectFile, ...]
    key: str
    onnx_bytes: int
    fallback: bool
    converted: OrtModel | None = None

    def placed(self, first: str = "") -> tuple[ProjectFile, ...]:
        """The files among the assets; ``first`` is the folder of the bundle's first graph, such as ``"model/"``."""
        folder = "fallback/" if self.fallback else first
        return tuple(replace(file, path=folder + file.path) for file in self.files)

    @property
    def session(self) -> dict[str, str]:
        """Entries of a session that opens the model by its path."""
        return {**self.entry.provider.session, **(MAPPED if self.converted else {})}

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know of the format before it is run on a PC or server."""
        return self.converted.notes if self.converted else ()

    @property
    def bytes(self) -> int:
        """Length of all files."""
        return sum(file.size for file in self.files)

    @cached_property
    def deflated(self) -> int:
        """Their length once they are compressed as in a ZIP file."""
        return sum(file.deflated_size for file in self.files)


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
    """What a platform makes a project from.

    ``scratch`` is a folder for files that are made on the way. ``made`` holds files of the project that were made
    before and were not edited, by what they were made from (`ProjectFile.made_from`).
    """

    bundle: Bundle
    options: EmbedOptions
    scratch: Path
    made: Mapping[str, Path] = field(default_factory=dict)

    @cached_property
    def signature(self) -> Signature:
        return read_signature(self.bundle)

    @cached_property
    def graphs(self) -> tuple[GraphFiles, ...]:
        """All graphs, the one to try first in front; those of the CPU are in ONNX Runtime's own format, if asked for.

        Raises:
            ConfigError: that format is asked for, and no graph is for the CPU.
            ModelError: a graph cannot be converted.
        """
        entries = self.bundle.manifest.graphs
        wanted = self.options.format == "ort"
        if wanted and not any(_runs_on_cpu(entry) for entry in entries):
            raise ConfigError(
                f"the model runs on {entries[0].provider.name}, which takes no model in the ort format",
                where="--format",
                remedy="use --format onnx",
            )
        return tuple(self._graph(entry, wanted and _runs_on_cpu(entry)) for entry in entries)

    def _graph(self, entry: GraphEntry, wanted: bool) -> GraphFiles:
        manifest = self.bundle.manifest
        names = (entry.model, *sorted(name for name in manifest.files if name.startswith(f"{entry.model}.")))
        key = hashlib.sha256("".join(manifest.files[name].sha256 for name in names).encode()).hexdigest()
        files = tuple(ProjectFile(name.rpartition("/")[2], self.bundle.file(name)) for name in names)
        size, fallback = sum(file.size for file in files), entry != manifest.main
        if not wanted:
            return GraphFiles(entry, files, key, size, fallback)
        converted = self._converted(entry, key)
        file = ProjectFile("model.ort", converted.path, converted.key)
        return GraphFiles(entry, (file,), converted.key, size, fallback, converted)

    def _converted(self, entry: GraphEntry, sha256: str) -> OrtModel:
        model = self.bundle.file(entry.model)
        return convert_to_ort(model, entry.provider.session, self.scratch, sha256=sha256, made=self.made)

    @cached_property
    def operators(self) -> str | None:
        """What a reduced build of ONNX Runtime has to contain, as its build script reads it.

        None where the CPU provider alone does not do, for which alone there is such a build, and where the model is too
        large to be converted.
        """
        (first, *others) = self.graphs
        if others or not _runs_on_cpu(first.entry):
            return None
        try:
            return (first.converted or self._converted(first.entry, first.key)).operators
        except ModelError:
            return None

    def assets(
        self, folder: str, samples: str, *, first: str = "", without: str | None = None
    ) -> tuple[ProjectFile, ...]:
        """The models, labels, tokenizer and licences in ``folder``, the sample tensors in ``samples``.

        All end in a slash or are empty; ``first`` is the folder of the bundle's first graph, such as ``"model/"``,
        ``without`` a file to leave out.
        """
        manifest = self.bundle.manifest
        models = [replace(file, path=folder + file.path) for graph in self.graphs for file in graph.placed(first)]
        beside = {"LICENSES.md", *manifest.interface.files, *([manifest.labels] if manifest.labels else [])}
        places = {f"{folder}{name}": name for name in sorted(beside - {without}) if name in manifest.files}
        if manifest.samples is not None:
            names = (*manifest.samples.inputs.values(), *manifest.samples.outputs.values())
            places |= {f"{samples}{name}": name for name in names}
        return (*models, *(ProjectFile(place, self.bundle.file(name)) for place, name in places.items()))


def _runs_on_cpu(entry: GraphEntry) -> bool:
    return entry.provider.name == CPU_PROVIDER


@dataclass(frozen=True)
class Platform:
    """A kind of app build.

    ``options`` names those of `EmbedOptions` that it knows. ``targets`` are parts of the names of targets that are
    made for it; empty: it runs on any machine.
    """

    name: str
    summary: str
    options: frozenset[str]
    make: Callable[[Request], Project]
    targets: tuple[str, ...] = ()

    def check(self, options: EmbedOptions) -> None:
        """Raises ConfigError for an option of another platform."""
        if unknown := sorted(set(options.given) - self.options):
            raise ConfigError(
                f"the platform {self.name!r} has no option {', '.join(unknown)}",
                remedy=f"it knows: {', '.join(sorted(self.options)) or 'none'}",
            )

    def notes(self, target: str) -> tuple[str, ...]:
        """What to say of a package that was made for another kind of machine."""
        if not self.targets or any(part in target for part in self.targets):
            return ()
        return (
            f"the model was made for {target}: it runs, but its kernels were chosen for another processor; "
            f"--target {' or '.join(self.targets)} makes one for this platform",
        )
