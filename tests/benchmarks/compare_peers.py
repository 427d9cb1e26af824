"""edgeq and its peers: the same float models and samples, every tool in an environment of its own, one judge.

    python tests/benchmarks/compare_peers.py DATA [--work FOLDER] [--tool METHOD|TOOL ...] [--network NAME ...]
        [--precision w8a8|w4a8|w4a16 ...] [--samples 100] [--again] [--retry]
    python tests/benchmarks/compare_peers.py DATA --latency-only       # all kept models again, on a quiet machine
    python tests/benchmarks/compare_peers.py DATA --growth             # cost by samples and by layers
    python tests/benchmarks/compare_peers.py DATA --docs docs/benchmarks.md       # write the tables, run nothing

Everything is kept in ``--work``: environments, float models with their samples, models by network, precision and
method with the log of the tool, and ``results.jsonl``. What has a row there is not run again. ``docs/benchmarks.md``
says what ``DATA`` holds, what is measured and what came out.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import onnx
from peers import results
from peers.judge import judge, latency, size_mb
from peers.networks import NETWORKS, Network, network
from peers.results import Row
from peers.tools import OWN, Limit, Method, load_methods, one_line, quantize

from edgeq.machine import describe_machine

PRECISIONS = ("w8a8", "w4a8", "w4a16")
GROWTH_SAMPLES = (32, 64, 128, 256)
GROWTH_NETWORKS = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")


class Benchmark:
    """What is to be measured, and where it is kept."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.work: Path = options.work.resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        self.file = self.work / "results.jsonl"
        self.rows = {results.key(row): row for row in results.read(self.file)}
        facts = describe_machine()
        self.machine = f"{facts.cpu}, {', '.join(facts.isa)}, {facts.cores} cores, ONNX Runtime {facts.onnxruntime}"

    def network(self, name: str) -> Network:
        return network(name, self.options.data.resolve(), self.work)

    def folder(self, row: Row) -> Path:
        samples = "" if row["samples"] == self.options.samples else f"-{row['samples']}"
        return self.work / row["network"] / row["precision"] / f"{row['method']}{samples}"

    def add(self, row: Row) -> None:
        row |= {"date": dt.datetime.now(tz=dt.UTC).date().isoformat(), "machine": self.machine}
        self.rows[results.key(row)] = row
        results.write(self.file, row)

    def measure(self, method: Method, name: str, precision: str, samples: int, *, growth: bool = False) -> None:
        """One row, unless it is there: a model, or the tool's error."""
        row: Row = {"network": name, "precision": precision, "method": method.name, "samples": samples}
        known = self.rows.get(results.key(row))
        if known is not None and not self.options.again and not (self.options.retry and known.get("error")):
            return
        where = self.network(name)
        row |= {"tool": method.tool.name, "weights_only": method.weights_only}
        if growth and samples != self.options.samples:
            row |= {"growth": True, "layers": layers(where.float)}
        folder = self.folder(row)
        folder.mkdir(parents=True, exist_ok=True)
        output = folder / "model.onnx"
        for file in folder.iterdir():
            if file.is_file():
                file.unlink()
        try:
            python = method.tool.python(self.work / "environments")
        except RuntimeError as error:
            self.add(row | {"error": f"does not install: {error}"})
            return
        row["version"] = method.tool.version(self.work / "environments")
        task = {"model": str(where.float), "output": str(output), "samples": str(where.calibration(samples))}
        task |= {"precision": precision, "family": where.family}
        limit = Limit(cpu_s=self.options.cpu_s, wall_s=self.options.wall_s, mb=self.options.mb)
        cost, error = quantize(method, python, task, limit)
        row |= {"cpu_s": cost.cpu_s, "wall_s": cost.wall_s, "peak_mb": cost.peak_mb}
        if error is None:
            row["mb"] = size_mb(output)
            try:
                row |= judge(where, output, precision)
            except Exception as failure:  # a model that does not load is a result, too
                error = f"its model does not run: {one_line(str(failure))}"
        self.add(row | ({"error": error} if error else {}))
        print(f"{name} {precision} {method.name}: {self.rows[results.key(row)]}", flush=True)

    def floats(self, name: str) -> None:
        """The float model's own row, under every precision the same."""
        where = self.network(name)
        row: Row = {"network": name, "precision": "float", "method": "float", "samples": 0, "tool": "float"}
        if results.key(row) not in self.rows or self.options.again:
            self.add(row | {"mb": size_mb(where.float), **judge(where, where.float, "w8a8")})

    def latency(self, name: str, methods: Iterable[str]) -> None:
        """All kept W8A8 models of a network, which this machine has kernels for, in turns."""
        wanted = {"float", *methods}
        rows = {
            row["method"]: row
            for row in self.rows.values()
            if row["network"] == name
            and row["precision"] in ("w8a8", "float")
            and row["method"] in wanted
            and not row.get("growth")
            and not row.get("error")
            and not row.get("unoptimized")
        }
        models = {name: self.folder(row) / "model.onnx" for name, row in rows.items() if name != "float"}
        models = {name: model for name, model in models.items() if model.exists()}
        if models:
            for method, times in latency(self.network(name), models, self.options.seconds).items():
                self.add(rows[method] | times)
                print(f"{name} {method}: {times}", flush=True)


