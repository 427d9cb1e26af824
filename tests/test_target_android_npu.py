"""What ``android-npu`` promises, asked of the HTP emulator operator by operator, and of a real network.

The provider aborts the process on some graphs, so it runs in child processes.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from small_models import Chain, parse, quantized, weights

from edgeq.graph import TensorInfo, input_infos, save_model
from edgeq.metrics import sqnr_db
from edgeq.pipeline import Job
from edgeq.qtypes import Scheme
from edgeq.request import Data
from edgeq.runtime import run_model
from edgeq.stages.insert import insert_qdq
from edgeq.stages.tune import finish
from edgeq.target import load_target

pytest.importorskip("onnxruntime_qnn", reason="the HTP emulator is in the package onnxruntime-qnn (edgeq[npu])")

TARGET = load_target("android-npu")
LEAST_DB = {8: 30.0, 16: 45.0}
"""Least closeness to the specification: single steps at ties, and 16-bit kernels with inner precision of their own."""

IMAGE, ROWS = "float[1,8,12,12]", "float[1,16,32]"

CASES: dict[str, str] = {
    "Conv": f"({IMAGE} x) => (float[1,16,12,12] y) {{ y = Conv<pads=[1,1,1,1]>(x, conv, bias16) }}",
    "Gemm": "(float[4,32] x) => (float[4,16] y) { y = Gemm<transB=1>(x, matrix, bias16) }",
    "MatMul": f"({ROWS} x) => (float[1,16,16] y) {{ y = MatMul(x, columns) }}",
    "ConvTranspose": f"({IMAGE} x) => (float[1,16,12,12] y) {{ y = ConvTranspose<pads=[1,1,1,1]>(x, deconv, bias16) }}",
    "LayerNormalization": f"({ROWS} x) => ({ROWS} y) {{ y = LayerNormalization<axis=-1>(x, gamma32, row) }}",
    "InstanceNormalization": f"({IMAGE} x) => ({IMAGE} y) {{ y = InstanceNormalization(x, gamma8, bias8) }}",
    "Pow": f"({IMAGE} x) => ({IMAGE} y) {{ s = Sigmoid(x) y = Pow(s, two) }}",
    "Div": f"({IMAGE} x) => ({IMAGE} y) {{ y = Div(x, five) }}",
    "Sqrt": f"({IMAGE} x) => ({IMAGE} y) {{ s = Sigmoid(x) y = Sqrt(s) }}",
    "Reciprocal": f"({IMAGE} x) => ({IMAGE} y) {{ s = Sigmoid(x) t = Add(s, two) y = Reciprocal(t) }}",
    "PRelu": f"({IMAGE} x) => ({IMAGE} y) {{ y = PRelu(x, slope) }}",
    "Clip": f"({IMAGE} x) => ({IMAGE} y) {{ y = Clip(x, low, high) }}",
    "AveragePool": f"({IMAGE} x) => (float[1,8,6,6] y) {{ y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(x) }}",
    "GlobalAveragePool": f"({IMAGE} x) => (float[1,8,1,1] y) {{ y = GlobalAveragePool(x) }}",
    "GlobalMaxPool": f"({IMAGE} x) => (float[1,8,1,1] y) {{ y = GlobalMaxPool(x) }}",
    "MaxPool": f"({IMAGE} x) => (float[1,8,6,6] y) {{ y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x) }}",
    "Concat": f"({IMAGE} x) => (float[1,16,12,12] y) {{ s = Sigmoid(x) y = Concat<axis=1>(x, s) }}",
    "Where": f"({IMAGE} x) => ({IMAGE} y) {{ s = Sigmoid(x) y = Where(choice, x, s) }}",
    "Reshape": f"({IMAGE} x) => (float[1,8,144] y) {{ y = Reshape(x, flat) }}",
    "Flatten": f"({IMAGE} x) => (float[1,1152] y) {{ y = Flatten(x) }}",
    "Transpose": f"({IMAGE} x) => (float[1,12,12,8] y) {{ y = Transpose<perm=[0,2,3,1]>(x) }}",
    "Squeeze": f"({IMAGE} x) => (float[8,12,12] y) {{ y = Squeeze(x, zero) }}",
    "Unsqueeze": f"({IMAGE} x) => (float[1,1,8,12,12] y) {{ y = Unsqueeze(x, zero) }}",
    "Slice": f"({IMAGE} x) => (float[1,8,5,12] y) {{ y = Slice(x, one, six, two_axis) }}",
    "Split": f"({IMAGE} x) => (float[1,3,12,12] y, float[1,5,12,12] z) {{ y, z = Split<axis=1>(x, parts) }}",
    "Expand": f"({IMAGE} x) => (float[2,8,12,12] y) {{ y = Expand(x, twice) }}",
    "Tile": f"({IMAGE} x) => (float[1,16,12,12] y) {{ y = Tile(x, tiles) }}",
    "Pad": f"({IMAGE} x) => (float[1,8,14,14] y) {{ y = Pad(x, border) }}",
    "Gather": f"({IMAGE} x) => (float[1,3,12,12] y) {{ y = Gather<axis=1>(x, picks) }}",
    "GatherND": f"({IMAGE} x) => (float[2,12,12] y) {{ y = GatherND(x, pairs) }}",
    "DepthToSpace": f"({IMAGE} x) => (float[1,2,24,24] y) {{ y = DepthToSpace<blocksize=2>(x) }}",
    "SpaceToDepth": f"({IMAGE} x) => (float[1,32,6,6] y) {{ y = SpaceToDepth<blocksize=2>(x) }}",
    "Resize": f'({IMAGE} x) => (float[1,8,24,24] y) {{ y = Resize<mode="linear">(x, , double) }}',
    **{op: f"({IMAGE} x, {IMAGE} z) => ({IMAGE} y) {{ y = {op}(x, z) }}" for op in ("Add", "Sub", "Mul", "Max", "Min")},
    **{
        op: f"({IMAGE} x) => (float[1,8,1,1] y) {{ y = {op}(x, axes) }}"
        for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2")
    },
}
"""For each operator a graph with it; an operator that is not here is ``y = Op(x)``."""

MORE: dict[str, str] = {
    "depthwise Conv": f"({IMAGE} x) => ({IMAGE} y) {{ y = Conv<pads=[1,1,1,1], group=8>(x, depthwise, bias8) }}",
    "Conv with Clip": f"({IMAGE} x) => (float[1,16,12,12] y) "
    "{ c = Conv<pads=[1,1,1,1]>(x, conv, bias16) y = Clip(c, zero_f, six_f) }",
    "attention": "(float[1,2,16,32] x, float[1,2,16,32] z) => (float[1,2,16,32] y) "
    "{ t = Transpose<perm=[0,1,3,2]>(z) a = MatMul(x, t) b = Div(a, five) p = Softmax(b) y = MatMul(p, z) }",
    "word embeddings": "(int64[1,12] ids) => (float[1,12,32] y) { y = Gather(table, ids) }",
    "mask": "(int64[1,16] mask, float[1,4,16,16] x) => (float[1,4,16,16] y) "
    "{ u = Unsqueeze(mask, inner) m = Cast<to=1>(u) n = Sub(one_f, m) k = Mul(n, never) a = Add(x, k) y = Softmax(a) }",
}

CONSTANTS: dict[str, np.ndarray] = {
    "conv": weights(16, 8, 3, 3),
    "deconv": weights(8, 16, 3, 3),
    "depthwise": weights(8, 1, 3, 3),
    "matrix": weights(16, 32),
    "columns": weights(32, 16),
    "table": weights(600, 32, scale=1.0),
    "bias16": weights(16),
    "bias8": weights(8),
    "row": weights(32),
    "gamma32": 1 + weights(32),
    "gamma8": 1 + weights(8),
    "slope": np.abs(weights(8, 1, 1)),
    "choice": weights(1, 8, 12, 12) > 0,
    "double": np.array([1, 1, 2, 2], np.float32),
    **{
        name: np.array(value, np.float32)
        for name, value in {
            "two": 2, "five": 5.657, "low": -1, "high": 1.5, "zero_f": 0, "six_f": 6, "one_f": 1, "never": -3.4e38,
        }.items()
    },
    **{
        name: np.array(value, np.int64)
        for name, value in {
            "flat": [1, 8, 144], "zero": [0], "one": [1], "six": [6], "two_axis": [2], "parts": [3, 5],
            "twice": [2, 8, 12, 12], "tiles": [1, 2, 1, 1], "border": [0, 0, 1, 1, 0, 0, 1, 1], "picks": [0, 3, 5],
            "pairs": [[0, 1], [0, 3]], "axes": [2, 3], "inner": [1, 2],
        }.items()
    },
}  # fmt: skip

PROMISES = [
    *((op, bits) for c in TARGET.capability for op in c.ops for bits in c.activation_bits),
    *((name, bits) for name in MORE for bits in (8, 16)),
]


def build(name: str, bits: int) -> Chain:
    """The float graph of a case, quantized for the target as the pipeline would."""
    text = MORE.get(name) or CASES.get(name) or f"({IMAGE} x) => ({IMAGE} y) {{ y = {name}(x) }}"
    used = {key: value for key, value in CONSTANTS.items() if f" {key})" in text.replace(",", ")")}
    used |= {key: value for key, value in CONSTANTS.items() if f"({key}" in text}
    model = parse(f"g {text}", **used)
    return quantized(model, TARGET, f"w8a{bits}", range_method="minmax")


CHILD = """
import sys, msgspec, numpy as np
from pathlib import Path
from edgeq.runtime import open_session, session_options
from edgeq.target import Provider
provider = msgspec.json.decode(sys.argv[1], type=Provider)
for name in sys.stdin.read().split():
    folder = Path(name)
    (folder / "started").touch()
    try:
        options = session_options(threads=1, config={"session.disable_cpu_ep_fallback": "1"})
        with open_session(folder / "model.onnx", options, provider) as session:
            np.savez(folder / "out.npz", *session.run(None, dict(np.load(folder / "in.npz"))))
    except Exception as error:
        (folder / "error").write_text(str(error))
