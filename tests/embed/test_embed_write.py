"""A project on disk: whole or not at all, the same again, and what the user changed stays the user's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeq.embedding import EmbedOptions
from edgeq.errors import ConfigError, OutputError
from edgeq.stages.embed import write
from edgeq.stages.embed.project import Project, ProjectFile
from edgeq.stages.embed.write import RECORD, Changes, Record, read_record, write_project


def project(**files: str) -> Project:
    """``a__b`` is the file ``a/b``."""
    named = {name.replace("__", "/"): text.encode() for name, text in files.items()}
    return Project(tuple(ProjectFile(name, content) for name, content in named.items()))


def put(folder: Path, **files: str) -> Changes:
    earlier = read_record(folder, "test")
    return write_project(folder, project(**files), Record(platform="test", options=EmbedOptions()), earlier)


def texts(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != RECORD)
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def test_the_first_time_all_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "app" / "module"
    assert put(folder, a="1", src__b="2").written == ["a", "src/b"]
    assert texts(folder) == {"a": "1", "src/b": "2"}
    assert sorted(json.loads((folder / RECORD).read_text())["files"]) == ["a", "src/b"]
    assert [path.name for path in folder.parent.iterdir()] == ["module"]


def test_the_same_again_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "module"
    put(folder, a="1")
    before = (folder / RECORD).read_bytes()
    assert put(folder, a="1") == Changes(unchanged=["a"])
    assert (folder / RECORD).read_bytes() == before


def test_files_that_were_not_edited_are_brought_up_to_date(tmp_path: Path) -> None:
    folder = tmp_path / "module"
    put(folder, a="1", b="1", old__c="1")
    (folder / "own.txt").write_text("mine")
    changes = put(folder, a="2", b="1", d="1")
    assert changes == Changes(written=["a", "d"], unchanged=["b"], removed=["old/c"])
    assert texts(folder) == {"a": "2", "b": "1", "d": "1", "own.txt": "mine"}
    assert not (folder / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["module"]


def test_edited_files_are_kept_and_the_new_version_lies_beside_them(tmp_path: Path) -> None:
    folder = tmp_path / "module"
    put(folder, a="1", b="1", c="1")
    for name in "abc":
        (folder / name).write_text("mine")
    changes = put(folder, a="2", b="1")
    assert changes == Changes(kept=["a", "b", "c"], conflicts=["a"])
    assert texts(folder) == {"a": "mine", "a.new": "2", "b": "mine", "c": "mine"}
    # Nothing new since then: the same files are still the user's, and no conflict is told twice.
    assert put(folder, a="2", b="1") == Changes(kept=["a", "b"])
    assert texts(folder)["a.new"] == "2"
    # The user takes the new version over: it is edgeq's again, and its copy goes.
    (folder / "a").write_text("2")
    assert put(folder, a="2", b="1") == Changes(unchanged=["a"], kept=["b"])
    assert "a.new" not in texts(folder)
    assert put(folder, a="3", b="1").written == ["a"]


def test_a_new_file_does_not_replace_one_of_the_user(tmp_path: Path) -> None:
    folder = tmp_path / "module"
    put(folder, a="1")
    (folder / "b").write_text("mine")
    (folder / "c.new").write_text("mine")
    assert put(folder, a="1", b="2", c="1").conflicts == ["b"]
    assert texts(folder) == {"a": "1", "b": "mine", "b.new": "2", "c": "1", "c.new": "mine"}


def test_a_removed_file_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "module"
    put(folder, a="1", b="1")
    (folder / "a").unlink()
    assert put(folder, a="1", b="1") == Changes(written=["a"], unchanged=["b"])


def test_an_interrupted_run_does_not_look_like_an_edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "module"
    put(folder, a="1", b="1")
    moved = write._move

    def interrupt(source: Path, goal: Path) -> None:
        if goal.name == "b":
            raise KeyboardInterrupt
        moved(source, goal)

    monkeypatch.setattr(write, "_move", interrupt)
    with pytest.raises(KeyboardInterrupt):
        put(folder, a="2", b="2")
    monkeypatch.undo()
    assert texts(folder) == {"a": "2", "b": "1"}
    assert put(folder, a="3", b="3").written == ["a", "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["module"]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(OutputError, match="was not written by edgeq embed"):
        put(tmp_path, a="1")
    with pytest.raises(OutputError):
        put(tmp_path / "mine", a="1")
    assert texts(tmp_path) == {"mine": "mine"}


def test_a_project_of_another_platform_is_left_alone(tmp_path: Path) -> None:
    put(tmp_path / "module", a="1")
    with pytest.raises(OutputError, match="a project for test, not for other"):
        read_record(tmp_path / "module", "other")


def test_links_are_not_written_through(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "module", tmp_path / "elsewhere"
    put(folder, src__a="1", b="1")
    (folder / "src" / "a").unlink()
    (folder / "src").rmdir()
    elsewhere.mkdir()
    (folder / "src").symlink_to(elsewhere)
    with pytest.raises(OutputError, match="symbolic link"):
        put(folder, src__a="2")
    assert not list(elsewhere.iterdir())
    (folder / "src").unlink()
    (folder / "b").unlink()
    (elsewhere / "b").write_text("mine")
    (folder / "b").symlink_to(elsewhere / "b")
    assert put(folder, src__a="1", b="2").conflicts == ["b"]
    assert (elsewhere / "b").read_text() == "mine"


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "C:x"])
def test_a_record_that_leads_outside_is_refused(tmp_path: Path, path: str) -> None:
    folder = tmp_path / "module"
    put(folder, a="1")
    table = json.loads((folder / RECORD).read_text())
    table["files"][path] = "0" * 64
    (folder / RECORD).write_text(json.dumps(table))
    with pytest.raises(OutputError, match="not a plain path"):
        put(folder, a="1")


def test_a_broken_record_is_an_error(tmp_path: Path) -> None:
    put(tmp_path / "module", a="1")
    (tmp_path / "module" / RECORD).write_text("{}")
    with pytest.raises(ConfigError, match="list of generated files"):
        put(tmp_path / "module", a="1")


def test_options_hold_from_run_to_run() -> None:
    earlier = EmbedOptions(name="A", bench=True)
    assert EmbedOptions(name="B").over(earlier) == EmbedOptions(name="B", bench=True)
    assert EmbedOptions(bench=False).over(earlier) == EmbedOptions(name="A", bench=False)


@pytest.mark.parametrize(
    "options", [{"name": "a b"}, {"name": 'x"'}, {"name": "1a"}, {"package": "a;b"}, {"format": "tflite"}]
)
def test_options_that_code_cannot_hold_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        EmbedOptions(**options)  # type: ignore[arg-type]
