"""A bundle: the folder that edgeq makes, described by ``manifest.json``.

The manifest holds no times and no absolute paths: same input, same bytes. ``report.json`` and
``report.html`` lie beside it but are not part of it, since they hold timings.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import msgspec

from edgeq.errors import ConfigError, ValidationError
from edgeq.interface import Interface
from edgeq.qtypes import NodeForecast
from edgeq.recipe import Preprocess
from edgeq.report import PlanRow, Size, decode, encode
from edgeq.source import Licence, Parity
from edgeq.target import Gates, Provider, Verification

__all__ = [
    "MANIFEST_SCHEMA",
    "Bundle",
    "Calibration",
    "Context",
    "FileEntry",
    "GraphEntry",
    "Manifest",
    "Samples",
    "TensorEntry",
    "file_entry",
    "is_plain_path",
    "read_bundle",
]

MANIFEST_SCHEMA = 1
MANIFEST = "manifest.json"
MODEL = "model.onnx"


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a file must be: its sha256 in hexadecimal and its length."""

    sha256: str
    bytes: int


class TensorEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model input or output; a dynamic dimension is its name or None."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


class Samples(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sample tensors: ``.npy`` files by tensor name, ``count`` samples stacked on a new first axis.

    ``outputs`` are the float model's. ``sqnr_db`` is, per output, how close the packaged model
    came to them when the bundle was made: what a validation must reach again. ``box_agreement`` is that for
    outputs that hold boxes, in percent: how many are the float model's, by the name of the output.
    """

    count: int
    inputs: dict[str, str]
    outputs: dict[str, str]
    sqnr_db: dict[str, float]
    box_agreement: dict[str, float] = {}


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the ranges were measured on; ``fingerprint`` is the sha256 of the data, in order."""

    description: str
    fingerprint: str
    count: int
    licence: str


class GraphEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One graph of a bundle: its file, the target it was made for, and how a session with it is made.

    All graphs of a bundle have the same inputs and outputs. ``sqnr_db`` and ``box_agreement`` are what they are in
    ``Samples`` for the first graph; ``verification`` is the target's, so that a bundle can be checked without its
    profile.
    """

    model: str
    target: str
    precision: str
    provider: Provider
    verification: Verification | None = None
    size: Size | None = None
    plan: tuple[PlanRow, ...] = ()
    forecast: tuple[NodeForecast, ...] = ()
    gates: Gates = Gates()
    sqnr_db: dict[str, float] = {}
    box_agreement: dict[str, float] = {}

    @property
    def recorded(self) -> dict[str, float]:
        """What was found of each output when the bundle was made, in dB or in percent."""
        return {**self.sqnr_db, **self.box_agreement}


class Context(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model that was compiled ahead of time for some chips; it does what ``model.onnx`` does.

    ``model`` is an ONNX file with EPContext nodes, ``data`` what they load, beside it. ``options`` are
    those of the provider, ``compiler`` names package and version. ``nodes`` counts EPContext nodes,
    ``others`` what runs beside them. ``sqnr_db`` is how close it came to ``model.onnx`` where both could
    be run (see ``note`` for where not).
    """

    model: str
    data: tuple[str, ...]
    chips: tuple[str, ...]
    architectures: tuple[str, ...]
    options: dict[str, str]
    compiler: str
    nodes: int
    others: int
    sqnr_db: float | None = None
    note: str | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a program needs to load, check and describe the bundle.

    ``files`` (paths with forward slashes, relative to the bundle), ``inputs``, ``outputs``, ``interface`` (what
    each of them means), ``samples`` and ``labels`` are filled in by ``edgeq.stages.package.write_bundle``.
    ``provider`` holds the execution provider and its options, and the session options the model was made for.
    ``forecast`` says how each node was expected to run, and ``gates`` how bad it is if some do not.
    ``fallback`` is a second graph, for devices on which that provider is missing or fails;
    ``contexts`` are compiled for single chips.
    """

    schema: int = MANIFEST_SCHEMA
    edgeq: str
    name: str
    target: str
    precision: str
    provider: Provider
    verification: Verification | None = None
    fallback: GraphEntry | None = None
    contexts: tuple[Context, ...] = ()
    task: str | None = None
    preprocess: Preprocess | None = None
    calibration: Calibration | None = None
    parity: Parity | None = None
    size: Size | None = None
    plan: tuple[PlanRow, ...] = ()
    forecast: tuple[NodeForecast, ...] = ()
    gates: Gates = Gates()
    provenance: dict[str, str] = {}
    licences: tuple[Licence, ...] = ()
    versions: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    files: dict[str, FileEntry] = {}
    inputs: tuple[TensorEntry, ...] = ()
    outputs: tuple[TensorEntry, ...] = ()
    interface: Interface = Interface()
    samples: Samples | None = None
    labels: str | None = None

    @property
    def main(self) -> GraphEntry:
        """The first graph, described as the fallback is."""
        return GraphEntry(
            model=MODEL,
            target=self.target,
            precision=self.precision,
            provider=self.provider,
            verification=self.verification,
            size=self.size,
            plan=self.plan,
            forecast=self.forecast,
            gates=self.gates,
            sqnr_db=self.samples.sqnr_db if self.samples else {},
            box_agreement=self.samples.box_agreement if self.samples else {},
        )

    @property
    def graphs(self) -> tuple[GraphEntry, ...]:
        """All graphs, the one to try first in front."""
        return (self.main,) if self.fallback is None else (self.main, self.fallback)

    def to_json(self) -> bytes:
        """UTF-8 JSON with sorted keys; the same bytes for the same manifest."""
        return encode(self)

    @classmethod
    def from_json(cls, text: bytes, *, where: str | None = None) -> Manifest:
        """Raises ConfigError for anything but a manifest of this schema."""
        return decode(text, cls, MANIFEST_SCHEMA, "manifest", where)


@dataclass(frozen=True)
class Bundle:
    """A folder whose files were found to be what its manifest says."""

    path: Path
    manifest: Manifest

    @property
    def model(self) -> Path:
        return self.path / MODEL

    def file(self, name: str) -> Path:
        """The path of a file that the manifest lists."""
        if name not in self.manifest.files:
            raise ValidationError(f"the manifest lists no file {name!r}", where=str(self.path / MANIFEST))
        return self.path / name


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Open a bundle and verify it: schema, every file's length and sha256, no path that leads outside.

    Raises:
        ConfigError: not a bundle, or its manifest is malformed or of another schema.
        ValidationError: a file is missing, changed, a symbolic link, or lies outside the bundle.
    """
    path = Path(path)
    file = path / MANIFEST
    try:
        text = file.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"not an edgeq bundle: cannot read {MANIFEST} ({error.strerror})",
            where=str(path),
            remedy="give the folder that `edgeq export` wrote",
        ) from None
    manifest = Manifest.from_json(text, where=str(file))
    named = {*(graph.model for graph in manifest.graphs), *([manifest.labels] if manifest.labels else [])}
    if manifest.samples:
        named |= {*manifest.samples.inputs.values(), *manifest.samples.outputs.values()}
    named |= manifest.interface.files
    named |= {name for context in manifest.contexts for name in (context.model, *context.data)}
    if missing := sorted(named - set(manifest.files)):
        raise ValidationError(
            f"the manifest names {', '.join(missing)}, but lists no checksum for it",
            where=str(file),
            remedy="make the package again",
        )
    for name, entry in sorted(manifest.files.items()):
        _verify(path, name, entry)
    return Bundle(path, manifest)


