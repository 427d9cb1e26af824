"""What ``android-npu`` and ``windows-npu`` promise, asked of the HTP emulator operator by operator, and of networks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from small_models import parse, quantized, samples, weights

from edgeq.graph import TensorInfo, input_infos, save_model
from edgeq.metrics import sqnr_db
from edgeq.pipeline import Job
from edgeq.qtypes import Scheme
from edgeq.request import Data
from edgeq.runtime import run_model
from edgeq.sandbox import Outcome, Task, find_sandbox
from edgeq.stages.insert import insert_qdq
from edgeq.stages.tune import finish
from edgeq.target import TargetProfile, load_target

pytest.importorskip("onnxruntime_qnn", reason="the HTP emulator is in the package onnxruntime-qnn (edgeq[npu])")

LEAST_DB = {8: 30.0, 16: 45.0}
"""Least closeness to the specification: single steps at ties, and 16-bit kernels with inner precision of their own."""

LEAST_FLOAT_DB = 45.0
COARSE_DB = {"Softplus": 40.0, "Mish": 40.0, "LSTM": 35.0, "Round": 25.0}
"""Least closeness of 16-bit floats, and of those that the profile calls coarse."""

OTHER_TYPES = {
    *("ArgMax", "ArgMin", "Cast", "OneHot", "GatherElements", "ScatterND"),
    *("Greater", "Less", "Equal", "GreaterOrEqual", "LessOrEqual", "Not", "And"),
}
"""Operators on indices and truth values, which have no closeness in dB."""

VARIANTS = [
    "android-npu",
    *(f"android-npu@{variant}" for variant in ("v68", "v69", "v73", "v75", "v81")),
    *("windows-npu", "windows-npu@v81"),
]

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
    "GroupNormalization": f"({IMAGE} x) => ({IMAGE} y) {{ y = GroupNormalization<num_groups=2>(x, gamma8, bias8) }}",
    "Asin": f"({IMAGE} x) => ({IMAGE} y) {{ s = Tanh(x) y = Asin(s) }}",
    "Log": f"({IMAGE} x) => ({IMAGE} y) {{ s = Sigmoid(x) t = Add(s, two) y = Log(t) }}",
    "CumSum": f"({ROWS} x) => ({ROWS} y) {{ y = CumSum(x, last) }}",
    "TopK": f"({ROWS} x) => (float[1,16,3] y, int64[1,16,3] z) {{ y, z = TopK(x, three) }}",
    "GRU": "(float[5,1,32] x) => (float[5,1,1,16] y) "
    "{ y = GRU<hidden_size=16, linear_before_reset=1>(x, gru_w, gru_r, gru_b) }",
    "LSTM": "(float[5,1,32] x) => (float[5,1,1,16] y) { y = LSTM<hidden_size=16>(x, lstm_w, lstm_r, lstm_b) }",
    "Resize": f'({IMAGE} x) => (float[1,8,24,24] y) {{ y = Resize<mode="linear">(x, , double) }}',
    **{op: f"({IMAGE} x, {IMAGE} z) => ({IMAGE} y) {{ y = {op}(x, z) }}" for op in ("Add", "Sub", "Mul", "Max", "Min")},
    **{
        op: f"({IMAGE} x) => (float[1,8,1,1] y) {{ y = {op}(x, axes) }}"
        for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2")
    },
}
"""For each operator a graph with it; an operator that is not here is ``y = Op(x)``."""

BLOCKED = "(float[1,16,256] x) => (float[1,16,48] y) { y = MatMul(x, wide) }"

MORE: dict[str, str] = {
    "SiLU": f"({IMAGE} x) => (float[1,16,12,12] y) "
    "{ c = Conv<pads=[1,1,1,1]>(x, conv, bias16) s = Sigmoid(c) y = Mul(c, s) }",
    "MatMul and Tanh": f"({ROWS} x) => (float[1,16,16] y) {{ m = MatMul(x, columns) y = Tanh(m) }}",
    "Concat and Relu": f"({IMAGE} x) => (float[1,16,12,12] y) "
    "{ h = HardSwish(x) c = Concat<axis=1>(x, h) y = Relu(c) }",
    "squeeze and excite": f"({IMAGE} x) => ({IMAGE} y) "
    "{ g = GlobalAveragePool(x) c = Conv(g, point, bias8) s = HardSigmoid(c) y = Mul(x, s) }",
    "conv net": "(float[1,8,12,12] x) => (float[1,16] y) "
    "{ c = Conv<pads=[1,1,1,1], strides=[2,2]>(x, conv, bias16) r = Relu(c) "
    "d = Conv<pads=[1,1,1,1], group=16>(r, deep, bias16) s = Sigmoid(d) m = Mul(d, s) a = Add(m, r) "
    "g = GlobalAveragePool(a) f = Flatten(g) y = Gemm(f, square, bias16) }",
    "attention block": f"({ROWS} x) => ({ROWS} y) "
    "{ n = LayerNormalization<axis=-1>(x, gamma32, row) q = MatMul(n, to_q) k = MatMul(n, to_k) v = MatMul(n, to_v) "
    "t = Transpose<perm=[0,2,1]>(k) a = MatMul(q, t) b = Div(a, five) p = Softmax(b) o = MatMul(p, v) "
    "h = MatMul(o, to_o) r = Add(x, h) u = LayerNormalization<axis=-1>(r, gamma32, row) e = MatMul(u, up) "
    "w = Gelu(e) j = MatMul(w, down) y = Add(r, j) }",
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
    "wide": weights(256, 48),
    "point": weights(8, 8, 1, 1),
    "deep": weights(16, 1, 3, 3),
    "square": weights(16, 16),
    **{name: weights(32, 32, seed=seed) for seed, name in enumerate(("to_q", "to_k", "to_v", "to_o"))},
    "up": weights(32, 64),
    "down": weights(64, 32),
    "gru_w": weights(1, 48, 32),
    "gru_r": weights(1, 48, 16),
    "gru_b": weights(1, 96),
    "lstm_w": weights(1, 64, 32),
    "lstm_r": weights(1, 64, 16),
    "lstm_b": weights(1, 128),
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
            "pairs": [[0, 1], [0, 3]], "axes": [2, 3], "inner": [1, 2], "last": 2, "three": [3],
        }.items()
    },
}  # fmt: skip


def text_of(name: str) -> str:
    return MORE.get(name) or CASES.get(name) or f"({IMAGE} x) => ({IMAGE} y) {{ y = {name}(x) }}"


def float_graph(text: str) -> ir.Model:
    used = {name for name in CONSTANTS if re.search(rf"[(, ]{name}[,)]", text.split("=>")[1])}
    return parse(f"g {text}", **{name: CONSTANTS[name] for name in used})


def promises(target: TargetProfile) -> dict[tuple[str, str], str]:
    """For each operator (or block of operators) and precision the float graph to quantize."""
    found = {}
    for capability in target.capability:
        for op in () if capability.passive else capability.ops:
            for bits in capability.activation_bits:
                for width in capability.weight_bits or (8,):
                    for block in capability.blocks:
                        found[op, f"w{width}a{bits}_b{block}"] = BLOCKED
                    if not capability.blocks:
                        found[op, f"w{width}a{bits}"] = text_of(op)
    for name in MORE:
        found |= {(name, scheme): text_of(name) for scheme in ("w8a8", "w8a16")}
    for name in ("conv net", "attention block"):
        found |= {(name, scheme): text_of(name) for scheme in ("w4a16", "w4a16_b32")}
    return found


def emulate(models: Sequence[tuple[Path, dict[str, np.ndarray]]], target: TargetProfile) -> list[Outcome]:
    """Run files in the emulator, which may end its process; a node that falls to the CPU is a refusal."""
    strict = {**target.provider.session, "session.disable_cpu_ep_fallback": "1"}
    provider = msgspec.structs.replace(target.provider, session=strict)
    return find_sandbox("qnn").run([Task(model, provider, (feed,)) for model, feed in models])


def closeness(outcome: Outcome, expected: dict[str, np.ndarray]) -> float:
    """The SQNR of the worst output; fails with the emulator's words if there is none."""
    assert outcome.status == "ran", f"{outcome.status}: {outcome.reason}"
    (found,) = outcome.outputs
    return min(sqnr_db(right, found[name]) for name, right in expected.items())


