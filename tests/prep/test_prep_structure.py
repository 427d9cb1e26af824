"""Passes that rewrite the graph without touching a number."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from prep_models import apply, build, example, ints, normal, ops, scalar

from edgeq.graph import constant_array, load_model
from edgeq.stages.prep.clear_metadata import ClearMetadata
from edgeq.stages.prep.fix_reshapes import FixReshapes
from edgeq.stages.prep.fold_constants import FOLD_LIMIT, FoldConstants
from edgeq.stages.prep.fold_shapes import FoldShapes
from edgeq.stages.prep.global_average_pool import UseGlobalAveragePool
from edgeq.stages.prep.inline_functions import InlineFunctions
from edgeq.stages.prep.lift_constants import LiftConstants
from edgeq.stages.prep.merge_clips import MergeClips
from edgeq.stages.prep.merge_duplicates import MergeDuplicates
from edgeq.stages.prep.merge_slices import MergeSlices
from edgeq.stages.prep.merge_views import MergeViews
from edgeq.stages.prep.remove_no_ops import RemoveNoOps
from edgeq.stages.prep.remove_unused import RemoveUnused
from edgeq.stages.prep.resolve_casts import ResolveCasts

VECTOR = "float[n,4] x => float[a,b] y"
IMAGE = "float[n,4,6,6] x => float[a,b,c,d] y"

NO_OPS = {
    "identity": (VECTOR, "i = Identity(x) y = Relu(i)"),
    "identity to output": (VECTOR, "i = Relu(x) y = Identity(i)"),
    "dropout": (VECTOR, "i = Dropout(x) y = Relu(i)"),
    "dropout not training": (VECTOR, "i = Dropout(x, half, false) y = Relu(i)"),
    "cast": (VECTOR, "i = Cast<to=1>(x) y = Relu(i)"),
    "cast like": (VECTOR, "i = CastLike(x, one) y = Relu(i)"),
    "reshape": (VECTOR, "i = Reshape(x, same) y = Relu(i)"),
    "flatten": (VECTOR, "i = Flatten(x) y = Relu(i)"),
    "transpose": (VECTOR, "i = Transpose<perm=[0,1]>(x) y = Relu(i)"),
    "slice": (VECTOR, "i = Slice(x, from, to) y = Relu(i)"),
    "expand": (VECTOR, "i = Expand(x, ones) y = Relu(i)"),
    "expand to the same": (VECTOR, "i = Expand(x, four) y = Relu(i)"),
    "pad": (VECTOR, "i = Pad(x, zeros) y = Relu(i)"),
    "tile": (VECTOR, "i = Tile(x, ones) y = Relu(i)"),
    "concat": (VECTOR, "i = Concat<axis=0>(x) y = Relu(i)"),
    "clip": (VECTOR, "i = Clip(x) y = Relu(i)"),
    "add 0": (VECTOR, "i = Add(zero, x) y = Relu(i)"),
    "add vector of 0": (VECTOR, "i = Add(x, none) y = Relu(i)"),
    "mul 1": (VECTOR, "i = Mul(x, one) y = Relu(i)"),
    "sub 0": (VECTOR, "i = Sub(x, zero) y = Relu(i)"),
    "div 1": (VECTOR, "i = Div(x, one) y = Relu(i)"),
    "pow 1": (VECTOR, "i = Pow(x, one) y = Relu(i)"),
}
CONSTANTS = {
    "half": scalar(0.5),
    "false": np.array(False),
    "one": scalar(1),
    "zero": scalar(0),
    "none": np.zeros(4, np.float32),
    "wide": np.zeros((3, 1, 4), np.float32),
    "same": ints(-1, 4),
    "from": ints(0, 0),
    "to": ints(2**31, 4),
    "most": ints(2**31, 3),
    "ones": ints(1, 1),
    "twice": ints(2, 1),
    "four": ints(4),
    "zeros": ints(0, 0, 0, 0),
    "shift": ints(0, 1, 0, -1),
    "backward": ints(-1),
    "last": ints(-1),
    "before": ints(-(2**31)),
    "axis1": ints(1),
    "axes": ints(0, 1),
    "other": ints(4, -1),
}


@pytest.mark.parametrize("case", NO_OPS.values(), ids=NO_OPS)
def test_no_op_is_removed(case):
    model = build(*case, **CONSTANTS)
    assert apply(RemoveNoOps(), model)
    assert ops(model) == {"Relu": 1}
    assert model.graph.outputs[0].name == "y"


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        (VECTOR, "y = Identity(x)"),
        ("float[n,4] x => float[a,b] y, float[c,d] z", "z = Relu(x) y = Identity(z)"),
        ("float[n,4] x => float[a,b] y, bool[c,d] m", "i, m = Dropout(x) y = Relu(i)"),
        (VECTOR, "i = Cast<to=11>(x) y = Cast<to=1>(i)"),
        (VECTOR, "y = Slice(x, from, most)"),
        (VECTOR, "y = Slice(x, last, before, axis1, backward)"),
        (VECTOR, "y = Slice(x, from, to, axes, twice)"),
        (VECTOR, "y = Pad(x, shift)"),
        (VECTOR, "y = Tile(x, twice)"),
        ("float[n,4] x => float[a,b,c] y", "y = Add(x, wide)"),
        ("float[n,1] x => float[a,b] y", "y = Add(x, none)"),
        ("float[n,1] x => float[a,b] y", "y = Expand(x, four)"),
        (VECTOR, "y = Sub(zero, x)"),
        (VECTOR, "y = Div(one, x)"),
        (VECTOR, "y = Mul(x, half)"),
        (VECTOR, "y = Transpose<perm=[1,0]>(x)"),
        ("float[4,3] x => float[a,b] y", "y = Reshape(x, other2)"),
    ],
    ids=[
        "input to output",
        "output to output",
        "dropout's mask",
        "casts",
        "shorter",
        "reversed",
        "every other",
        "shifted",
        "repeated",
        "adds a dimension",
        "widens",
        "expands",
        "0 - x",
        "1 / x",
        "x / 2",
        "transposed",
        "reshaped",
    ],
)
def test_not_a_no_op(signature, body):
    model = build(signature, body, **CONSTANTS, other2=ints(3, 4))
    before = ops(model)
    assert not apply(RemoveNoOps(), model)
    assert ops(model) == before


def test_reshape_of_two_dynamic_dimensions_stays():
    model = build("float[n,m] x, int64[2] s => float[a,b] y", "y = Reshape(x, s)")
    assert not RemoveNoOps()(model).modified


def test_training_dropout_stays():
    model = build(VECTOR, "y = Dropout(x, half, true)", **CONSTANTS, true=np.array(True))
    assert not RemoveNoOps()(model).modified


def test_unused_goes_and_inputs_stay():
    body = "a = Abs(x) b = Neg(a) y, i = MaxPool<kernel_shape=[2,2]>(x)"
    model = build("float[1,2,4,4] x, float[3] u => float[a,b,c,d] y", body, w=normal(3))
    assert apply(RemoveUnused(), model)
    assert ops(model) == {"MaxPool": 1}
    assert [value.name for value in model.graph.inputs] == ["x", "u"]
    assert not model.graph.initializers
    assert len(next(iter(model.graph)).outputs) == 1


def test_what_a_subgraph_reads_is_used():
    body = """a = Abs(x) y = If(c) <
        then_branch = t () => (float[n,4] p) { p = Neg(a) },
        else_branch = e () => (float[n,4] q) { q = Relu(x) }>"""
    model = build("float[n,4] x, bool c => float[a,b] y", body)
    assert not apply(RemoveUnused(), model)


def test_constants_become_initializers():
    body = "c = Constant<value_float=2.0>() d = Constant<value = float[4] {1,2,3,4}>() e = Mul(x, c) y = Add(e, d)"
    model = build(VECTOR, body)
    assert apply(LiftConstants(), model)
    assert ops(model) == {"Mul": 1, "Add": 1}
    assert sorted(model.graph.initializers) == ["c", "d"]


def test_constant_that_is_an_output_stays():
    model = build("float[n,4] x => float y", "y = Constant<value_float=2.0>()")
    assert not apply(LiftConstants(), model)


def test_initializers_listed_as_inputs_become_constants(tmp_path):
    x, w, y = (helper.make_tensor_value_info(name, 1, [4]) for name in "xwy")
    weight = numpy_helper.from_array(normal(4), "w")
    graph = helper.make_graph([helper.make_node("Mul", ["x", "w"], ["y"])], "g", [x, w], [y], [weight])
    proto = helper.make_model(graph, ir_version=3, opset_imports=[helper.make_opsetid("", 11)])
    onnx.save(proto, tmp_path / "old.onnx")
    model = load_model(tmp_path / "old.onnx")
    assert apply(LiftConstants(), model, {"x": normal(4)})
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert constant_array(next(iter(model.graph)).inputs[1]) is not None


def test_metadata_goes():
    model = build(VECTOR, "y = Relu(x)")
    node = next(iter(model.graph))
    node.metadata_props["stack_trace"] = "File model.py, line 3"
    node.doc_string = "secret"
    model.metadata_props["author"] = "kept"
    assert apply(ClearMetadata(), model)
    assert not node.metadata_props
    assert node.doc_string is None
    assert model.metadata_props == {"author": "kept"}
    assert not apply(ClearMetadata(), model)


def test_functions_are_inlined():
    text = """<ir_version: 10, opset_import: ["": 21, "local": 1]> g (float[4] x) => (float[4] y) { y = local.f(x) }
        <domain: "local", opset_import: ["": 21]> f (a) => (b) { c = Relu(a) b = Neg(c) }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    assert apply(InlineFunctions(), model)
    assert ops(model) == {"Relu": 1, "Neg": 1}


