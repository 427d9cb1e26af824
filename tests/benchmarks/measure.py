"""What a fresh process costs, and how fast models run next to one another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median

QUANTIZERS = Path(__file__).with_name("quantizers.py")


@dataclass(frozen=True)
class Cost:
    """CPU seconds (user and system, imports included) and peak resident memory in MB (10^6 bytes) of one process.

    ``prepare_s`` are CPU seconds of preparation, which are not in ``cpu_s``.
    """

    cpu_s: float
    peak_mb: float
    prepare_s: float = 0.0


def quantize(method: str, model: Path, output: Path, recipe: Path, *, cache: Path, repeats: int = 1) -> Cost:
    """Run ``quantizers.py`` in a process of its own, ``repeats`` times; the median of each figure.

    ``cache`` keeps compiled Python files, so that nobody pays for compiling what an installation compiles once.

    Raises:
        RuntimeError: the process failed; the text is the end of what it said.
    """
    costs = [_run([method, str(model), str(output), str(recipe)], cache) for _ in range(repeats)]
    cpu_s, prepare_s = (round(median(getattr(c, name) for c in costs), 2) for name in ("cpu_s", "prepare_s"))
    return Cost(cpu_s, round(median(c.peak_mb for c in costs)), prepare_s)


def compile_imports(cache: Path) -> None:
    """Import everything once, so that no measured process compiles Python files."""
    _run(["imports"], cache)


def _run(arguments: list[str], cache: Path) -> Cost:
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "PYTHONPYCACHEPREFIX": str(cache)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    said = cache.with_suffix(".log")
    with said.open("w+") as log:
        process = subprocess.Popen(
            [sys.executable, str(QUANTIZERS), *arguments], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        # Not the process's own clock: this one counts its end, too.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    lines = said.read_text(errors="replace").strip().splitlines()
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}:\n" + "\n".join(lines[-8:]))
    answer = json.loads(lines[-1])
    return Cost(usage.ru_utime + usage.ru_stime - answer["prepare_s"], answer["peak_mb"], answer["prepare_s"])