def layers(model: Path) -> int:
    """Nodes that multiply with weights."""
    kinds = ("Conv", "Gemm", "MatMul", "ConvTranspose")
    return sum(node.op_type in kinds for node in onnx.load(model, load_external_data=False).graph.node)


def chosen(methods: dict[str, Method], wanted: list[str] | None) -> dict[str, Method]:
    """Methods by their own names or their tools'; all without ``wanted``.

    Raises:
        SystemExit: a name is neither.
    """
    names = {name for method in methods.values() for name in (method.name, method.tool.name)}
    if unknown := set(wanted or ()) - names:
        raise SystemExit(f"no tool or method {', '.join(sorted(unknown))}; there are {', '.join(sorted(names))}")
    return {name: method for name, method in methods.items() if not wanted or {name, method.tool.name} & set(wanted)}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder laid out as docs/benchmarks.md says")
    parser.add_argument("--work", type=Path, default=Path(".edgeq/peers"), help="where everything is kept")
    parser.add_argument("--tool", action="append", help="a tool or a method (several times; default: all)")
    parser.add_argument("--network", action="append", choices=list(NETWORKS), help="(several times; default: all)")
    parser.add_argument("--precision", action="append", choices=PRECISIONS, help="(several times; default: all)")
    parser.add_argument("--samples", type=int, default=100, help="calibration samples")
    parser.add_argument("--again", action="store_true", help="run what has a row, too")
    parser.add_argument("--retry", action="store_true", help="run what has failed, too")
    parser.add_argument("--cpu-s", type=float, default=1800, help="CPU seconds that one process may take")
    parser.add_argument("--wall-s", type=float, default=7200, help="seconds that one method may take")
    parser.add_argument("--mb", type=float, default=8000, help="resident memory that one method may take")
    parser.add_argument("--seconds", type=float, default=3.0, help="measuring time per model for latency")
    parser.add_argument("--latency-only", action="store_true", help="measure the kept models' latency again")
    parser.add_argument("--growth", action="store_true", help="measure edgeq's cost by samples and by layers")
    parser.add_argument("--docs", type=Path, help="write the tables into this page")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    every = load_methods()
    methods = chosen(every, options.tool)
    networks = options.network or list(NETWORKS)
    bench = Benchmark(options)
    if options.latency_only:
        for name in networks:
            bench.latency(name, methods)
    elif options.growth:
        own = [method for method in methods.values() if method.tool.name == OWN]
        for method in own:
            for name, samples in [(GROWTH_NETWORKS[0], n) for n in GROWTH_SAMPLES] + [(n, 64) for n in GROWTH_NETWORKS]:
                bench.measure(method, name, "w8a8", samples, growth=True)
    elif not options.docs:
        for name in networks:
            bench.floats(name)
            family = bench.network(name).family
            for precision in options.precision or PRECISIONS:
                for method in methods.values():
                    if precision in method.precisions[family]:
                        bench.measure(method, name, precision, options.samples)
    if options.docs:
        notes = {method.tool.name: method.tool.note for method in every.values()}
        whats = {method.name: method.what for method in every.values()}
        results.put(options.docs, results.page(list(bench.rows.values()), whats, notes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
