"""The whole stage: fixed shapes, proof, and the real models."""

from __future__ import annotations

import functools
import sys

import numpy as np
import onnx_ir as ir
import pytest
from prep_models import build, example, ints, normal, ops, positive, scalar

from edgeq.errors import ConfigError, ModelError
from edgeq.graph import set_initializer, to_bytes
from edgeq.metrics import sqnr_db
from edgeq.runtime import run_model
from edgeq.source import Source
from edgeq.stages.prep import PREP_PASSES, prepare
from edgeq.stages.prep.rewrite import PrepPass

prepare_file = sys.modules["edgeq.stages.prep.prepare"]

SMALL = """p = Pad(x, pads) c = Conv(p, w) b = BatchNormalization(c, g, o, m, v) i = Identity(b)
    q = Max(i, zero) r = Min(q, six) s = ReduceMean<keepdims=0>(r, spatial) y = Gemm<transB=1>(s, k, d)"""


def small(batch: str = "batch") -> ir.Model:
    constants = {"pads": ints(0, 0, 1, 1, 0, 0, 1, 1), "w": normal(4, 3, 3, 3), "k": normal(5, 4), "d": normal(5)}
    constants |= {"g": positive(4), "o": normal(4), "m": normal(4), "v": positive(4)}
    constants |= {"zero": scalar(0), "six": scalar(6), "spatial": ints(2, 3)}
    return build(f"float[{batch},3,8,8] x => float[{batch},5] y", SMALL, **constants)


class Spoil(PrepPass):
    """A wrong pass: it adds a number to the last initializer."""

    name = "spoil"

    def __init__(self, effect: str, by: float) -> None:
        self.effect = effect
        self._by = by
        self._done = False

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        node = next(node for node in model.graph if node.op_type == "Gemm")
        value = node.inputs[2]
        array = value.const_value.numpy()
        # A run on another copy of the model starts again.
        done = value.meta.get("spoiled", False)
        value.meta["spoiled"] = True
        if not done:
            set_initializer(model, value.name, (array + self._by).astype(np.float32))
        return ir.passes.PassResult(model, not done)


def test_all_passes_together():
    model = small()
    before = to_bytes(model)
    feeds = example(model)
    result = prepare(model, static=True, example_inputs=feeds)
    assert to_bytes(model) == before
    assert ops(result.model) == {"Conv": 1, "Clip": 1, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}
    assert result.model.graph.inputs[0].shape == (2, 3, 8, 8)
    assert sqnr_db(run_model(model, feeds)["y"], run_model(result.model, feeds)["y"]) > 100
    assert [step.name for step in result.steps] == ["fix shapes", *(step.name for step in PREP_PASSES)]
    folded = next(step for step in result.steps if step.name == "fold batch norm")
    assert folded.modified
    assert folded.removed_nodes == 1
    assert folded.sqnr_db > 90
    assert folded.max_abs_error < 1e-4


def test_preparing_twice_changes_nothing():
    model = small()
    once = prepare(model, static=True, example_inputs=example(model))
    again = prepare(once.model, static=True, example_inputs=example(model))
    assert not any(step.modified for step in again.steps)
    assert to_bytes(again.model) == to_bytes(once.model)


def test_the_same_model_gives_the_same_bytes():
    model = small()
    feeds = example(model)
    first, second = (prepare(model, static=False, example_inputs=feeds).model for _ in range(2))
    assert to_bytes(first) == to_bytes(second)


def test_without_proof_nothing_is_measured():
    model = small()
    result = prepare(model, static=True, example_inputs=example(model), prove=False)
    assert len(result.model.graph) == 5
    assert {step.sqnr_db for step in result.steps} == {None}


@pytest.mark.parametrize("each", [True, False], ids=["each pass", "at the end"])
@pytest.mark.parametrize(
    ("effect", "by", "message"),
    [
        ("exact", 1e-3, "preparation pass 'spoil' changed output 'y': .* must keep outputs to the bit"),
        ("reorders", 1e-1, "preparation pass 'spoil' changed output 'y': .* may lose no more than 90 dB"),
    ],
)
def test_a_wrong_pass_is_named(monkeypatch, each, effect, by, message):
    passes = (*PREP_PASSES[:5], Spoil(effect, 0.5 if not each else by), *PREP_PASSES[5:])
    monkeypatch.setattr(prepare_file, "PREP_PASSES", passes)
    if not each:
        monkeypatch.setattr(prepare_file, "PROVE_EACH_BYTES", 0)
    model = small()
    before = to_bytes(model)
    with pytest.raises(ModelError, match=message):
        prepare(model, static=True, example_inputs=example(model))
    assert to_bytes(model) == before


