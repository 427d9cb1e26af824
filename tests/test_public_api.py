"""The Python API: its names, its signatures, its agreement with the command line, and what importing it costs."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys

import pytest

import edgeq
from edgeq.cli.main import cli

HEAVY = ("numpy", "onnx", "onnx_ir", "onnxruntime", "torch", "transformers", "PIL", "rich", "jinja2", "msgspec")
BUDGET_S = 0.3
"""CPU time that importing edgeq, or `edgeq --help`, may take beyond a bare interpreter."""


def test_the_public_names() -> None:
    assert edgeq.__all__ == [
        "ContractError",
        "EdgeqError",
        "GateError",
        "__version__",
        "compare",
        "embed",
        "export",
        "load_recipe",
        "load_target",
        "read_bundle",
        "run",
        "run_on_devices",
        "target_names",
    ]
    assert dir(edgeq) == edgeq.__all__
    for name in edgeq.__all__:
        assert getattr(edgeq, name) is not None


def test_the_verbs_are_functions_even_after_the_stages_are_imported() -> None:
    import edgeq.pipeline

    assert inspect.isfunction(edgeq.embed)
    assert inspect.isfunction(edgeq.export)
    assert inspect.isfunction(edgeq.run)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'edgeq' has no attribute 'quantise'"):
        edgeq.quantise  # noqa: B018


@pytest.mark.parametrize(
    "name",
    [
        *("compare", "embed", "export", "run", "run_on_devices"),
        *("load_target", "load_recipe", "read_bundle", "target_names"),
    ],
)
def test_every_function_is_documented_and_typed(name: str) -> None:
    function = getattr(edgeq, name)
    assert function.__doc__
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty
        assert parameter.kind is not inspect.Parameter.VAR_KEYWORD


@pytest.mark.parametrize("name", ["compare", "embed", "export", "run"])
def test_every_argument_is_explained(name: str) -> None:
    function = getattr(edgeq, name)
    for parameter in inspect.signature(function).parameters:
        assert f"        {parameter}: " in str(function.__doc__), f"edgeq.{name} does not explain {parameter}"


@pytest.mark.parametrize("verb", ["embed", "export"])
def test_the_command_line_and_the_function_offer_the_same(verb: str) -> None:
    """One story told twice: whatever one can ask for, the other can, by the same name."""
    (command,) = (command for name, command in cli.commands.items() if name == verb)
    options = {str(parameter.name) for parameter in command.params}
    arguments = set(inspect.signature(getattr(edgeq, verb)).parameters)
    only_there = {"json_output", "verbose", "no_cache"}  # how to print, and a default that the function lacks
    only_here = {"example_inputs", "progress"}  # objects
    assert {name.removeprefix("no_") for name in options - only_there} == arguments - only_here


@pytest.mark.parametrize("statement", ["import edgeq", "import edgeq.cli"])
def test_importing_loads_nothing_heavy(statement: str) -> None:
    code = f"import sys, json; {statement}; print(json.dumps(sorted(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(found.stdout)}
    assert loaded.isdisjoint(HEAVY)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom edgeq.cli import main\nsys.argv = ['edgeq', 'export', '--help']\n"
        "try: main()\nexcept SystemExit: print('LOADED', *sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in found.stdout.rpartition("LOADED")[2].split()}
    assert "click" in loaded
    assert loaded.isdisjoint(HEAVY)


def cpu_seconds(*arguments: str) -> float:
    """User and system time of one process: unlike wall time, a busy machine changes it little."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="needs the resource usage of a child")
@pytest.mark.parametrize("arguments", [("-c", "import edgeq"), ("-m", "edgeq", "--help")], ids=["import", "help"])
def test_importing_costs_next_to_nothing(arguments: tuple[str, ...]) -> None:
    costs = []
    for _ in range(6):
        costs.append(cpu_seconds(*arguments) - cpu_seconds("-c", "pass"))
        if min(costs) < BUDGET_S:
            return
    pytest.fail(f"{' '.join(arguments)} costs {min(costs):.2f} s of CPU time beyond a bare interpreter")


def test_telemetry_is_off_after_the_import() -> None:
    code = "import os, edgeq; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    bare = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=bare)
    assert found.stdout.strip() == "1"