def test_constants_fold():
    body = """t = Transpose<perm=[1,0]>(w) u = Mul(t, s) a, b = Split<axis=1, num_outputs=2>(u)
        p = MatMul(x, a) y = Add(p, b)"""
    weight = normal(6, 4)
    model = build("float[4,4] x => float[a,b] y", body, w=weight, s=scalar(2))
    assert apply(FoldConstants(), model)
    assert ops(model) == {"MatMul": 1, "Add": 1}
    np.testing.assert_array_equal(model.graph.initializers["a"].const_value.numpy(), 2 * weight.T[:, :3])


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        ("float[n,4] x => float[a,b] y", "e = Expand(one, huge) s = ReduceMax<keepdims=0>(e) y = Add(x, s)"),
        ("float[n,4] x => float[a,b] y", "r = RandomNormalLike<seed=1.0>(w) z = Mul(r, zero) y = Add(x, z)"),
        ("float[n,4] x => float[a,b] y", "d = DequantizeLinear(q, one) y = Mul(x, d)"),
        ("float[n,4] x => float[a,b] y, float[4] z", "z = Neg(w) y = Relu(x)"),
    ],
    ids=["too large", "random", "integer weights", "model output"],
)
def test_constants_that_stay(signature, body):
    constants = {"one": scalar(1), "zero": scalar(0), "w": normal(4), "q": np.arange(4, dtype=np.int8)}
    model = build(signature, body, **constants, huge=ints(FOLD_LIMIT // 4 + 1))
    before = ops(model)
    if "Random" in body:
        assert not FoldConstants()(model).modified
    else:
        assert not apply(FoldConstants(), model)
    assert ops(model) == before


def test_what_would_be_too_large_is_not_even_computed(monkeypatch):
    def explode(*args: object) -> None:
        raise AssertionError("the node was run")

    monkeypatch.setattr("edgeq.stages.prep.fold_constants.open_session", explode)
    model = build("float[4] x => float[n] y", "e = Expand(one, huge) y = Relu(e)", one=scalar(1), huge=ints(2**40))
    assert not FoldConstants()(model).modified


@pytest.mark.parametrize(("length", "propagated"), [(100, True), (10**6, False)])
def test_values_of_long_vectors_are_not_propagated(monkeypatch, length, propagated):
    infer, asked = onnx.shape_inference.infer_shapes, []

    def spy(proto: onnx.ModelProto, data_prop: bool = False) -> onnx.ModelProto:
        asked.append(data_prop)
        return infer(proto, data_prop=data_prop)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", spy)
    build("float[1] x => float[n] y", "e = Expand(x, size) y = Relu(e)", size=ints(length))
    assert any(asked) == propagated


def test_a_node_that_cannot_run_alone_stays():
    model = build(VECTOR, "r = Reshape(w, bad) y = Add(x, r)", w=normal(4), bad=ints(3, 1))
    assert not FoldConstants()(model).modified


def test_known_shapes_fold():
    body = "s = Shape(x) a = Gather(s, index) b = Slice(s, from, to) c = Size(k) d = Concat<axis=0>(a, b) y = Add(d, c)"
    constants = {"index": ints(1), "from": ints(2), "to": ints(9), "k": normal(3, 5)}
    model = build("float[n,4,6] x => int64[a] y", body, **constants)
    assert apply(FoldShapes(), model)
    # Shape itself stays (the batch is dynamic) until nothing reads it.
    assert ops(model) == {"Shape": 1, "Concat": 1, "Add": 1}
    assert not next(iter(model.graph)).outputs[0].uses()


@pytest.mark.parametrize(
    "body",
    [
        "y = Shape(x)",
        "s = Shape(x) y = Gather(s, index)",
        "s = Shape(x) y = Slice(s, zero, one)",
        "s = Size(x) y = Unsqueeze(s, zero)",
    ],
)
def test_dynamic_shapes_stay(body):
    model = build("float[n,4,6] x => int64[a] y", body, index=ints(-3), zero=ints(0), one=ints(2))
    before = ops(model)
    assert not apply(FoldShapes(), model)
    assert ops(model) == before


def test_computed_reshape_gets_a_constant_target():
    body = "s = Shape<start=0, end=2>(x) t = Concat<axis=0>(s, heads) y = Reshape<allowzero=1>(x, t)"
    model = build("float[batch,length,8] x => float[batch,length,2,4] y", body, heads=ints(2, 4))
    assert apply(FixReshapes(), model, example(model, batch=3, length=5))
    target = list(model.graph)[-1].inputs[1]
    assert constant_array(target).tolist() == [0, 0, 2, 4]


def test_computed_reshape_of_two_unknown_dimensions_stays():
    model = build("float[n,m,8] x, int64[4] t => float[a,b,2,4] y", "y = Reshape(x, t)")
    assert not FixReshapes()(model).modified


def test_allowzero_stays_where_it_means_something():
    model = build("float[0,4] x => float[a,b] y", "y = Reshape<allowzero=1>(x, t)", t=ints(0, 2))
    assert not apply(FixReshapes(), model)
    model = build("float[2,4] x => float[a,b] y", "y = Reshape<allowzero=1>(x, t)", t=ints(4, 2))
    assert apply(FixReshapes(), model)


def test_cast_like_becomes_cast():
    model = build("float[n,4] x, float16[2] h => float16[a,b] y", "y = CastLike(x, h)")
    assert apply(ResolveCasts(), model)
    assert ops(model) == {"Cast": 1}


VIEWS = {
    "reshapes": "a = Reshape(x, s1) b = Reshape(a, s2) y = Reshape(b, s3)",
    "flatten": "a = Unsqueeze(x, one) b = Squeeze(a, one) c = Flatten<axis=2>(b) y = Reshape(c, s3)",
}


@pytest.mark.parametrize("body", VIEWS.values(), ids=VIEWS)
def test_views_merge(body):
    constants = {"s1": ints(-1, 36), "s2": ints(-1, 4, 6, 6), "s3": ints(-1, 12, 12), "one": ints(1)}
    model = build("float[n,4,6,6] x => float[a,b,c] y", body, **constants)
    assert apply(MergeViews(), model)
    RemoveUnused()(model)
    assert ops(model) == {"Reshape": 1}


def test_transposes_merge():
    body = "a = Transpose<perm=[0,2,3,1]>(x) b = Transpose<perm=[1,0,2,3]>(a) y = Transpose<perm=[3,0,1,2]>(b)"
    model = build(IMAGE, body)
    assert apply(MergeViews(), model)
    RemoveUnused()(model)
    assert ops(model) == {"Transpose": 1}


@pytest.mark.parametrize(
    ("signature", "perm", "views"),
    [
        ("float[n,1,6,1] x => float[a,b,c,d] y", [0, 3, 1, 2], {"Reshape": 1}),
        ("float[1,4,1,6] x => float[a,b,c,d] y", [1, 0, 3, 2], {"Reshape": 1}),
        ("float[n,1,6,1] x => float[a,b,c,d] y", [2, 0, 1, 3], {"Transpose": 1}),
        ("float[1,4,1,6] x => float[a,b,c,d] y", [0, 3, 2, 1], {"Transpose": 1}),
        ("float[n,m,1] x => float[a,b,c] y", [2, 0, 1], {"Transpose": 1}),
    ],
    ids=["dynamic batch", "static", "crosses the batch", "crosses", "two unknown dimensions"],
)
def test_transpose_of_axes_of_size_1_is_a_view(signature, perm, views):
    model = build(signature, f"y = Transpose<perm={perm}>(x)")
    assert apply(MergeViews(), model) == ("Reshape" in views)
    assert ops(model) == views


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        ("float[n,4,6] x => float[a,b] y, float[c,d] z", "r = Flatten(x) z = Relu(r) y = Reshape(r, s)"),
        ("float[n,4,6] x => float[a,b] y, float[c,d] r", "r = Flatten(x) y = Reshape(r, s)"),
        ("float[n,m,6] x => float[a,b,c,d,e] y", "r = Unsqueeze(x, zero) y = Unsqueeze(r, zero)"),
    ],
    ids=["second reader", "output", "two unknown dimensions"],
)
def test_views_that_stay(signature, body):
    model = build(signature, body, s=ints(-1, 12), zero=ints(0))
    assert not apply(MergeViews(), model)


