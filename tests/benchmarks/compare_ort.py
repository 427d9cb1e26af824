"""edgeq next to onnxruntime.quantization, W8A8 on this machine, in one table.

    python tests/benchmarks/compare_ort.py DATA_FOLDER [--model efficientnet-lite0|minilm|all]

``docs/benchmarks.md`` says what ``DATA_FOLDER`` holds, what is measured and what came out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measure import Cost, compile_imports, quantize

from edgeq.graph import save_model
from edgeq.machine import describe_machine
from edgeq.metrics import recall_at_1, sqnr_db, top_k_accuracy, top_k_agreement
from edgeq.pipeline import Job
from edgeq.recipe import ImagePreprocess, TextPreprocess
from edgeq.runtime import open_session, session_options
from edgeq.stages.run.accuracy import pool
from edgeq.stages.run.labels import load_labels
from edgeq.stages.run.latency import Timing, take_turns

SAMPLES = 100
PERCENTILE_MB = 8000
"""The percentile calibrator keeps all activations of all samples: about 6.6 GB for 100 pictures."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """One figure that edgeq is to reach; ``sense`` is ``">="`` or ``"<="``."""

    name: str
    value: float
    sense: str
    limit: float

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.sense == ">=" else self.value <= self.limit

    def __str__(self) -> str:
        return f"{'met   ' if self.met else 'MISSED'} {self.name}: {self.value:.4g} {self.sense} {self.limit:.4g}"


class Bench:
    """One float model, prepared by edgeq, and what became of it, in ``folder``."""

    def __init__(self, name: str, data: Path, folder: Path, options: argparse.Namespace) -> None:
        self.name, self.data, self.folder, self.options = name, data, folder, options
        self.cache = folder.parent / "compiled"
        job = Job(f"example:{name}", "linux-x64")
        self.preprocess = job.source.preprocess
        self.float = folder / "float.onnx"
        save_model(job.prepared.model, self.float)
        self.job = Job(self.float, "linux-x64")
        self.rows: dict[str, Row] = {"float": {"MB": self.float.stat().st_size / 1e6}}

    def recipe(self, name: str, path: Path) -> Path:
        """A recipe for the files in ``path``, which are cropped already."""
        if isinstance(self.preprocess, ImagePreprocess):
            kind, keys = "image", {key: list(getattr(self.preprocess, key)) for key in ("crop", "mean", "std")}
        else:
            assert isinstance(self.preprocess, TextPreprocess)
            kind, keys = "text", {key: getattr(self.preprocess, key) for key in ("tokenizer", "max_length")}
        lines = [
            f'summary = "{name}"',
            "[source]",
            f'kind = "{kind.replace("image", "images")}"',
            f"path = {json.dumps(str(path))}",
            'licence = "see the data"',
            "[preprocess]",
            f'kind = "{kind}"',
            *(f"{key} = {json.dumps(value)}" for key, value in keys.items()),
        ]
        recipe = self.folder / f"{name}.toml"
        recipe.write_text("\n".join(lines) + "\n")
        return recipe

    def quantize(self, method: str, recipe: Path, *, repeats: int = 1) -> Cost:
        """Quantize in a process of its own and start the method's row."""
        model = self.float if method == "edgeq" else self._preprocessed()
        output = self.folder / f"{method}.onnx"
        cost = quantize(method, model, output, recipe, cache=self.cache, repeats=repeats)
        self.rows[method] = {"MB": output.stat().st_size / 1e6, "CPU s": cost.cpu_s, "peak MB": cost.peak_mb}
        if method == "edgeq":
            self.rows[method]["prepare s"] = cost.prepare_s
        return cost

    def _preprocessed(self) -> Path:
        """ONNX Runtime's own preparation, as its documentation asks for; not counted as a cost."""
        path = self.folder / "preprocessed.onnx"
        if not path.exists():
            from onnxruntime.quantization.shape_inference import quant_pre_process

            # Symbolic shape inference gives up on MiniLM's dynamic shapes, and onnx's own does all that is needed.
            quant_pre_process(self.float, path, skip_symbolic_shape=self.name == "minilm")
        return path

    def models(self) -> dict[str, Path]:
        return {name: self.folder / f"{name}.onnx" for name in self.rows}

    def latency(self, inputs: Mapping[str, np.ndarray]) -> None:
        """All models in turn on one thread: the ratios to float of wall p50 and of the CPU time of each turn."""
        with take_turns(self.models(), inputs, timing=Timing(seconds=self.options.seconds)) as lanes:
            wall = {name: float(np.median(lane.wall)) for name, lane in lanes.items()}
            cpu = {name: np.maximum(lane.cpu, 1e-6) for name, lane in lanes.items()}
        for name, row in self.rows.items():
            row["ms"] = wall[name]
            row["wall ratio"] = wall[name] / wall["float"]
            row["CPU ratio"] = float(np.median(cpu[name] / cpu["float"]))
            row["CPU ratio to edgeq"] = float(np.median(cpu[name] / cpu["edgeq"]))