"""


def emulate(folders: list[Path]) -> None:
    """Run ``model.onnx`` on ``in.npz`` in each folder; a crash ends one child, and the next goes on behind it."""
    while waiting := [folder for folder in folders if not (folder / "started").exists()]:
        command = [sys.executable, "-c", CHILD, msgspec.json.encode(TARGET.provider).decode()]
        job = "\n".join(map(str, waiting)).encode()
        done = subprocess.run(command, input=job, capture_output=True, timeout=600, check=False)
        assert any((folder / "started").exists() for folder in waiting), done.stderr.decode()[-2000:]


def outputs(folder: Path) -> list[np.ndarray]:
    """What the emulator computed in ``folder``; fails with its words if it did not."""
    if not (folder / "out.npz").exists():
        error = folder / "error"
        pytest.fail(f"refused: {error.read_text()}" if error.exists() else "the provider killed the process")
    return list(np.load(folder / "out.npz").values())


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], tuple[Chain, Path]]:
    """Every promise as a chain of stages, and the folder where the emulator ran it."""
    made = {}
    for name, bits in PROMISES:
        chain, folder = build(name, bits), tmp_path_factory.mktemp("case")
        save_model(chain.model, folder / "model.onnx")
        np.savez(folder / "in.npz", **chain.feed[0])
        made[name, bits] = chain, folder
    emulate([folder for _, folder in made.values()])
    return made


@pytest.mark.parametrize(("name", "bits"), PROMISES)
def test_the_emulator_takes_what_the_profile_promises(
    name: str, bits: int, emulated: dict[tuple[str, int], tuple[Chain, Path]]
) -> None:
    chain, folder = emulated[name, bits]
    kinds = {node.op_type: chain.plan.nodes[str(node.name)].kind for node in chain.shaped.graph}
    assert kinds.get(name, "integer") in ("integer", "moves data")
    expected = chain.run(chain.feed[0])
    for (tensor, right), got in zip(expected.items(), outputs(folder), strict=True):
        assert sqnr_db(right, got) >= LEAST_DB[bits], tensor


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "scheme", "least_db"), [("example:efficientnet-lite0", "w8a8", 20.0), ("example:minilm", "w8a16", 35.0)]
)
def test_the_examples_run_on_the_processor_alone(source: str, scheme: str, least_db: float, tmp_path: Path) -> None:
    """Not one node on the CPU, and what the emulator computes is what the specification says.

    Each 8-bit layer of EfficientNet-Lite0 differs from the specification by single steps, which its
    depthwise layers amplify: 25 dB is what two correct implementations have in common.
    """
    job = Job(source, "android-npu", fixed_dims={"batch": 1} if "net" in source else {"batch": 1, "sequence": 64})
    infos = input_infos(job.prepared.model)
    job.data = Data(calibration=[_sample(infos, seed) for seed in range(8)])
    shaped, plan = job.plan(Scheme.parse(scheme))
    model = finish(insert_qdq(shaped, plan), job.target, plan.scheme)
    assert {node.kind for node in plan.nodes.values()} <= {
        "integer",
        "moves data",
        "fused",
    }
    sample = _sample(infos, 0)
    save_model(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "in.npz", **sample)
    emulate([tmp_path])
    (right,) = run_model(model, sample).values()
    assert sqnr_db(right, outputs(tmp_path)[0]) >= least_db


def _sample(infos: Sequence[TensorInfo], seed: int) -> dict[str, np.ndarray]:
    """Soft noise for a picture, random words without padding for a text."""
    rng = np.random.default_rng(seed)
    sample = {}
    for info in infos:
        shape = tuple(int(dim) for dim in info.shape)
        if info.dtype.kind == "f":
            coarse = rng.uniform(-1, 1, (*shape[:2], shape[2] // 16, shape[3] // 16))
            sample[info.name] = coarse.repeat(16, axis=2).repeat(16, axis=3).astype(info.dtype)
        elif info.name == "input_ids":
            sample[info.name] = rng.integers(1000, 20000, shape).astype(info.dtype)
        else:
            sample[info.name] = np.full(shape, int(info.name == "attention_mask"), info.dtype)
    return sample