def test_slices_merge():
    body = """a = Slice(x, zero, end, ax2, two) b = Slice(x, one, end, ax2, two)
        c = Slice(a, zero, end, ax3, two) d = Slice(b, one, end, ax3, two)
        e = Slice(a, one, end, ax3, two) f = Add(c, d) y = Add(e, f)"""
    constants = {"zero": ints(0), "one": ints(1), "two": ints(2), "end": ints(2**62), "ax2": ints(2), "ax3": ints(-1)}
    model = build(IMAGE, body, **constants)
    assert apply(MergeSlices(), model)
    RemoveUnused()(model)
    assert ops(model) == {"Slice": 3, "Add": 2}


@pytest.mark.parametrize(
    "body",
    [
        "a = Slice(x, one, end, ax2) y = Slice(a, one, end, ax2)",
        "a = Slice(x, one, end, ax2) b = Slice(a, one, end, ax3) c = ReduceMax(a) y = Add(b, c)",
    ],
    ids=["same axis", "second reader"],
)
def test_slices_that_stay(body):
    model = build(IMAGE, body, one=ints(1), end=ints(99), ax2=ints(2), ax3=ints(3))
    assert not apply(MergeSlices(), model)


CLIPS = {
    "min of max": ("a = Max(x, zero) y = Min(a, six)", {"Clip": 1}),
    "max of min": ("a = Min(six, x) y = Max(a, zero)", {"Clip": 1}),
    "relu then min": ("a = Relu(x) y = Min(a, six)", {"Clip": 1}),
    "relu then clip": ("a = Relu(x) y = Clip(a, , six)", {"Clip": 1}),
    "clip then clip": ("a = Clip(x, zero, six) y = Clip(a, low, one)", {"Clip": 1}),
    "clip then relu": ("a = Clip(x, low) y = Relu(a)", {"Relu": 1}),
    "relu then relu": ("a = Relu(x) y = Relu(a)", {"Relu": 1}),
    "max alone": ("y = Max(x, zero)", {"Relu": 1}),
    "clip at zero": ("y = Clip(x, zero)", {"Relu": 1}),
    "bound of rank 1": ("a = Max(x, zero1) y = Min(a, six)", {"Clip": 1}),
}
BOUNDS = {"zero": scalar(0), "six": scalar(6), "one": scalar(1), "low": scalar(-3), "zero1": np.zeros(1, np.float32)}