def file_entry(path: Path) -> FileEntry:
    """Length and sha256 of a file, read in pieces."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileEntry(sha256=digest, bytes=path.stat().st_size)


def is_plain_path(name: str) -> bool:
    """Whether a name from a file leads to a place inside the folder that it is relative to, on any system."""
    pure = PurePosixPath(name)
    plain = name == str(pure) and not pure.is_absolute() and "\\" not in name and ":" not in name
    return plain and ".." not in pure.parts and bool(pure.parts)


def _verify(folder: Path, name: str, entry: FileEntry) -> None:
    if not is_plain_path(name):
        raise ValidationError(
            f"the manifest names {name!r}, which is not a plain path inside the bundle",
            where=str(folder / MANIFEST),
            remedy="do not trust this bundle",
        )
    file = folder
    for part in PurePosixPath(name).parts:
        file = file / part
        if file.is_symlink():
            raise ValidationError(
                f"{name!r} is a symbolic link; a bundle holds plain files only",
                where=str(folder),
                remedy="do not trust this bundle, or copy it with its links resolved",
            )
    if not file.is_file():
        raise ValidationError(f"{name!r} is missing", where=str(folder), remedy="copy or make the package again")
    found = file_entry(file)
    if found != entry:
        what = (
            f"has {found.bytes} bytes instead of {entry.bytes}"
            if found.bytes != entry.bytes
            else "has another sha256 than the manifest says"
        )
        raise ValidationError(f"{name!r} {what}", where=str(folder), remedy="copy or make the package again")