def predict(model: Path, feed: Any) -> Iterator[np.ndarray]:
    """The first output for every sample, computed as on the device."""
    with open_session(model, session_options()) as session:
        name = session.get_outputs()[0].name
        for sample in feed:
            yield session.run([name], sample)[0]


def lite0(data: Path, folder: Path, options: argparse.Namespace) -> tuple[dict[str, Row], list[Target]]:
    """EfficientNet-Lite0 on pictures."""
    bench = Bench("efficientnet-lite0", data, folder, options)
    pictures = sorted((data / "images/calibration").iterdir())
    recipe = bench.recipe("calibration", linked(pictures, SAMPLES, folder / "calibration"))
    cost = bench.quantize("edgeq", recipe, repeats=options.repeats)
    bench.quantize("ORT min-max", recipe, repeats=options.repeats)
    targets = [Target("CPU s", cost.cpu_s, "<=", 5), Target("peak MB", cost.peak_mb, "<=", 450)]
    if not options.quick:
        if free_mb() > PERCENTILE_MB:
            bench.quantize("ORT percentile", recipe)
        many = bench.recipe("many", linked(pictures, 10 * SAMPLES, folder / "many"))
        more = quantize("edgeq", bench.float, folder / "many.onnx", many, cache=bench.cache)
        targets.append(
            Target(f"peak MB with {10 * SAMPLES} pictures / with {SAMPLES}", more.peak_mb / cost.peak_mb, "<=", 1.05)
        )
    held_out = bench.job.feed(bench.recipe("held_out", data / "images/held_out"))
    judged = bench.job.feed(bench.recipe("eval", data / "images/eval"))
    labels = load_labels(data / "images/eval/labels.json", [judged.sample_name(i) for i in range(len(judged))])
    reference = np.concatenate(list(predict(bench.float, held_out)))
    for name, model in bench.models().items():
        logits = np.concatenate(list(predict(model, held_out)))
        classes = np.concatenate(list(predict(model, judged)))
        row = bench.rows[name]
        row["SQNR dB"] = sqnr_db(reference, logits)
        row["agree"] = top_k_agreement(reference, logits)
        row["top-1"] = top_k_accuracy(classes, labels)
        row["top-5"] = top_k_accuracy(classes, labels, 5)
    bench.latency(next(iter(held_out)))
    ours, theirs = bench.rows["edgeq"], bench.rows["ORT min-max"]
    return bench.rows, [
        Target("SQNR dB", ours["SQNR dB"], ">=", 16.5),
        Target("agreement with float", ours["agree"], ">=", 0.90),
        Target("latency / float (CPU)", ours["CPU ratio"], "<=", 0.5),
        # 3 % is what two copies of one file differ by on a busy machine.
        Target("latency / ORT min-max (CPU)", 1 / theirs["CPU ratio to edgeq"], "<=", 1.03),
        *targets,
    ]


