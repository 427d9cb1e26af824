"""Profiles are read kernel by kernel: warm-up and disturbed runs left out, nested kernels counted once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgeq.errors import ModelError
from edgeq.node_times import NodeTime, by_operator, by_work, read_profile, work_of


def kernel(name: str, op: str, ts: int, dur: int, *, tid: int = 1, index: int = 0) -> dict[str, Any]:
    args = {"op_name": op, "provider": "CPUExecutionProvider", "node_index": str(index), "output_size": "4"}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "tid": tid, "args": args}


def run(ts: int, dur: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": ts, "dur": dur, "tid": 1, "args": {}}


def profile(*runs: dict[str, int]) -> bytes:
    """Runs of 10000 us, each with a duration for every kernel; the profile names a run after its kernels."""
    events: list[dict[str, Any]] = [{"cat": "Session", "name": "session_initialization", "ts": 0, "dur": 5, "args": {}}]
    for number, times in enumerate(runs):
        at = 1000 + 10000 * number
        for index, (name, dur) in enumerate(times.items()):
            events.append(kernel(name, name.partition("_")[0], at + 1000 * index, dur, index=index))
        events.append(run(at, 9000))
    return json.dumps(events).encode()


def node(op: str, name: str = "n", us: float = 1.0, provider: str = "CPUExecutionProvider") -> NodeTime:
    return NodeTime(node=name, op_type=op, provider=provider, mean_us=us, share=0.1)


def test_warm_up_and_interrupted_kernels_do_not_count() -> None:
    cold, calm = {"Conv_1": 900, "Add_1": 90}, {"Conv_1": 100, "Add_1": 20}
    disturbed = [{"Conv_1": 5000, "Add_1": 20}, {"Conv_1": 100, "Add_1": 700}, {"Conv_1": 1, "Add_1": 20}]
    nodes = read_profile(profile(cold, calm, *disturbed), warmup_runs=1)
    assert [(n.node, n.op_type, n.mean_us) for n in nodes] == [("Conv_1", "Conv", 100.0), ("Add_1", "Add", 20.0)]
    assert sum(n.share for n in nodes) == pytest.approx(1.0)


def test_the_middle_half_is_averaged() -> None:
    nodes = read_profile(profile(*({"Conv_1": us} for us in (1, 10, 13, 999))), warmup_runs=0)
    assert nodes[0].mean_us == 11.5


def test_what_runs_inside_a_kernel_counts_for_itself_only() -> None:
    events = [kernel("inner", "Add", 1000, 30), kernel("inner", "Add", 1040, 30), kernel("outer", "Loop", 1000, 100)]
    nodes = read_profile(json.dumps([*events, kernel("after", "Mul", 1100, 7), run(1000, 200)]).encode(), warmup_runs=0)
    assert {n.op_type: n.mean_us for n in nodes} == {"Loop": 40.0, "Add": 60.0, "Mul": 7.0}


def test_threads_are_not_nested() -> None:
    events = [kernel("a", "Add", 1000, 100), kernel("b", "Mul", 1010, 30, tid=2), run(1000, 200)]
    nodes = read_profile(json.dumps(events).encode(), warmup_runs=0)
    assert {n.op_type: n.mean_us for n in nodes} == {"Add": 100.0, "Mul": 30.0}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'[{"name": "model_run", "ts"', "cannot be read"),
        (b"{}", "cannot be read"),
        (b"[]", "0 runs"),
        (b"\xff", "read"),
    ],
    ids=["cut off", "an object", "empty", "not text"],
)
def test_what_is_no_profile_is_told(text: bytes, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        read_profile(text)


def test_too_few_runs_are_told() -> None:
    with pytest.raises(ModelError, match="1 runs, of which 2 are warm-up"):
        read_profile(profile({"Conv_1": 1}))


@pytest.mark.parametrize(
    ("found", "work"),
    [
        (node("QLinearConv"), "integer"),
        (node("MatMulNBits"), "integer"),
        (node("Conv"), "other"),
        (node("DequantizeLinear"), "quantize"),
        (node("Cast"), "cast"),
        (node("ReorderInput"), "reorder"),
        (node("Transpose", "Transpose_token_12"), "reorder"),
        (node("Transpose", "/head/Transpose"), "other"),
        (node("MemcpyToHost"), "copy"),
    ],
    ids=lambda value: value.op_type if isinstance(value, NodeTime) else value,
)
def test_what_a_kernel_is_there_for(found: NodeTime, work: str) -> None:
    assert work_of(found) == work


def test_sums_by_operator_and_by_work() -> None:
    nodes = [
        node("Cast", us=1),
        node("QLinearConv", us=5),
        node("QLinearConv", us=7),
        node("Conv", us=12, provider="X"),
    ]
    assert by_work(nodes) == {"integer": 12.0, "other": 12.0, "cast": 1.0}
    found = [(o.op_type, o.provider, o.kernels, o.mean_us) for o in by_operator(nodes)]
    cpu = "CPUExecutionProvider"
    assert found == [("Conv", "X", 1, 12.0), ("QLinearConv", cpu, 2, 12.0), ("Cast", cpu, 1, 1.0)]
