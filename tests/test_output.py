"""Outputs appear whole or not at all, and nothing is left beside them."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from edgeq.errors import OutputError
from edgeq.output import atomic_file, atomic_folder, check_free, check_writable


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(output: AbstractContextManager[Path], text: str, error: BaseException | None = None) -> None:
    """Write a manifest (or the file itself), then fail if asked to."""
    with output as work:
        (work / "manifest.json" if work.is_dir() else work).write_text(text)
        if error is not None:
            raise error


# -- folders


def test_a_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "deep" / "bundle") as work:
        (work / "model.onnx").write_bytes(b"1")
        assert not (tmp_path / "deep" / "bundle").exists()
        assert work.parent == tmp_path / "deep"  # the same disk, or the rename would copy
    assert listing(tmp_path / "deep") == ["bundle"]
    assert stat.S_IMODE((tmp_path / "deep" / "bundle").stat().st_mode) == 0o755
    assert (tmp_path / "deep" / "bundle" / "model.onnx").read_bytes() == b"1"


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_a_failed_block_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        fill(atomic_folder(tmp_path / "bundle"), "half", error)
    assert listing(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()], ids=repr)
def test_a_failed_block_leaves_the_old_bundle(tmp_path: Path, error: BaseException) -> None:
    with atomic_folder(tmp_path / "bundle") as work:
        (work / "manifest.json").write_text("old")
    with pytest.raises(type(error)):
        fill(atomic_folder(tmp_path / "bundle", overwrite=True), "new", error)
    assert listing(tmp_path) == ["bundle"]
    assert (tmp_path / "bundle" / "manifest.json").read_text() == "old"


def test_an_existing_output_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    started = False
    with pytest.raises(OutputError, match="the output exists already") as caught, atomic_folder(tmp_path / "bundle"):
        started = True
    assert not started
    assert caught.value.where == str(tmp_path / "bundle")
    assert "--overwrite" in str(caught.value.remedy)
    assert caught.value.exit_code == 8


def test_a_bundle_is_replaced_as_a_whole(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "bundle") as work:
        (work / "manifest.json").write_text("old")
        (work / "leftover").write_text("old")
    with atomic_folder(tmp_path / "bundle", overwrite=True) as work:
        (work / "manifest.json").write_text("new")
    assert listing(tmp_path / "bundle") == ["manifest.json"]
    assert listing(tmp_path) == ["bundle"]


def test_overwrite_takes_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with atomic_folder(tmp_path / "bundle", overwrite=True) as work:
        (work / "manifest.json").write_text("new")
    assert listing(tmp_path / "bundle") == ["manifest.json"]


def test_overwrite_never_removes_what_is_no_bundle(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_text("dear")
    (tmp_path / "file").write_text("dear")
    for path in (photos, tmp_path / "file"):
        with pytest.raises(OutputError, match="is not an edgeq bundle, so --overwrite leaves it alone"):
            check_free(path, overwrite=True)
        with pytest.raises(OutputError, match="not an edgeq bundle"), atomic_folder(path, overwrite=True):
            pass
    assert (photos / "a.jpg").read_text() == (tmp_path / "file").read_text() == "dear"


@pytest.mark.parametrize("name", [".", "..", "out/..", "/"])
def test_an_output_needs_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A folder cannot take the place of the one that the program runs in."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="the output has no name of its own") as caught:
        check_free(name, overwrite=True)
    assert "--output" in str(caught.value.remedy)


def test_a_free_path_is_free(tmp_path: Path) -> None:
    check_free(tmp_path / "new")
    check_free(tmp_path / "new", overwrite=True)
    assert listing(tmp_path) == []


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_disk(*_: object, **__: object) -> None:
    raise FULL


def test_a_full_disk_while_writing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write the output: No space left on device") as caught:
        fill(atomic_folder(tmp_path / "bundle"), "half", FULL)
    assert caught.value.where == str(tmp_path / "bundle")
    assert listing(tmp_path) == []


def test_a_full_disk_at_the_last_step_leaves_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with atomic_folder(tmp_path / "bundle") as work:
        (work / "manifest.json").write_text("old")
    rename = Path.rename
    new = "manifest.json"  # only the new folder's rename fails, not the old one's
    monkeypatch.setattr(
        Path,
        "rename",
        lambda self, to: full_disk() if "new" in (self / new).read_text() else rename(self, to),
    )
    with pytest.raises(OutputError, match="No space left"):
        fill(atomic_folder(tmp_path / "bundle", overwrite=True), "new")
    assert listing(tmp_path) == ["bundle"]
    assert (tmp_path / "bundle" / "manifest.json").read_text() == "old"


def test_a_full_disk_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.mkdtemp", full_disk)
    monkeypatch.setattr("tempfile.mkstemp", full_disk)
    with pytest.raises(OutputError, match="cannot create the output: No space left"), atomic_folder(tmp_path / "b"):
        pass
    with pytest.raises(OutputError, match="cannot create the output: No space left"), atomic_file(tmp_path / "f"):
        pass
    assert listing(tmp_path) == []


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for writer in (atomic_folder, atomic_file):
        with pytest.raises(OutputError, match="cannot create the output"), writer(tmp_path / "file" / "bundle"):
            pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_parent(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    for writer in (atomic_folder, atomic_file):
        with pytest.raises(OutputError, match="cannot create the output: Permission denied"):
            fill(writer(tmp_path / "locked" / "bundle"), "new")


# -- files


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "report.html"
    with atomic_file(target) as work:
        work.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    with atomic_file(target) as work:
        work.write_text("newer")
    assert target.read_text() == "newer"
    assert listing(target.parent) == ["report.html"]


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()], ids=repr)
def test_a_failed_block_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "report.html").write_text("old")
    with pytest.raises(type(error)):
        fill(atomic_file(tmp_path / "report.html"), "half", error)
    assert listing(tmp_path) == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "old"


def test_a_full_disk_while_writing_a_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write the output: No space left"):
        fill(atomic_file(tmp_path / "f"), "half", FULL)
    assert listing(tmp_path) == []


# -- asked for before the work


def test_a_place_that_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "folder")
    check_writable(tmp_path)
    assert listing(tmp_path) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "report"):
        with pytest.raises(OutputError, match="nothing can be written") as caught:
            check_writable(place)
        assert caught.value.where == str(place)