def minilm(data: Path, folder: Path, options: argparse.Namespace) -> tuple[dict[str, Row], list[Target]]:
    """all-MiniLM-L6-v2 on texts of 128 tokens."""
    bench = Bench("minilm", data, folder, options)
    texts = (data / "text/calibration.jsonl").read_text().splitlines()[:SAMPLES]
    path = folder / "texts.jsonl"
    path.write_text("\n".join(texts) + "\n")
    recipe = bench.recipe("calibration", path)
    bench.quantize("edgeq", recipe, repeats=options.repeats)
    bench.quantize("ORT min-max", recipe, repeats=options.repeats)
    bench.quantize("ORT MatMul only", recipe)
    bench.quantize("ORT dynamic", recipe)
    pairs = bench.recipe("pairs", data / "text/retrieval.jsonl")
    sides = [bench.job.feed(pairs, text_field=field) for field in ("query", "document")]
    reference = [embed(bench.float, side) for side in sides]
    for name, model in bench.models().items():
        queries, documents = (embed(model, side) for side in sides)
        row = bench.rows[name]
        row["SQNR dB"] = sqnr_db(np.concatenate(reference), np.concatenate([queries, documents]))
        row["recall@1"] = recall_at_1(queries, documents)
    bench.latency(next(iter(sides[1])))
    ours, floats = bench.rows["edgeq"], bench.rows["float"]
    return bench.rows, [
        Target("points of recall@1 lost", round(100 * (floats["recall@1"] - ours["recall@1"]), 6), "<=", 2),
        Target("SQNR dB of pooled embeddings", ours["SQNR dB"], ">=", 18.5),
        Target("latency / float (CPU)", ours["CPU ratio"], "<=", 0.55),
    ]


MODELS = {"efficientnet-lite0": lite0, "minilm": minilm}


def embed(model: Path, feed: Any) -> np.ndarray:
    """Mean-pooled, normalized embeddings ``[texts, features]``."""
    hidden = predict(model, feed)
    return np.concatenate([pool(h, sample["attention_mask"]) for h, sample in zip(hidden, feed, strict=True)])


def linked(files: Sequence[Path], count: int, folder: Path) -> Path:
    """A folder of links to ``count`` files, which repeat where there are fewer."""
    folder.mkdir()
    pictures = [file for file in files if file.suffix == ".jpg"]
    for index in range(count):
        file = pictures[index % len(pictures)]
        (folder / f"{index // len(pictures):03}-{file.name}").symlink_to(file.resolve())
    return folder


def free_mb() -> float:
    """Memory that can be had, MB."""
    return int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) / 1e3


def table(rows: Mapping[str, Row]) -> str:
    """Aligned columns; what was not measured is a dash."""
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    columns.remove("CPU ratio to edgeq")
    body = [[name, *(shown(row.get(key), key) for key in columns)] for name, row in rows.items()]
    lines = [["", *columns], *body]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def shown(value: float | None, column: str) -> str:
    if value is None:
        return "-"
    if column in ("agree", "top-1", "top-5", "recall@1"):
        return f"{100 * value:.1f}%"
    return f"{value:.0f}" if column == "peak MB" else f"{value:.3f}" if "ratio" in column else f"{value:.1f}"


@contextmanager
def working_folder(keep: str | None) -> Iterator[Path]:
    if keep is not None:
        Path(keep).mkdir(parents=True)
        yield Path(keep).resolve()
        return
    with tempfile.TemporaryDirectory(prefix="edgeq-benchmark-") as folder:
        yield Path(folder)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder laid out as docs/benchmarks.md says")
    parser.add_argument("--model", choices=[*MODELS, "all"], default="all")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument("--quick", action="store_true", help="one run per cost; no percentile, no 1000 pictures")
    parser.add_argument("--repeats", type=int, default=3, help="runs per cost, of which the median counts")
    parser.add_argument("--seconds", type=float, default=5.0, help="measuring time per model for latency")
    parser.add_argument("--keep", help="keep the models in this new folder")
    options = parser.parse_args()
    if options.quick:
        options.repeats = 1
    return options


def main() -> int:
    options = arguments()
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    facts = describe_machine()
    machine = f"{facts.cpu}, {', '.join(facts.isa)}, {facts.cores} cores, ONNX Runtime {facts.onnxruntime}"
    results: dict[str, Any] = {"data": options.data.name, "machine": machine}
    missed = False
    with working_folder(options.keep) as folder:
        compile_imports(folder / "compiled")
        for name, benchmark in MODELS.items():
            if options.model not in (name, "all"):
                continue
            (folder / name).mkdir()
            # Recipes lie in a temporary folder: a relative path would lead astray.
            rows, targets = benchmark(options.data.resolve(), folder / name, options)
            missed |= not all(target.met for target in targets)
            results[name] = {"rows": rows, "targets": [{**asdict(t), "met": t.met} for t in targets]}
            print(f"\n{name}, W8A8 for linux-x64, {SAMPLES} calibration samples of {options.data}")
            print(f"{machine}\n\n{table(rows)}\n")
            print("\n".join(map(str, targets)), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return int(missed and options.check)


if __name__ == "__main__":
    sys.exit(main())