@pytest.mark.parametrize("name", ["android-npu", "android-npu@v68"])
def test_the_emulator_computes_small_blocks_of_networks(name: str, tmp_path: Path) -> None:
    target = load_target(name)
    cases = {key: text for key, text in promises(target).items() if key[0] in ("conv net", "attention block", "SiLU")}
    assert not broken_promises(target, cases, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_the_emulator_takes_and_computes_what_the_profile_promises(name: str, tmp_path: Path) -> None:
    target = load_target(name)
    assert not broken_promises(target, promises(target), tmp_path)


def broken_promises(target: TargetProfile, cases: dict[tuple[str, str], str], tmp_path: Path) -> dict[Any, str]:
    """Which cases run in float, are refused, or differ from the specification, and how."""
    chains, files, broken = {}, [], {}
    for index, (key, text) in enumerate(cases.items()):
        chain = chains[key] = quantized(float_graph(text), target, key[1], range_method="minmax")
        if floats := [node.op_type for node in chain.plan.nodes.values() if node.kind == "float"]:
            broken[key] = f"float: {', '.join(floats)}"
        save_model(chain.model, tmp_path / f"{index}.onnx")
        files.append((tmp_path / f"{index}.onnx", chain.feed[0]))
    for (key, chain), outcome in zip(chains.items(), emulate(files, target), strict=True):
        bits = Scheme.parse(key[1]).activation_bits or 0
        if outcome.status != "ran":
            broken[key] = f"{outcome.status}: {outcome.reason}"
        elif (db := closeness(outcome, chain.run(chain.feed[0]))) < LEAST_DB[bits]:
            broken[key] = f"{db:.1f} dB"
    return broken


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_the_emulator_runs_the_floats_that_the_profile_lists(name: str, tmp_path: Path) -> None:
    target = load_target(name)
    if target.floats.runs == "none":
        pytest.skip(f"{name} runs no floats")
    floats = [op for capability in target.capability if capability.kind == "float" for op in capability.ops]
    ops = [op for op in floats if op not in OTHER_TYPES]
    graphs = {op: float_graph(text_of(op)) for op in ops}
    feeds = {op: samples(graph)[0] for op, graph in graphs.items()}
    for op, graph in graphs.items():
        save_model(graph, tmp_path / f"{op}.onnx")
    found = emulate([(tmp_path / f"{op}.onnx", feeds[op]) for op in ops], target)
    broken: dict[str, Any] = {}
    for op, outcome in zip(ops, found, strict=True):
        if outcome.status != "ran":
            broken[op] = outcome.reason
        elif (db := closeness(outcome, run_model(graphs[op], feeds[op]))) < COARSE_DB.get(op, LEAST_FLOAT_DB):
            broken[op] = f"{db:.1f} dB"
    assert not broken


def test_a_product_with_its_own_sigmoid_is_kept_apart(tmp_path: Path) -> None:
    """Conv, Sigmoid and Mul at 16 bits become one kernel that is wrong, unless Sigmoid reads another tensor."""
    target = load_target("android-npu")
    apart = quantized(float_graph(MORE["SiLU"]), target, "w8a16")
    together = tuple(msgspec.structs.replace(capability, apart=()) for capability in target.capability)
    merged = quantized(float_graph(MORE["SiLU"]), msgspec.structs.replace(target, capability=together), "w8a16")
    files = []
    for index, chain in enumerate((apart, merged)):
        save_model(chain.model, tmp_path / f"{index}.onnx")
        files.append((tmp_path / f"{index}.onnx", chain.feed[0]))
    right, wrong = emulate(files, target)
    assert closeness(right, apart.run(apart.feed[0])) > 60
    assert closeness(wrong, merged.run(merged.feed[0])) < 10, "mended: take `apart` out of the profile"


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
    (outcome,) = emulate([(tmp_path / "model.onnx", sample)], job.target)
    assert closeness(outcome, run_model(model, sample)) >= least_db


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
