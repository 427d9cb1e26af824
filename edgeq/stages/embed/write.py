"""Puts a project on disk, and a newer one over it: what the user changed stays the user's.

``.edgeq.json`` lists the generated files with the sha256 of what edgeq wrote. A file whose sha256 is another has
been edited: it is kept, and if the template's result is not what it was, the new version is put beside it as
``NAME.new``. A file that is generated no longer is removed unless it was edited. All else in the folder is not
edgeq's and is never touched.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from edgeq import __version__
from edgeq.bundle import file_entry, is_plain_path
from edgeq.embedding import EmbedOptions
from edgeq.errors import OutputError
from edgeq.output import atomic_file, atomic_folder
from edgeq.report import decode, encode
from edgeq.stages.embed.project import Project, ProjectFile

__all__ = ["RECORD", "Changes", "Record", "made_files", "read_record", "write_project"]

RECORD = ".edgeq.json"
_SCHEMA = 1


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What edgeq knows of a project that it wrote.

    ``files`` holds the sha256 of each generated file, ``made`` what some of them were made from. ``writing`` holds
    those of files that were about to be written when the record was, so that an interrupted run does not look like
    the user's edits. ``new`` names the files that have a newer version beside them.
    """

    schema: int = _SCHEMA
    edgeq: str = __version__
    platform: str
    options: EmbedOptions
    files: dict[str, str] = {}
    made: dict[str, str] = {}
    writing: dict[str, str] = {}
    new: tuple[str, ...] = ()


@dataclass
class Changes:
    """What becomes of the files of a project, by path; see ``edgeq.embedding.Embedded``."""

    written: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


def read_record(folder: Path, platform: str) -> Record | None:
    """What ``folder`` was generated from; None if it does not exist or is empty.

    Raises:
        OutputError: the folder holds something else, or a project for another platform.
        ConfigError: its record is malformed.
    """
    file = folder / RECORD
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return None
        raise OutputError(
            "the output exists and was not written by edgeq embed, so it is left alone",
            where=str(folder),
            remedy="give a folder that is new or empty, such as a module of its own beside your app",
        ) from None
    except OSError as error:
        raise OutputError(f"cannot read the output: {error.strerror}", where=str(file)) from None
    record: Record = decode(text, Record, _SCHEMA, "list of generated files", str(file))
    if record.platform != platform:
        raise OutputError(
            f"the output holds a project for {record.platform}, not for {platform}",
            where=str(folder),
            remedy="give another folder",
        )
    if strange := next((path for path in (*record.files, *record.new) if not is_plain_path(path)), None):
        raise OutputError(
            f"the list of generated files names {strange!r}, which is not a plain path inside the folder",
            where=str(file),
            remedy="do not trust this folder",
        )
    return record


def made_files(folder: Path, earlier: Record | None) -> dict[str, Path]:
    """Files of the project that are as edgeq made them, by what they were made from (`ProjectFile.made_from`)."""
    if earlier is None:
        return {}
    kept = ((made, path) for path, made in earlier.made.items() if path in earlier.files)
    return {made: folder / path for made, path in kept if _found(folder / path) == earlier.files[path]}


def write_project(folder: Path, project: Project, record: Record, earlier: Record | None) -> Changes:
    """Write all files of ``project``; ``record`` says what it is made for, ``earlier`` what lies there already.

    Raises:
        OutputError: the folder cannot be written, or a folder in it is a symbolic link.
    """
    digests = {file.path: file.entry.sha256 for file in project.files}
    made = {file.path: file.made_from for file in project.files if file.made_from is not None}
    record = msgspec.structs.replace(record, files=digests, made=made)
    if earlier is None:
        with atomic_folder(folder, overwrite=True) as work:
            for file in project.files:
                _put(file, work / file.path)
            (work / RECORD).write_bytes(encode(record))
        return Changes(written=sorted(digests))
    try:
        return _update(folder, project, record, earlier)
    except OSError as error:
        raise OutputError(f"cannot write the project: {error.strerror or error}", where=str(folder)) from None


def _update(folder: Path, project: Project, record: Record, earlier: Record) -> Changes:
    changes = _decide(folder, record.files, earlier)
    by_path = {file.path: file for file in project.files}
    with _beside(folder) as work:
        for path in (*changes.written, *changes.conflicts):
            _put(by_path[path], work / path)
        writing = {path: record.files[path] for path in changes.written}
        _write_record(folder, msgspec.structs.replace(earlier, writing=writing))
        for path in changes.written:
            _move(work / path, folder / path)
        for path in changes.conflicts:
            _move(work / path, _new_version(folder, path))
    for path in changes.removed:
        _remove(folder, path)
    new = {*earlier.new, *changes.conflicts} & set(changes.kept)
    for path in set(earlier.new) - new:
        _new_version(folder, path).unlink(missing_ok=True)
    _write_record(folder, msgspec.structs.replace(record, new=tuple(sorted(new))))
    return changes


def _decide(folder: Path, digests: Mapping[str, str], earlier: Record) -> Changes:
    changes = Changes()
    for path, digest in sorted(digests.items()):
        _refuse_linked_folders(folder, path)
        found = _found(folder / path)
        if found == digest:
            changes.unchanged.append(path)
        elif found is None or found in (earlier.files.get(path), earlier.writing.get(path)):
            changes.written.append(path)
        else:
            changes.kept.append(path)
            if digest != earlier.files.get(path):
                changes.conflicts.append(path)
    for path, digest in sorted(earlier.files.items()):
        if path in digests or (found := _found(folder / path)) is None:
            continue
        _refuse_linked_folders(folder, path)
        (changes.removed if found == digest else changes.kept).append(path)
    return changes


def _found(file: Path) -> str | None:
    """The sha256 of a file, ``""`` for what is no plain file (so that it counts as edited), None if there is none."""
    if file.is_symlink() or (file.exists() and not file.is_file()):
        return ""
    return file_entry(file).sha256 if file.exists() else None


def _refuse_linked_folders(folder: Path, path: str) -> None:
    for parent in (folder / path).parents:
        if parent == folder:
            return
        if parent.is_symlink():
            raise OutputError(
                "a folder of the project is a symbolic link, so edgeq does not write through it",
                where=str(parent),
                remedy="replace it by a folder, or give another output",
            )


def _new_version(folder: Path, path: str) -> Path:
    return folder / f"{path}.new"


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _put(file: ProjectFile, goal: Path) -> None:
    goal.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(file.content, bytes):
        goal.write_bytes(file.content)
    else:
        shutil.copyfile(file.content, goal)


def _move(source: Path, goal: Path) -> None:
    goal.parent.mkdir(parents=True, exist_ok=True)
    source.replace(goal)


def _remove(folder: Path, path: str) -> None:
    """Remove a file and the folders that are empty then."""
    (folder / path).unlink()
    for parent in (folder / path).parents:
        if parent == folder:
            return
        with suppress(OSError):
            parent.rmdir()


def _write_record(folder: Path, record: Record) -> None:
    with atomic_file(folder / RECORD) as file:
        file.write_bytes(encode(record))
