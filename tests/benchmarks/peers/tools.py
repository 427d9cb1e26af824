"""Peers as data: a TOML file each says what to install and which methods there are; one process makes one model."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

OWN = "edgeq"
"""The tool that runs in this process's environment."""


@dataclass(frozen=True)
class Method:
    """One row's way to quantize: ``name`` in the table, ``call`` for the adapter.

    ``precisions`` by family of networks: what it can do at all. ``weights_only`` leaves activations in floats.
    """

    tool: Tool
    name: str
    call: str
    what: str
    precisions: Mapping[str, tuple[str, ...]]
    weights_only: bool = False


@dataclass(frozen=True)
class Tool:
    """One package with pinned requirements in an environment of its own."""

    name: str
    package: str
    adapter: str
    requirements: tuple[str, ...]
    note: str = ""

    def python(self, environments: Path) -> Path:
        """The interpreter of the tool's environment, which is made if it is not there.

        Raises:
            RuntimeError: pip failed; the text is the last line of what it said.
        """
        if self.name == OWN:
            return Path(sys.executable)
        folder = environments / self.name
        stamp = folder / "requirements.txt"
        wanted = "\n".join(self.requirements) + "\n"
        if not stamp.exists() or stamp.read_text() != wanted:
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
            command = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", *self.requirements]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(last_line(done.stderr))
            stamp.write_text(wanted)
        return folder / "bin/python"

    def version(self, environments: Path) -> str:
        """The installed version, as its metadata says it; empty if it is not installed."""
        if self.name == OWN:
            return importlib.metadata.version(OWN)
        folders = (environments / self.name).glob("lib/python*/site-packages")
        found = importlib.metadata.distributions(name=self.package, path=[str(folder) for folder in folders])
        return next((each.version for each in found), "")


def load_methods(folder: Path = HERE) -> dict[str, Method]:
    """All methods of all TOML files, by name, in the order of the files' names."""
    methods: dict[str, Method] = {}
    for file in sorted(folder.glob("*.toml")):
        table = tomllib.loads(file.read_text(encoding="utf-8"))
        tool = Tool(file.stem, table["package"], table["adapter"], tuple(table["requirements"]), table.get("note", ""))
        for row in table["method"]:
            precisions = {family: tuple(row.get(family, ())) for family in ("cnn", "transformer")}
            weights_only = row.get("weights_only", False)
            method = Method(tool, row["name"], row["call"], row["what"], precisions, weights_only)
            if method.name in methods:
                raise ValueError(f"two methods are called {method.name}")
            methods[method.name] = method
    return methods


@dataclass(frozen=True)
class Limit:
    """What one process may take: CPU seconds of each of its processes, wall seconds and MB (10^6 bytes) resident."""

    cpu_s: float = 1800
    wall_s: float = 7200
    mb: float = 8000


@dataclass(frozen=True)
class Cost:
    """User and system seconds with all children, wall seconds, and the peak of resident MB of the process group."""

    cpu_s: float
    wall_s: float
    peak_mb: float


def run(command: list[str], folder: Path, limit: Limit, *, threads: int = 1) -> tuple[Cost, str | None]:
    """One process within its limits, its output in ``folder/log.txt``; None, or its error in one line."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment |= {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}
    binaries = str(Path(command[0]).parent)  # compilers that a tool brings along (ninja)
    environment["PATH"] = f"{binaries}{os.pathsep}{environment.get('PATH', '')}"
    start, peak, stopped = time.perf_counter(), 0.0, ""
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        resource.prlimit(process.pid, resource.RLIMIT_CPU, (int(limit.cpu_s), int(limit.cpu_s) + 5))
        while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            peak = max(peak, resident_mb(process.pid))
            if peak > limit.mb:
                stopped = f"stopped: more than {limit.mb:g} MB"
            elif time.perf_counter() - start > limit.wall_s:
                stopped = f"stopped: more than {limit.wall_s:g} s"
            if stopped:
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.25)  # looking through all processes costs time of the same cores
        process.returncode = os.waitstatus_to_exitcode(ended[1])
    usage = ended[2]
    cost = Cost(round(usage.ru_utime + usage.ru_stime, 1), round(time.perf_counter() - start, 1), round(peak))
    if process.returncode < 0 and not stopped:
        signalled = signal.Signals(-process.returncode)
        over = signalled == signal.SIGXCPU
        stopped = f"stopped: more than {limit.cpu_s:g} CPU s" if over else f"ended by {signalled.name}"
    said = (folder / "log.txt").read_text(errors="replace")
    return cost, stopped or (last_line(said) if process.returncode else None)


def resident_mb(group: int) -> float:
    """Resident memory of the group's processes in MB; shared pages count once for each."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:  # the process group
                total += int(fields[21]) * resource.getpagesize()
        except (OSError, IndexError):
            continue  # it ended meanwhile
    return total / 1e6


def last_line(said: str) -> str:
    """What a traceback ends with, as ``one_line``."""
    lines = [line.strip() for line in said.strip().splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit|Interrupt)\b", line)]
    return one_line((errors or lines or ["it said nothing"])[-1])


def one_line(text: str) -> str:
    """The text's first 240 characters without line breaks, colours and folders of this machine."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", " ".join(text.split()))
    return re.sub(r"(/[\w.+-]+){2,}/", "", text)[:240]


def quantize(method: Method, python: Path, task: Mapping[str, Any], limit: Limit) -> tuple[Cost, str | None]:
    """Run the tool's adapter on ``task``, whose keys are those of ``adapters/common.py``'s Task."""
    command = [str(python), str(HERE / "adapters" / method.tool.adapter), method.call, json.dumps(task)]
    return run(command, Path(task["output"]).parent, limit)
