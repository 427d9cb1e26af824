"""A Swift compiler, with stand-ins for what only Apple's systems have.

`swiftc` on the path, or the command in EDGEQ_SWIFTC and in EDGEQ_SWIFT_RUN what runs programs of it. Debian has one
from trixie on (swiftlang).
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
STAND_INS = ("OnnxRuntimeBindings", "CoreGraphics")
BUNDLE = "import Foundation\nextension Foundation.Bundle { static var module: Bundle { Bundle.main } }\n"
"""What the package manager writes for a target with resources."""


def swiftc(*arguments: str | Path) -> None:
    found = os.environ.get("EDGEQ_SWIFTC") or shutil.which("swiftc")
    if not found:
        pytest.skip("there is no Swift compiler: swiftc on the path, or the command in EDGEQ_SWIFTC")
    command = [*shlex.split(found), "-swift-version", "5", *(str(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def check(project: Path, folder: Path) -> None:
    """Compile the module and its tests, without a warning."""
    folder.mkdir()
    for name in STAND_INS:
        swiftc(
            "-emit-module", "-module-name", name, "-o", folder / f"{name}.swiftmodule", HERE / "swift" / f"{name}.swift"
        )
    (folder / "Bundle.swift").write_text(BUNDLE)
    (sources,) = (project / "Sources").iterdir()
    shared = ("-warnings-as-errors", "-I", folder)
    module = (
        "-enable-testing",
        "-emit-module",
        "-module-name",
        sources.name,
        "-o",
        folder / f"{sources.name}.swiftmodule",
    )
    swiftc(*shared, *module, *sources.glob("*.swift"), folder / "Bundle.swift")
    (tests,) = (project / "Tests").iterdir()
    swiftc(*shared, "-typecheck", "-module-name", "Tests", *tests.glob("*.swift"), folder / "Bundle.swift")
