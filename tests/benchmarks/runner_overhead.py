"""The native runner beside Python's ONNX Runtime: `python tests/benchmarks/runner_overhead.py BUNDLE`.

Processes of both take turns, P R R P: each runs the bundle's model on its first sample, one thread, with the same
warm-up and for the same time. What is compared are medians, a process each; docs/devices.md has the figures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from edgeq.bundle import Bundle, read_bundle
from edgeq.comparison import compare_with_stored
from edgeq.devices import Entry, Job
from edgeq.devices.here import LocalDevice
from edgeq.stages.run.latency import Timing, take_turns
from edgeq.stages.run.validate import load_samples

WARMUP_S = 0.3


def in_python(bundle: Bundle, seconds: float) -> dict[str, list[float]]:
    """Times in ms of a process that was started for this."""
    timing = Timing(1, warmup_s=WARMUP_S, seconds=seconds)
    inputs = load_samples(bundle)[0][0]
    with take_turns({"one": bundle.model}, inputs, provider=bundle.manifest.provider, timing=timing) as lanes:
        return {"wall": lanes["one"].wall, "cpu": lanes["one"].cpu}


def python_process(bundle: Bundle, seconds: float) -> dict[str, list[float]]:
    command = [sys.executable, __file__, str(bundle.path), "--seconds", str(seconds), "--child"]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def runner_process(bundle: Bundle, seconds: float) -> dict[str, list[float]]:
    feed = load_samples(bundle)[0][0]
    job = Job((Entry("one", bundle, bundle.manifest.main),), (feed,), warmup_s=WARMUP_S, seconds=seconds)
    (run,) = LocalDevice().run(job).runs
    return {"wall": list(run.wall_ms), "cpu": list(run.cpu_ms)}


def around(bundle: Bundle) -> tuple[float, float, float]:
    """Milliseconds of a whole job beside loading the model and running it, and resident MB before the model."""
    feed = load_samples(bundle)[0][0]
    job = Job((Entry("one", bundle, bundle.manifest.main),), (feed,), min_runs=5, max_runs=5, seconds=0, warmup_s=0)
    found = []
    for _ in range(5):
        start = time.perf_counter()
        (run,) = LocalDevice().run(job).runs
        whole = (time.perf_counter() - start) * 1e3
        # One run fills the outputs, two more warm up, the first of which is first_ms.
        counted = (run.load_ms or 0) + (run.first_ms or 0) + sum(run.wall_ms) + 3 * float(np.median(run.wall_ms))
        found.append((whole, whole - counted, run.baseline_mb or 0.0))
    return tuple(np.median(found, axis=0).round(1).tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--sessions", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    bundle = read_bundle(options.bundle)
    if options.child:
        print(json.dumps(in_python(bundle, options.seconds)))
        return
    sides = {"python": python_process, "runner": runner_process}
    times: dict[str, list[dict[str, list[float]]]] = {name: [] for name in sides}
    for number in range(options.sessions):
        for name in list(sides) if number % 2 == 0 else list(reversed(sides)):
            times[name].append(sides[name](bundle, options.seconds))
    for measure in ("wall", "cpu"):
        pooled = {name: np.median(np.concatenate([one[measure] for one in each])) for name, each in times.items()}
        medians = {name: [float(np.median(one[measure])) for one in each] for name, each in times.items()}
        runs = sum(len(one[measure]) for one in times["runner"])
        found = compare_with_stored(medians["python"], medians["runner"], runs=runs, measure=measure)
        print(
            f"{measure}: p50 {pooled['python']:.3f} ms in Python, {pooled['runner']:.3f} ms in the runner; "
            f"ratio {found.ratio:.4f}, 95 % between {found.low:.4f} and {found.high:.4f} "
            f"({found.sessions} processes each, {runs} runs)"
        )
    whole, beside, baseline = around(bundle)
    print(f"a job of 9 runs: {whole} ms, of which {beside} ms are neither loading nor running; {baseline} MB before it")


if __name__ == "__main__":
    main()
