"""Peak memory of loading and running one model, in a process of its own so that nothing else counts."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edgeq.errors import ModelError
from edgeq.report import Memory

if TYPE_CHECKING:
    from edgeq.target import Provider

__all__ = ["measure_memory"]

_TIMEOUT_S = 600


def measure_memory(
    model: str | os.PathLike[str],
    inputs: Mapping[str, np.ndarray],
    *,
    provider: Provider | None = None,
    threads: int = 1,
) -> Memory:
    """Peak resident memory of a fresh process that loads ``model`` from its file and runs ``inputs`` once.

    Raises:
        ModelError: the process failed; the text is its own.
    """
    with tempfile.TemporaryDirectory(prefix="edgeq-") as folder:
        names = {}
        for index, (name, array) in enumerate(inputs.items()):
            names[name] = str(Path(folder) / f"{index}.npy")
            np.save(names[name], array, allow_pickle=False)
        job = {"model": str(Path(model).resolve()), "inputs": names, "threads": threads}
        job["provider"] = msgspec.to_builtins(provider) if provider else None
        try:
            child = subprocess.run(
                [sys.executable, "-m", "edgeq.stages.run.memory"],
                input=msgspec.json.encode(job),
                env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
                capture_output=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ModelError(f"the model did not run once within {_TIMEOUT_S} s", where=os.fspath(model)) from None
    # The answer is the last line: a provider may print to stdout before.
    lines = child.stdout.strip().splitlines()
    if child.returncode or not lines:
        said = child.stderr.decode(errors="replace").strip().splitlines()
        reason = said[-1][:300] if said else "no message"
        raise ModelError(f"the process that measures memory ended with {child.returncode}: {reason}")
    return msgspec.json.decode(lines[-1], type=Memory)


def _peak_mb() -> float:
    """Peak resident memory of this process in MB (10^6 bytes)."""
    try:
        # ru_maxrss is inherited from the parent over exec on Linux; VmHWM is this program's own.
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _main() -> None:
    from edgeq.runtime import open_session, session_options
    from edgeq.target import Provider

    job = msgspec.json.decode(sys.stdin.buffer.read())
    provider = msgspec.convert(job["provider"], Provider | None)
    inputs = {name: np.load(path, allow_pickle=False) for name, path in job["inputs"].items()}
    baseline = _peak_mb()
    options = session_options(threads=job["threads"], config=provider.session if provider else None)
    with open_session(job["model"], options, provider) as session:
        session.run(None, inputs)
    answer = Memory(peak_mb=round(_peak_mb(), 2), baseline_mb=round(baseline, 2))
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")


if __name__ == "__main__":
    _main()