@pytest.mark.parametrize("case", CLIPS.values(), ids=CLIPS)
def test_clips_merge(case):
    body, expected = case
    model = build(VECTOR, body, **BOUNDS)
    feeds = {"x": np.linspace(-9, 9, 32, dtype=np.float32).reshape(8, 4)}
    assert apply(MergeClips(), model, feeds)
    RemoveUnused()(model)
    assert ops(model) == expected


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        (VECTOR, "a = Max(x, six) y = Min(a, zero)"),
        (VECTOR, "y = Clip(x, six, zero)"),
        (VECTOR, "a = Relu(x) y = Clip(a, low, low)"),
        (VECTOR, "a = Max(x, row) y = Min(a, six)"),
        ("float[n,4] x => float[a,b,c] y", "a = Max(x, deep) y = Min(a, six)"),
        ("float[n,4] x, float u => float[a,b] y", "a = Relu(x) y = Clip(a, u, six)"),
        ("float[n,4] x => float[a,b] y, float[c,d] z", "z = Relu(x) y = Min(z, six)"),
        ("int64[n,4] x => int64[a,b] y", "y = Max(x, none)"),
    ],
    ids=[
        "crossed",
        "min above max",
        "disjoint",
        "bound per column",
        "bound adds a dimension",
        "computed",
        "output",
        "integers",
    ],
)
def test_clips_that_stay(signature, body):
    constants = {"row": normal(4), "deep": np.zeros((1, 1, 1), np.float32), "none": np.array(0, np.int64)}
    model = build(signature, body, **BOUNDS, **constants)
    before = ops(model)
    assert not apply(MergeClips(), model)
    assert ops(model) == before


