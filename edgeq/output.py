"""Outputs appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeq.errors import OutputError

__all__ = ["atomic_file", "atomic_folder", "check_free", "check_writable"]


def check_free(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Raise OutputError unless a bundle may be written at ``path``: before an hour's work, not after it."""
    path = Path(path)
    if path.name in ("", ".."):
        raise OutputError(
            "the output has no name of its own", where=str(path), remedy="give --output a folder, such as out/model"
        )
    if path.exists() and not overwrite:
        raise OutputError("the output exists already", where=str(path), remedy="give another --output, or --overwrite")
    if path.exists() and not (path.is_dir() and (not any(path.iterdir()) or (path / "manifest.json").exists())):
        raise OutputError(
            "the output exists and is not an edgeq bundle, so --overwrite leaves it alone",
            where=str(path),
            remedy="give another --output, or remove it yourself",
        )


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Raise OutputError unless files may be put into ``folder``, or into what it would be made in: before the work."""
    folder = Path(folder).absolute()
    there = folder
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise OutputError(
            f"nothing can be written to {there}: {error.strerror}",
            where=str(folder),
            remedy="give another place for the output",
        ) from None


@contextmanager
def atomic_folder(
    path: str | os.PathLike[str], *, overwrite: bool = False, instead: Callable[[], Path | None] | None = None
) -> Iterator[Path]:
    """A new folder to fill; it takes the name ``path`` only when the block ends without an error.

    ``instead`` is asked then: where it returns another path beside it, the folder takes that name, and
    replaces what is there.

    Raises:
        OutputError: ``path`` exists and ``overwrite`` is false, or it cannot be written.
    """
    path = Path(path)
    check_free(path, overwrite=overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise OutputError(f"cannot create the output: {error.strerror}", where=str(path)) from None
    try:
        yield work
        work.chmod(0o755)
        _put_in_place(work, (instead() if instead is not None else None) or path)
    except OSError as error:
        raise OutputError(f"cannot write the output: {error.strerror or error}", where=str(path)) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _put_in_place(work: Path, path: Path) -> None:
    """Rename ``work`` to ``path``. The old bundle goes only when the new one stands."""
    if not path.exists():
        work.rename(path)
        return
    old = work.with_name(f"{work.name}.old")
    path.rename(old)
    try:
        work.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file beside ``path``, moved over it only when the block ends without an error."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise OutputError(f"cannot create the output: {error.strerror}", where=str(path)) from None
    work = Path(name)
    try:
        yield work
        work.chmod(0o644)
        work.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write the output: {error.strerror or error}", where=str(path)) from None
    finally:
        work.unlink(missing_ok=True)