def touchy() -> tuple[ir.Model, dict[str, np.ndarray]]:
    """A model whose outputs are known to less than 90 dB: it looks at the fraction of large numbers."""
    rng = np.random.default_rng(3)

    def drawn(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    constants = {"w": drawn(4, 3, 3, 3), "g": drawn(4), "o": drawn(4), "m": drawn(4), "v": np.square(drawn(4)) + 0.5}
    constants |= {"k": drawn(16, 144), "d": drawn(16), "much": scalar(30)}
    body = """c = Conv(x, w) b = BatchNormalization(c, g, o, m, v) f = Flatten(b) e = Gemm<transB=1>(f, k, d)
        t = Mul(e, much) y = Sin(t)"""
    return build("float[1,3,8,8] x => float[1,16] y", body, **constants), {"x": drawn(1, 3, 8, 8)}


def test_a_model_that_rounds_badly_by_itself_is_judged_by_that():
    model, feeds = touchy()
    result = prepare(model, static=True, example_inputs=feeds)
    assert "BatchNormalization" not in ops(result.model)
    assert 60 < next(step.sqnr_db for step in result.steps if step.name == "fold batch norm") < 90


@pytest.mark.parametrize("by", [3e-3, 0.3])
def test_a_wrong_pass_is_found_in_a_model_that_rounds_badly(monkeypatch, by):
    monkeypatch.setattr(prepare_file, "PREP_PASSES", (*PREP_PASSES, Spoil("reorders", by)))
    model, feeds = touchy()
    with pytest.raises(ModelError, match=r"preparation pass 'spoil' changed output 'y': .* no more than 90 dB"):
        prepare(model, static=True, example_inputs=feeds)


def test_a_pass_that_fails_is_named(monkeypatch):
    class Fail(PrepPass):
        name = "fail"

        def call(self, model: ir.Model) -> ir.passes.PassResult:
            raise KeyError("axes")

    monkeypatch.setattr(prepare_file, "PREP_PASSES", (Fail(),))
    with pytest.raises(ModelError, match="preparation pass 'fail' cannot handle the model: KeyError: 'axes'"):
        prepare(small(), static=False, example_inputs=example(small()))


def test_weights_are_not_read_to_infer_shapes():
    """A model may be larger than one protobuf: its weights must stay where they are."""

    def explode() -> ir.TensorProtocol:
        raise AssertionError("the weight was read")

    model = build("float[n,1000] x => float[n,1000] y", "a = MatMul(x, w) y = Relu(a)", w=normal(1000, 1000))
    tensor = ir.LazyTensor(explode, dtype=ir.DataType.FLOAT, shape=ir.Shape([1000, 1000]), name="w")
    model.graph.initializers["w"].const_value = tensor
    value = next(iter(model.graph)).outputs[0]
    value.shape = None
    result = prepare(model, static=False, example_inputs={"x": normal(2, 1000)}, prove=False)
    assert result.model.graph.node(0).outputs[0].shape == ir.Shape(["n", 1000])


def test_a_pass_that_breaks_the_graph_is_named(monkeypatch):
    class Break(PrepPass):
        name = "break"

        def call(self, model: ir.Model) -> ir.passes.PassResult:
            node = list(model.graph)[-1]
            done = node.op_type == "NoSuchOperator"
            node.op_type = "NoSuchOperator"
            return ir.passes.PassResult(model, not done)

    monkeypatch.setattr(prepare_file, "PREP_PASSES", (Break(),))
    model = small()
    with pytest.raises(ModelError, match="preparation pass 'break' broke the model: ONNX Runtime"):
        prepare(model, static=True, example_inputs=example(model))


def test_large_models_are_proved_at_the_end(monkeypatch):
    monkeypatch.setattr(prepare_file, "PROVE_EACH_BYTES", 0)
    model = small()
    steps = prepare(model, static=True, example_inputs=example(model)).steps
    assert [step.sqnr_db is None for step in steps] == [True] * (len(steps) - 1) + [False]
    assert steps[-1].sqnr_db > 90


def test_fixed_dims_by_name_axis_and_input():
    body = "y = Add(u, v)"
    model = build("float[batch,length] u, float[batch,length] v => float[batch,length] y", body)
    feeds = {"u": normal(3, 2), "v": normal(3, 2)}
    for fixed_dims in ({"batch": 1, "length": 7}, {"u:0": 1, "batch": 1, "length": 7}):
        result = prepare(model, static=False, fixed_dims=fixed_dims, example_inputs=feeds)
        assert [list(value.shape) for value in result.model.graph.inputs] == [[1, 7], [1, 7]]
        assert list(result.model.graph.outputs[0].shape) == [1, 7]
    result = prepare(model, static=False, fixed_dims={"batch": 1}, example_inputs=feeds)
    assert result.model.graph.inputs[0].shape == ir.Shape([1, "length"])
    result = prepare(model, static=True, fixed_dims={"batch": 1}, example_inputs=feeds)
    assert list(result.model.graph.outputs[0].shape) == [1, 2]
    model = build("float[n,3] u => float[n,3] y", "y = Relu(u)")
    result = prepare(model, static=False, fixed_dims={"u": 4}, example_inputs={"u": normal(1, 3)})
    assert list(result.model.graph.outputs[0].shape) == [4, 3]


def test_not_static_stays_dynamic():
    model = small()
    result = prepare(model, static=False, example_inputs=example(model))
    assert result.model.graph.inputs[0].shape == ir.Shape(["batch", 3, 8, 8])
    feeds = {"x": normal(5, 3, 8, 8)}
    assert sqnr_db(run_model(model, feeds)["y"], run_model(result.model, feeds)["y"]) > 100


def test_shape_arithmetic_folds_away_when_static():
    body = """s = Shape(x) b = Gather(s, zero) l = Gather(s, one) t = Concat<axis=0>(b, l, heads)
        r = Reshape(x, t) e = Expand(mask, l) y = Transpose<perm=[0,2,1,3]>(r) z = Add(e, e)"""
    model = build(
        "float[batch,length,8] x, float[1] mask => float[batch,2,length,4] y, float[length] z",
        body,
        zero=ints(0),
        one=ints(1),
        heads=ints(2, 4),
    )
    result = prepare(model, static=True, example_inputs={"x": normal(1, 6, 8), "mask": normal(1)})
    assert ops(result.model) == {"Reshape": 1, "Expand": 1, "Transpose": 1, "Add": 1}
    assert all(output.shape.is_static() for node in result.model.graph for output in node.outputs)


@pytest.mark.parametrize(
    ("fixed_dims", "message"),
    [
        ({"time": 3}, r"no input has one dynamic dimension 'time'.*\n.*choose among: x:0 \(batch\)"),
        ({"batch": 0}, "dimension 'batch' must be a positive integer, got 0"),
        ({"x:1": 3}, "no input has one dynamic dimension 'x:1'"),
    ],
)
def test_wrong_fixed_dims(fixed_dims, message):
    model = small()
    with pytest.raises(ConfigError, match=message):
        prepare(model, static=True, fixed_dims=fixed_dims, example_inputs=example(model))


def test_contradicting_sizes():
    model = build("float[n,2] u, float[n,2] v => float[n,2] y", "y = Add(u, v)")
    with pytest.raises(ModelError, match="dimension 'n' would be 3 in u:0 and 4 in v:0"):
        prepare(model, static=True, example_inputs={"u": normal(3, 2), "v": normal(4, 2)})


@pytest.mark.parametrize("feeds", [{}, {"x": np.zeros((3, 8, 8), np.float32)}], ids=["missing", "rank"])
def test_examples_must_give_the_sizes(feeds):
    with pytest.raises(ModelError, match="the size of x:0 is to come from the example input, but"):
        prepare(small(), static=True, example_inputs=feeds)


def test_missing_example():
    with pytest.raises(ModelError, match="no data for input x: float32"):
        prepare(small(), static=False, example_inputs={})


def test_what_stays_dynamic_is_named():
    model = build("float[4] x => int64[a,b] y", "y = NonZero(x)")
    with pytest.raises(ModelError, match=r"1 tensors stay dynamic: y \(NonZero, shape"):
        prepare(model, static=True, example_inputs={"x": normal(4)})


def test_a_model_that_cannot_run_is_an_error():
    model = build("float[4] x => float[a] y", "y = NoSuch(x)")
    with pytest.raises(ModelError, match=r"ONNX Runtime .* cannot load the model"):
        prepare(model, static=False, example_inputs={"x": normal(4)})


def test_infinities_and_masks_are_left_alone():
    body = "b = Cast<to=9>(m) w = Where(b, zero, low) s = Add(x, w) y = Softmax(s)"
    low = np.array(np.finfo(np.float32).min)
    model = build("float[n,6] x, int64[n,6] m => float[n,6] y", body, zero=scalar(0), low=low)
    feeds = {"x": normal(2, 6), "m": np.array([[1, 1, 0, 0, 1, 1], [1, 0, 0, 0, 0, 0]])}
    result = prepare(model, static=True, example_inputs=feeds)
    assert result.model.graph.initializers["low"].const_value.numpy() == low


@functools.cache
def source(name: str) -> Source:
    pytest.importorskip("torch")
    from edgeq.stages.export import load_source

    return load_source(f"example:{name}")


@pytest.mark.torch
def test_efficientnet_ends_canonical():
    lite = source("efficientnet-lite0")
    result = prepare(lite.model, static=True, example_inputs=lite.example_inputs)
    counts = ops(result.model)
    flat = counts.pop("Reshape", 0) + counts.pop("Flatten", 0)
    assert counts == {"Conv": 49, "Clip": 33, "Add": 9, "GlobalAveragePool": 1, "Gemm": 1}
    assert flat == 1
    found = run_model(result.model, lite.example_inputs)
    for name, expected in run_model(lite.model, lite.example_inputs).items():
        assert sqnr_db(expected, found[name]) >= 100
    assert all(output.shape.is_static() and output.dtype for node in result.model.graph for output in node.outputs)
    gemm = next(node for node in result.model.graph if node.op_type == "Gemm")
    assert not gemm.attributes.get_int("transB", 0)


@pytest.mark.torch
@pytest.mark.parametrize(("static", "most"), [(True, 189), (False, 195)], ids=["static", "dynamic"])
def test_minilm_is_no_larger_than_the_best_simplifier_makes_it(static, most):
    minilm = source("minilm")
    result = prepare(minilm.model, static=static, example_inputs=minilm.example_inputs)
    assert len(result.model.graph) <= most
    assert ops(result.model)["MatMul"] == 48
    assert not any(step(result.model).modified for step in PREP_PASSES)
