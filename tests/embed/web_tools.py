"""node, npm and a browser: what builds generated packages and opens their pages; tests skip where they are missing."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

HERE = Path(__file__).parent


def require(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program}: apt-get install nodejs npm chromium")


def npm(folder: Path, *arguments: str) -> None:
    done = subprocess.run(["npm", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def page(project: Path, query: list[tuple[str, str]]) -> dict[str, Any]:
    require("chromium")
    npm(project, "install", "--no-save", "--no-audit", "--no-fund", "playwright-core@1.65.1")
    command = ["node", str(HERE / "drive_page.mjs"), str(project), str(shutil.which("chromium")), urlencode(query)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))