@pytest.mark.parametrize(
    ("signature", "body", "expected"),
    [
        ("float[n,4,6,6] x => float[a,b,c,d] y", "y = ReduceMean(x, spatial)", {"GlobalAveragePool": 1}),
        (
            "float[n,4,6,6] x => float[a,b] y",
            "y = ReduceMean<keepdims=0>(x, spatial)",
            {"GlobalAveragePool": 1, "Flatten": 1},
        ),
        ("float[n,4,6,6,2] x => float[a,b,c,d,e] y", "y = ReduceMean(x, volume)", {"GlobalAveragePool": 1}),
    ],
    ids=["keepdims", "flattened", "volume"],
)
def test_spatial_mean_is_global_average_pool(signature, body, expected):
    model = build(signature, body, spatial=ints(-1, 2), volume=ints(2, 3, 4))
    assert apply(UseGlobalAveragePool(), model)
    assert ops(model) == expected


@pytest.mark.parametrize(
    ("signature", "axes"),
    [
        ("float[n,4,6,6] x", ints(3)),
        ("float[n,4,6,6] x", ints(1, 2)),
        ("float[n,4,6] x", ints(2)),
        ("double[n,4] x", ints(1)),
    ],
    ids=["one axis", "channels last", "layer norm", "matrix"],
)
def test_other_means_stay(signature, axes):
    kind = signature.split("[")[0]
    rank = signature.count(",") + 1
    model = build(f"{signature} => {kind}[{','.join('abcde'[:rank])}] y", "y = ReduceMean(x, axes)", axes=axes)
    assert not apply(UseGlobalAveragePool(), model)


