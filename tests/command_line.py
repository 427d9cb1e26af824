"""Runs the command line as a user does, on models small enough to be packaged in a second."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from click.testing import CliRunner
from onnx import numpy_helper

from edgeq.cli.main import cli

HEADER = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1, "toy" : 1]>'
SHAPE = (3, 16, 16)


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


def edgeq(*arguments: str | Path) -> Result:
    """One command in this process. An exception that is no exit reaches the test: a user would see a traceback."""
    found = CliRunner().invoke(cli, [str(a) for a in arguments], prog_name="edgeq", catch_exceptions=False)
    return Result(found.exit_code, found.stdout, found.stderr)


def start_edgeq(*arguments: str | Path, before: str = "") -> subprocess.Popen[str]:
    """One command as a process of its own, which hears Ctrl-C even where this one does not.

    ``before`` is Python to run first.
    """
    code = f"{before}\nfrom edgeq.cli import main\nmain()"
    start = ["-c", code] if before else ["-m", "edgeq"]
    command = [sys.executable, *start, *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )


def save(path: Path, graph: str, **constants: np.ndarray) -> Path:
    """``"g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }"`` as a file, without any check."""
    model = onnx.parser.parse_model(f"{HEADER} {graph}")
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    for node in model.graph.node:
        node.name = node.output[0]
    onnx.save(model, path)
    return path


def noise(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def classifier(path: Path) -> Path:
    """Two convolutions and a linear layer: ``image: float32[batch, 3, 16, 16]`` -> ``logits: float32[batch, 6]``."""
    graph = """g (float[batch,3,16,16] image) => (float[batch,6] logits) {
        a = Conv<pads = [1,1,1,1], strides = [2,2]>(image, w1, b1)
        b = Relu(a)
        c = Conv<pads = [1,1,1,1]>(b, w2)
        d = Relu(c)
        e = GlobalAveragePool(d)
        f = Flatten(e)
        logits = Gemm(f, w3, b3)
    }"""
    return save(
        path,
        graph,
        w1=noise(8, 3, 3, 3, seed=1, scale=0.3),
        b1=noise(8, seed=2, scale=0.1),
        w2=noise(8, 8, 3, 3, seed=3, scale=0.2),
        w3=noise(8, 6, seed=4),
        b3=noise(6, seed=5, scale=0.1),
    )


def images(path: Path, count: int = 24) -> Path:
    """Rows for the classifier as one ``.npy`` file."""
    np.save(path, noise(count, *SHAPE, seed=9))
    return path
