"""Latency, memory, machine and blame: what must hold on any machine, however busy."""

from __future__ import annotations

import getpass
import platform

import numpy as np
import pytest

from edgeq import graph
from edgeq.errors import ModelError
from edgeq.machine import describe_machine
from edgeq.node_times import NodeTime
from edgeq.stages.run.blame import layer_errors
from edgeq.stages.run.latency import Timing, compare_latency, take_turns
from edgeq.stages.run.memory import measure_memory
from edgeq.stages.run.node_timing import named_after, profile_nodes


def _product(build, size: int):
    build.add("MatMul", ["x", build.const("w", np.ones((size, size), np.float32))], "y")
    return build.model((1, size), {"y": (1, size)})


def test_latency_is_ordered_and_interleaved(build, conv_relu):
    model = conv_relu()
    inputs = {"x": np.zeros((1, 3, 8, 8), np.float32)}
    with take_turns({"a": model, "b": model}, inputs, timing=Timing(warmup_s=0, min_runs=30, seconds=0)) as lanes:
        assert [len(lane.wall) for lane in lanes.values()] == [30, 30]
    found = compare_latency(model, model, inputs, timing=Timing(warmup_s=0, min_runs=30, seconds=0))
    assert found.quantized.runs == found.float_model.runs == 30
    for latency in (found.quantized, found.float_model):
        assert 0 < latency.min_ms <= latency.p50_ms <= latency.p90_ms <= latency.p99_ms
        assert latency.load_ms > 0
        assert latency.first_ms > 0
        assert (latency.provider, latency.threads) == ("CPUExecutionProvider", 1)


def test_comparison_is_float_over_quantized(build, conv_relu):
    inputs = {"x": np.zeros((1, 3, 8, 8), np.float32)}
    model = conv_relu()
    both = compare_latency(model, model, inputs, timing=Timing(warmup_s=0, min_runs=20, seconds=0))
    assert both.float_model is not None
    assert both.speedup == pytest.approx(both.float_model.p50_ms / both.quantized.p50_ms, abs=1e-2)
    assert both.cpu_speedup > 0
    alone = compare_latency(model, None, inputs, timing=Timing(warmup_s=0, min_runs=5, seconds=0))
    assert (alone.float_model, alone.speedup, alone.cpu_speedup) == (None, None, None)


def test_wrong_inputs_are_one_clear_error(conv_relu):
    with pytest.raises(ModelError, match="fails while its latency is measured"):
        compare_latency(conv_relu(), None, {"x": np.zeros((1, 2), np.float32)})


def test_nodes_are_timed_by_the_kernels_that_run(build):
    build.add("MatMul", ["x", build.const("w", np.ones((256, 256), np.float32))], "h")
    build.add("Sigmoid", ["h"], "y")
    model = build.model((1, 256), {"y": (1, 256)})
    nodes = profile_nodes(model, {"x": np.zeros((1, 256), np.float32)}, seconds=0)
    assert [node.op_type for node in nodes] == ["MatMul", "Sigmoid"]
    assert {node.provider for node in nodes} == {"CPUExecutionProvider"}
    assert sum(node.share for node in nodes) == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(ModelError, match="fails while its nodes are timed"):
        profile_nodes(model, {"x": np.zeros((2, 2), np.float32)})


def test_kernels_are_named_after_the_nodes_whose_work_they_do(build):
    build.add("MatMul", ["x", build.const("w", np.ones((4, 4), np.float32))], "h")
    build.add("Relu", ["h"], "y")
    model = build.model((1, 4), {"y": (1, 4)})
    product, relu = (str(node.name) for node in model.graph)

    def kernel(name, op):
        return NodeTime(node=name, op_type=op, provider="CPUExecutionProvider", mean_us=1.0, share=0.2)

    kernels = [
        kernel(f"{product}_token_7", "QLinearMatMul"),
        kernel("y_nchwc", "MatMul"),
        kernel("y", "Relu"),
        kernel("Transpose_token_3", "Transpose"),
    ]
    assert [found.node for found in named_after(kernels, model)] == [product, product, relu, "Transpose_token_3"]


def test_memory_grows_by_the_weights(build, tmp_path):
    weights_mb = 2048 * 2048 * 4 / 1e6
    graph.save_model(_product(build, 2048), tmp_path / "m.onnx")
    ballast = np.ones(60_000_000, np.uint8)  # the parent's memory must not count
    memory = measure_memory(tmp_path / "m.onnx", {"x": np.zeros((1, 2048), np.float32)})
    assert memory.peak_mb - memory.baseline_mb > 0.9 * weights_mb
    assert memory.baseline_mb < 150
    assert ballast.size


def test_memory_of_a_model_that_does_not_run_is_an_error(build, tmp_path):
    graph.save_model(_product(build, 4), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="the process that measures memory ended with 1"):
        measure_memory(tmp_path / "m.onnx", {"x": np.zeros((1, 5), np.float32)})


def test_machine_names_neither_host_nor_user():
    machine = describe_machine()
    text = repr(machine)
    assert machine.cores >= 1
    assert machine.cpu
    assert machine.python == platform.python_version()
    assert platform.node() not in text
    assert len(getpass.getuser()) < 3 or getpass.getuser() not in text


def _chain(build, noise: float):
    build.add("Relu", ["x"], "first")
    build.add("Add", ["first", build.const("c", np.float32(noise))], "second")
    build.add("Neg", ["second"], "third")
    return build.model((1, 4), {"third": (1, 4)})


def test_blame_finds_the_node_that_errs(build):
    exact, noisy = _chain(build, 0.0), _chain(type(build)(), 0.1)
    names = {"first": "first", "second": "second", "third": "third"}
    feeds = [{"x": np.full((1, 4), 1.0, np.float32)}, {"x": np.full((1, 4), 1.0, np.float32)}]
    errors = layer_errors(exact, noisy, names, feeds)
    assert [error.node for error in errors] == ["second", "third", "first"]
    second, third, first = errors
    assert second.sqnr_db == third.sqnr_db == pytest.approx(20, abs=0.01)
    assert (second.own_share, third.own_share) == (1.0, 0.0)
    assert (first.sqnr_db, first.own_share) == (200, 0)
    assert (second.op_type, second.depth) == ("Add", 1)


def test_blame_follows_inputs_over_tensors_that_are_not_compared(build):
    exact, noisy = _chain(build, 0.0), _chain(type(build)(), 0.1)
    errors = layer_errors(exact, noisy, {"third": "third"}, [{"x": np.ones((1, 4), np.float32)}])
    assert [(error.node, error.own_share) for error in errors] == [("third", 1.0)]


def test_blame_names_a_tensor_that_does_not_exist(build):
    model = _chain(build, 0.0)
    with pytest.raises(ModelError, match="the model has no tensor 'nowhere'"):
        layer_errors(model, model, {"first": "nowhere"}, [])


def test_blame_compares_the_tensors_behind_dequantize(conv_relu):
    model = conv_relu()
    names = {"conv1": "conv1", "relu1": "relu1", "conv2": "conv2_dq"}
    feeds = [{"x": np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)}]
    errors = {error.tensor: error for error in layer_errors(model, model, names, feeds)}
    assert errors["conv1"].sqnr_db == 200
    assert 0 < errors["conv2"].sqnr_db < 60
    assert errors["conv2"].own_share == 1