def test_duplicates_merge():
    body = "a = Reshape(x, s1) b = Reshape(x, s2) c = Mul(a, t1) d = Mul(b, t2) y = Add(c, d)"
    model = build("float[n,4] x => float[a] y", body, s1=ints(-1), s2=ints(-1), t1=scalar(2), t2=scalar(2))
    assert apply(MergeDuplicates(), model)
    assert ops(model) == {"Reshape": 1, "Mul": 1, "Add": 1}


@pytest.mark.parametrize(
    "body",
    [
        "a = MatMul(x, w1) y = MatMul(a, w2)",
        "a = Gemm(x, w1, b1) y = Gemm(a, w2, b2)",
        "a = MatMul(x, w1) c = Add(a, b1) d = MatMul(c, w2) y = Add(d, b2)",
        "a = Gemm(x, w1, z1) y = Gemm(a, w2, z2)",
        "s = ReduceSum(x) a = MatMul(s, m1) b = MatMul(a, m2) y = Add(x, b)",
    ],
    ids=[
        "equal weights",
        "equal biases",
        "equal biases of MatMul",
        "equal scalar biases",
        "equal weights of one number",
    ],
)
def test_weights_are_never_shared(body):
    weight, bias = normal(4, 4), normal(4)
    twins = {
        "m1": np.ones((1, 1), np.float32),
        "m2": np.ones((1, 1), np.float32),
        "w1": weight,
        "w2": weight,
        "b1": bias,
        "b2": bias,
        "z1": scalar(1),
        "z2": scalar(1),
    }
    model = build(VECTOR, body, **{name: array for name, array in twins.items() if name in body})
    assert not apply(MergeDuplicates(), model)


def test_equal_outputs_stay_apart():
    signature = "float[n,4] x => float[a,b] y, float[c,d] z, float[e,f] w"
    model = build(signature, "y = Relu(x) z = Relu(x) w = Relu(x)")
    assert not apply(MergeDuplicates(), model)


@pytest.mark.parametrize("body", ["y = Relu(x) a = Relu(x) z = Neg(a)", "a = Relu(x) y = Relu(x) z = Neg(a)"])
def test_an_output_may_replace_its_twin(body):
    model = build("float[n,4] x => float[a,b] y, float[c,d] z", body)
    assert apply(MergeDuplicates(), model)
    assert ops(model) == {"Relu": 1, "Neg": 1}
    assert [value.name for value in model.graph.outputs] == ["y", "z"]


def test_outputs_of_a_split_stay_apart():
    body = "a, b = Split<axis=1, num_outputs=2>(x) c, y = Split<axis=1, num_outputs=2>(x) d = Add(a, b) z = Add(c, d)"
    model = build("float[n,4] x => float[a2,b2] y, float[c2,d2] z", body)
    assert not apply(MergeDuplicates(), model)


def test_random_nodes_stay_apart():
    model = build(VECTOR, "a = RandomNormalLike(x) b = RandomNormalLike(x) y = Sub(a, b)")
    assert not MergeDuplicates()(model).modified
