"""The documentation cannot rot: it is complete, its links and commands exist, and it says nothing of this machine."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from edgeq import load_target, target_names
from edgeq.bundle import Manifest
from edgeq.cli.main import cli
from edgeq.errors import EdgeqError
from edgeq.recipe import ImagePreprocess, Recipe, RecipeSource, TextPreprocess
from edgeq.resources import data_names
from edgeq.stages.choose.ranges import RANGE_METHODS
from edgeq.stages.export import example_names
from edgeq.target import TargetProfile

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TRACKED = ("README.md", "CHANGELOG.md", "docs/**/*.md", "examples/**/*.md", "calibration/**/*.md")
PAGES = sorted({path for pattern in TRACKED for path in ROOT.glob(pattern)})
DERIVED = {"folder", "name"}
"""Fields of a recipe that no file holds."""


def page_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def read(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def shell_lines(text: str) -> list[str]:
    """What is typed in console blocks, with continued lines joined and comments dropped."""
    joined = re.sub(r"\\\n\s*", " ", "\n".join(blocks(text, "console")))
    return [line[2:].partition("  #")[0].strip() for line in joined.splitlines() if line.startswith("$ ")]


# -- completeness


def test_the_command_reference_is_current() -> None:
    spec = importlib.util.spec_from_file_location("generate_cli", DOCS / "generate_cli.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert read("cli.md") == module.reference(), "run `make docs`"


def test_every_error_is_in_the_table_of_exit_codes() -> None:
    for kind in EdgeqError.__subclasses__():
        assert f"| {kind.exit_code} | `{kind.__name__}` |" in read("cli.md")


@pytest.mark.parametrize("name", target_names())
def test_every_target_is_described(name: str) -> None:
    precisions = ", ".join(load_target(name).precisions)
    for text in (read("targets.md"), (ROOT / "README.md").read_text(encoding="utf-8")):
        (row,) = re.findall(rf"^\| `{name}` \|.*$", text, re.MULTILINE)
        assert f"| {precisions} |" in row


def test_no_target_is_described_that_does_not_exist() -> None:
    for text in (read("targets.md"), (ROOT / "README.md").read_text(encoding="utf-8")):
        table = text[text.index("| target | for |") :].partition("\n\n")[0]
        assert set(re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)) == set(target_names())


@pytest.mark.parametrize("name", data_names("calibration"))
def test_every_recipe_is_described(name: str) -> None:
    assert f"| `{name}` |" in read("calibration.md")
    assert f"| `{name}` |" in (ROOT / "calibration" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", RANGE_METHODS)
def test_every_range_method_is_described_and_offered(name: str) -> None:
    assert f"| `{name}` |" in read("calibration.md")
    (option,) = [p for p in cli.commands["export"].params if p.name == "range_method"]
    assert isinstance(option.type, click.Choice)
    assert name in option.type.choices


@pytest.mark.parametrize("name", example_names())
def test_every_bundled_example_is_described(name: str) -> None:
    assert f"`{name}`" in read("quickstart.md")


def test_every_extra_is_described() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    table = read("quickstart.md").partition("| extra |")[2].partition("\n\n")[0]
    for extra in extras:
        assert f"`{extra}`" in table


@pytest.mark.parametrize("key", [field.name for field in msgspec.structs.fields(Manifest)])
def test_every_key_of_the_manifest_is_described(key: str) -> None:
    table = read("bundle.md").partition("## The manifest")[2].partition("\n## ")[0]
    assert f"`{key}`" in table


# -- keys of profiles and recipes, with their defaults


def keys(struct: type[msgspec.Struct], prefix: str = "") -> list[tuple[str, Any]]:
    """``(dotted key, default)`` of a struct and of the tables in it; ``NODEFAULT`` for what is required."""
    found: list[tuple[str, Any]] = []
    for field in msgspec.structs.fields(struct):
        inner = [t for t in (field.type, *getattr(field.type, "__args__", ())) if _is_table(t)]
        if inner:
            found += keys(inner[0], f"{prefix}{field.name}.")
        elif not (struct is Recipe and field.name in DERIVED):
            default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
            found.append((prefix + field.name, default))
    return found


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind not in (ImagePreprocess, TextPreprocess)


def written(default: Any) -> str | None:
    """A default as the tables write it; None where they use words of their own."""
    if default is msgspec.NODEFAULT:
        return "required"
    if default is None:
        return None
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, str):
        return f'`"{default}"`'
    if isinstance(default, tuple):
        return f"`[{', '.join(f'{x:g}' for x in default)}]`"
    return "`{}`" if default == {} else str(default)


def row_of(text: str, key: str, count: int = 1) -> list[list[str]]:
    rows = [[cell.strip() for cell in row.split(" | ")] for row in re.findall(rf"^\| `{key}` .*$", text, re.MULTILINE)]
    assert len(rows) == count, f"{key} has {len(rows)} rows"
    return rows


@pytest.mark.parametrize(("key", "default"), keys(TargetProfile), ids=str)
def test_every_key_of_a_target_is_described_with_its_default(key: str, default: Any) -> None:
    (row,) = row_of(read("targets.md"), key)
    assert written(default) in (None, row[1]), f"{key}: {row[1]} is not the default {default!r}"


def test_the_tables_of_a_target_hold_no_other_keys() -> None:
    table = read("targets.md").partition("## All keys")[2]
    assert set(re.findall(r"^\| `([\w.]+)` \|", table, re.MULTILINE)) == {key for key, _ in keys(TargetProfile)}


RECIPE_KEYS = [
    *keys(Recipe),
    *((f"preprocess.{key}", default) for kind in (ImagePreprocess, TextPreprocess) for key, default in keys(kind)),
]


@pytest.mark.parametrize(("key", "default"), RECIPE_KEYS, ids=str)
def test_every_key_of_a_recipe_is_described_with_its_default(key: str, default: Any) -> None:
    (row,) = row_of(read("calibration.md"), key)
    assert written(default) in (None, row[1]), f"{key}: {row[1]} is not the default {default!r}"


def test_the_keys_of_a_recipe_were_found() -> None:
    names = {key for key, _ in RECIPE_KEYS}
    assert {"summary", "source.path", "preprocess.crop", "preprocess.tokenizer"} <= names
    assert len(keys(RecipeSource)) == 7


# -- links, commands, code


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        goal = (page.parent / file).resolve() if file else page
        assert goal.exists(), f"{page_id(page)} links to {link}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", goal.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_every_page_can_be_reached_from_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in DOCS.glob("*.md"):
        assert f"](docs/{page.name})" in text, f"README.md does not link to docs/{page.name}"


COMMANDS = [(page_id(page), line) for page in PAGES for line in shell_lines(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{page}: {line}" for page, line in COMMANDS])
def test_commands_that_are_shown_exist(page: str, line: str) -> None:
    words = shlex.split(line)
    program = words[0].removeprefix(".venv/bin/")
    if program == "make":
        goals = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(words[1:]) <= set(goals)
    elif program == "edgeq":
        check_call(words[1:])
    elif program == "python":
        assert (ROOT / words[1]).is_file()
    else:
        assert words[:2] == ["pip", "install"], f"{page} shows {line}"


def check_call(words: list[str]) -> None:
    """The command exists and takes these options; nothing is run."""
    command: click.Command = cli
    context = click.Context(command, info_name="edgeq")
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command = command.commands[words[0]]
        words = words[1:]
        context = click.Context(command, parent=context, info_name=command.name)
    assert not isinstance(command, click.Group) or not words, f"no such command: {words}"
    command.parse_args(context, list(words))


def test_commands_that_do_not_exist_would_be_noticed() -> None:
    with pytest.raises(AssertionError):
        check_call(["quantize", "model.onnx"])
    with pytest.raises(click.NoSuchOption):
        check_call(["export", "model.onnx", "--target", "android", "--faster"])


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_python_that_is_shown_compiles(page: Path) -> None:
    for code in blocks(page.read_text(encoding="utf-8"), "python"):
        compile(code if not code.startswith("def ") else f"{code}    ...\n", page_id(page), "exec")


@pytest.mark.parametrize("page", sorted(DOCS.glob("adding_*.md")), ids=page_id)
def test_guides_end_in_a_list_of_what_to_test(page: Path) -> None:
    _, _, end = page.read_text(encoding="utf-8").partition("\n## What to test\n")
    assert len(re.findall(r"^- \[ \] ", end, re.MULTILINE)) >= 4
    assert "\n#" not in end


def test_the_picture_of_the_report_is_small() -> None:
    picture = DOCS / "images" / "report.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size < 300_000


# -- nothing of this machine


def tracked() -> list[Path]:
    found = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in found.stdout.split("\0") if name]


FOREIGN = {
    "an absolute path": re.compile(r"(?<![\w/.<>~}*-])/(?:work/|tmp/|root/|opt/|(?:home|Users)/(?!someone))\w"),
    "a package registry": re.compile("|".join(("py" + r"pi\.org", "pythonhos" + "ted", "download.py" + "torch"))),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_no_file_tells_of_a_machine_or_a_registry(what: str) -> None:
    for path in tracked():
        if path.suffix in (".jpg", ".png") or path == Path(__file__) or not path.is_file():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert not FOREIGN[what].search(line), f"{path}:{number} holds {what}: {line.strip()}"


def test_foreign_text_would_be_noticed() -> None:
    assert FOREIGN["an absolute path"].search("see /home/me/model.onnx")
    assert FOREIGN["a package registry"].search("https://py" + "pi.org/simple")
