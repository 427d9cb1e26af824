"""What a wheel holds, and that an installed one finds its data."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import edgeq
from edgeq.errors import ProviderError

ROOT = Path(__file__).parents[1]

pytest.importorskip("hatchling")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    found = subprocess.run([*command, "-w", str(folder), str(ROOT)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    return zipfile.ZipFile(wheel).namelist()


def test_the_wheel_is_for_every_platform(wheel: Path) -> None:
    assert wheel.name == f"edgeq-{edgeq.__version__}-py3-none-any.whl"
    assert wheel.stat().st_size < 2_000_000


def test_nothing_but_the_package_lies_at_the_top(names: list[str]) -> None:
    """A package named `targets` or `calibration` would collide with whoever else has that idea."""
    assert {name.partition("/")[0] for name in names} == {"edgeq", f"edgeq-{edgeq.__version__}.dist-info"}


@pytest.mark.parametrize("folder", ["targets", "calibration"])
def test_the_data_folders_are_whole(names: list[str], folder: str) -> None:
    tracked = [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {f"edgeq/{folder}/{path.relative_to(ROOT / folder).as_posix()}" for path in tracked}
    assert len(expected) >= 4
    assert expected == {name for name in names if name.startswith(f"edgeq/{folder}/")}


def test_every_file_of_the_package_is_in_it(names: list[str]) -> None:
    here = {path.relative_to(ROOT).as_posix() for path in (ROOT / "edgeq").rglob("*") if path.is_file()}
    here = {name for name in here if "__pycache__" not in name}
    assert here <= set(names)
    assert "edgeq/py.typed" in names


def test_the_metadata(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    info = f"edgeq-{edgeq.__version__}.dist-info"
    metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert {"text", "torch", "hf", "npu", "device", "examples", "dev", "all"} <= set(metadata.get_all("Provides-Extra"))
    assert f"{info}/licenses/LICENSE" in archive.namelist()
    assert "edgeq = edgeq.cli:main" in archive.read(f"{info}/entry_points.txt").decode()


def test_an_installed_wheel_finds_its_targets_and_recipes(wheel: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(tmp_path)]
    subprocess.run([*command, str(wheel)], capture_output=True, check=True)
    code = """
import edgeq
from edgeq.recipe import load_recipe
from edgeq.resources import data_folder, data_names
print(edgeq.__file__)
print(*[edgeq.load_target(name).name for name in edgeq.target_names()])
print(*[name for name in data_names("calibration") if load_recipe(name).path.exists()])
print(data_folder("targets"))
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
    )
    package, targets, recipes, folder = found.stdout.splitlines()
    assert Path(package).is_relative_to(tmp_path)
    assert targets.split() == list(edgeq.target_names())
    assert recipes.split() == ["photos", "sentences"]
    assert Path(folder) == tmp_path / "edgeq" / "targets"


def test_an_editable_install_makes_no_other_packages_importable() -> None:
    if Path(edgeq.__file__).parent != ROOT / "edgeq":
        pytest.skip("edgeq is not installed from this checkout")
    code = "import importlib.util as u; print([n for n in ('targets', 'calibration', 'tests') if u.find_spec(n)])"
    settings = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}  # it would hide the install
    found = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT / "docs",
        env=settings,
    )
    assert found.stdout.strip() == "[]"


def test_an_editable_install_puts_no_folder_in_the_way_of_the_package(tmp_path: Path) -> None:
    """A folder `edgeq` in site-packages, even of data alone, is found before the checkout and hides it."""
    pytest.importorskip("editables")
    code = f"from hatchling.build import build_editable; print(build_editable({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT)
    (made,) = tmp_path.glob("*.whl")
    assert not [name for name in zipfile.ZipFile(made).namelist() if name.startswith("edgeq/")]


@pytest.mark.slow
def test_a_wheel_carries_the_runner_if_it_was_made(tmp_path: Path) -> None:
    """Git leaves the binary out, a wheel does not; installed, it may be run, and no compiler is asked for."""
    from edgeq.devices import programs

    abi = programs.host_abi()
    if abi is None:
        pytest.skip("the native runner runs on Linux on x86-64 and aarch64")
    source = tmp_path / "source"
    for name in ("edgeq", "targets", "calibration"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "bin"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", ".gitignore"):
        shutil.copy2(ROOT / name, source / name)
    made = source / programs.packaged_runner(abi).relative_to(ROOT)
    try:
        programs.compile_runner(abi, made)
    except ProviderError as error:
        pytest.skip(error.what)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    offline = ["--no-deps", "--no-index"]
    subprocess.run([*pip, "wheel", *offline, "--no-build-isolation", "-w", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", *offline, "--target", str(site), str(wheel)], check=True)
    code = f"from edgeq.devices.programs import find_runner; print(find_runner({abi!r}))"
    environment = {**os.environ, "PYTHONPATH": str(site), "PATH": "", "EDGEQ_CACHE": str(tmp_path / "cache")}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
    )
    installed = Path(found.stdout.strip())
    assert installed.is_relative_to(site)
    said = subprocess.run([str(installed)], capture_output=True, text=True, check=False).stderr
    assert said.startswith("usage: edgeq-runner")
