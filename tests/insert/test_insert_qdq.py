"""The QDQ graph says exactly what the plan says: checked against a simulation of the plan, node by node."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from small_models import Chain, parse, quantized, samples, weights

from edgeq.affine import fake_quantize, quantize
from edgeq.errors import ModelError
from edgeq.graph import constant_array
from edgeq.metrics import sqnr_db
from edgeq.qtypes import Decision, IntType, QParams, QuantPlan, Scheme, TensorSpec
from edgeq.runtime import run_model
from edgeq.stages.insert import insert_qdq
from edgeq.stages.run.placement import read_placement

CONV = "Conv<pads=[1,1,1,1]>"


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


MODELS = {
    "conv-relu": (
        f"g (float[1,3,8,8] x) => (float y) {{ a = {CONV}(x, w, b3) b = Relu(a) y = {CONV}(b, w2) }}",
        {"w": weights(8, 3, 3, 3), "b3": weights(8), "w2": weights(8, 8, 3, 3)},
    ),
    "residual with two outputs": (
        f"""g (float[1,3,8,8] x) => (float c, float y) {{
            a = {CONV}(x, w) b = {CONV}(a, w2) c = Add(a, b) y = {CONV}(c, w2) }}""",
        {"w": weights(8, 3, 3, 3), "w2": weights(8, 8, 3, 3)},
    ),
    "float and integer readers": (
        f"""g (float[1,3,8,8] x) => (float y, float z, float t) {{
            a = {CONV}(x, w) y = {CONV}(a, w2) z = Tanh(a) t = Sin(x) }}""",
        {"w": weights(8, 3, 3, 3), "w2": weights(8, 8, 3, 3)},
    ),
    "moves and concat": (
        f"""g (float[1,3,8,8] x) => (float y) {{
            a = {CONV}(x, w) p, q = Split<axis=1>(a, halves) r = MaxPool<kernel_shape=[1,1]>(q)
            b = Concat<axis=1>(r, p) y = {CONV}(b, w2) }}""",
        {"w": weights(8, 3, 3, 3), "w2": weights(8, 8, 3, 3), "halves": ints(4, 4)},
    ),
    "constant operands": (
        f"""g (float[1,3,8,8] x) => (float y) {{
            a = {CONV}(x, w) b = Mul(a, k) c = Add(k, b) d = Add(c, c) y = {CONV}(d, w2) }}""",
        {"w": weights(8, 3, 3, 3), "w2": weights(8, 8, 3, 3), "k": weights(8, 1, 1, seed=4)},
    ),
    "table": (
        "g (int64[1,4] i) => (float y, float z) { a = Gather(table, i) z = Tanh(a) y = MatMul(a, p) }",
        {"table": weights(1000, 32), "p": weights(32, 8)},
    ),
    "table that is an output": (
        "g (int64[4] i) => (float y) { y = Gather(table, i) }",
        {"table": weights(1000, 32)},
    ),
    "products": (
        """g (float[4,8] x) => (float y) {
            a = Gemm(x, m, b3) r = Relu(a) b = Gemm<transB=1>(r, m, b3) c = Gemm(b, m) y = MatMul(c, m) }""",
        {"m": weights(8, 8), "b3": weights(8)},
    ),
    "one bias for all": (
        "g (float[4,8] x) => (float y) { y = Gemm(x, m, b1) }",
        {"m": weights(8, 8), "b1": weights(1, scale=3)},
    ),
    "softmax": (
        "g (float[1,4,8] x) => (float y) { a = MatMul(x, m) b = Softmax<axis=-1>(a) y = MatMul(b, m) }",
        {"m": weights(8, 8)},
    ),
    "names that are taken": (
        f"g (float[1,3,8,8] x) => (float y) {{ x_quantized = {CONV}(x, w) y = {CONV}(x_quantized, w_scale) }}",
        {"w": weights(8, 3, 3, 3), "w_scale": weights(8, 8, 3, 3)},
    ),
}
SCHEMES = [
    ("w8a8", "linux-x64"),
    ("w8a8", "android"),
    ("w4_b16", "linux-x64"),
    ("w2_b16", "linux-x64"),
    ("w8", "android"),
]


def simulate(chain: Chain, sample: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run the float graph node by node; who reads a tensor in integers gets the fake-quantized one."""
    values: dict[str, np.ndarray] = dict(sample)
    for name, value in chain.shaped.graph.initializers.items():
        values[name] = chain.plan.weights.get(name, value.const_value.numpy())
    reads = {
        (d.tensor, consumer): d.qparams for d in chain.plan.quantized if d.role != "bias" for consumer in d.consumers
    }
    biases = {d.consumers[0]: d for d in chain.plan if d.role == "bias"}
    for node in chain.shaped.graph:
        inputs = {}
        for position, value in enumerate(node.inputs):
            array = values[value.name]
            qparams = reads.get((value.name, node.name))
            if qparams is not None:
                array = fake_quantize(array, qparams)
            inputs[f"i{position}"] = array
        bias = biases.get(node.name)
        if bias is not None:
            array = chain.plan.weights.get(bias.tensor, inputs.get("i2"))
            if bias.qparams is not None:
                array = np.rint(array / bias.qparams.scale.astype(np.float64)) * bias.qparams.scale.astype(np.float64)
            inputs["i2"] = array.astype(np.float32)
        values.update(zip((o.name for o in node.outputs), run_node(node, inputs), strict=True))
    leaving = {d.tensor: d.qparams for d in chain.plan.quantized if d.tensor in chain.plan.produced}
    outputs = {}
    for output in chain.shaped.graph.outputs:
        array = values[output.name]
        outputs[output.name] = fake_quantize(array, leaving[output.name]) if output.name in leaving else array
    return outputs


def run_node(node: ir.Node, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    proto = ir.to_proto(node)
    del proto.input[:]
    proto.input.extend(inputs)
    graph = helper.make_graph(
        [proto],
        "one",
        [
            helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for k, a in inputs.items()
        ],
        [helper.make_empty_tensor_value_info(name) for name in proto.output],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    inferred = ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True))
    return list(run_model(inferred, inputs).values())


@pytest.mark.parametrize(("scheme", "target"), SCHEMES)
@pytest.mark.parametrize("name", MODELS)
def test_the_graph_is_the_plan(name: str, scheme: str, target: str) -> None:
    text, constants = MODELS[name]
    model = parse(text, **constants)
    chain = quantized(model, target, scheme, feed=samples(model, 2))
    exact = True
    for sample in chain.feed:
        simulated, graph = simulate(chain, sample), chain.run(sample)
        assert list(graph) == [str(v.name) for v in model.graph.outputs]
        for output, array in simulated.items():
            # A sum in another order may cross a rounding threshold: then one step, and rarely.
            np.testing.assert_allclose(graph[output], array, atol=0.02 * np.abs(array).max() + 1e-6)
            exact &= np.mean(~np.isclose(graph[output], array, rtol=1e-5, atol=1e-6)) < 0.02
    assert exact


@pytest.mark.parametrize("name", MODELS)
def test_the_float_model_is_left_as_it_was(name: str) -> None:
    text, constants = MODELS[name]
    model = parse(text, **constants)
    chain = quantized(model)
    before = ir.to_proto(chain.shaped).SerializeToString(deterministic=True)
    once = insert_qdq(chain.shaped, chain.plan)
    assert ir.to_proto(chain.shaped).SerializeToString(deterministic=True) == before
    again = insert_qdq(chain.shaped, chain.plan)
    # The same input gives the same bytes.
    assert ir.to_proto(once).SerializeToString(deterministic=True) == ir.to_proto(again).SerializeToString(
        deterministic=True
    )


@pytest.mark.parametrize("name", MODELS)
def test_names_are_unique_and_the_model_is_valid(name: str) -> None:
    text, constants = MODELS[name]
    chain = quantized(parse(text, **constants))
    proto = ir.to_proto(chain.model)
    onnx.checker.check_model(proto)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    nodes = [node.name for node in proto.graph.node]
    assert len(set(nodes)) == len(nodes)
    values = [o for node in proto.graph.node for o in node.output] + [i.name for i in proto.graph.initializer]
    assert len(set(values)) == len(values)
    used = {i for node in proto.graph.node for i in node.input}
    assert {i.name for i in proto.graph.initializer} <= used  # nothing is left behind


def test_names_tell_what_they_are() -> None:
    text, constants = MODELS["conv-relu"]
    chain = quantized(parse(text, **constants))
    names = {str(o.name) for node in chain.model.graph for o in node.outputs}
    assert {"x_quantized", "x_dequantized", "w_dequantized", "b3_dequantized", "b_quantized", "b_dequantized"} <= names
    stored = chain.model.graph.initializers
    assert {"x_scale", "x_zero_point", "w_quantized", "w_scale", "w_zero_point", "b3_quantized"} <= set(stored)
    assert stored["w_quantized"].dtype == ir.DataType.INT8
    assert stored["b3_quantized"].dtype == ir.DataType.INT32
    assert chain.plan.counterparts(chain.shaped, chain.model) == {"a": "a", "b": "b_dequantized", "y": "y"}


def test_an_output_keeps_its_name_and_is_dequantized() -> None:
    text, constants = MODELS["conv-relu"]
    chain = quantized(parse(text, **constants))
    (output,) = chain.model.graph.outputs
    assert output.name == "y"
    assert output.producer().op_type == "DequantizeLinear"
    assert output.dtype == ir.DataType.FLOAT
    float_output = quantized(parse("g (float[4,8] x) => (float[4,8] y) { y = Gemm(x, m) }", m=weights(8, 8)))
    assert float_output.model.graph.outputs[0].producer().op_type == "Gemm"


def test_a_table_is_stored_once_in_integers_and_only_its_rows_are_dequantized() -> None:
    text, constants = MODELS["table"]
    chain = quantized(parse(text, **constants))
    gather, restore = list(chain.model.graph)[:2]
    assert (gather.op_type, restore.op_type) == ("Gather", "DequantizeLinear")
    assert gather.outputs[0].dtype == ir.DataType.INT8
    assert restore.attributes.get_int("axis") == 2
    assert restore.outputs[0].name == "a"  # the name that the rest of the graph knows
    table = constant_array(gather.inputs[0])
    (decision,) = (d for d in chain.plan if d.tensor == "table")
    np.testing.assert_array_equal(table, quantize(constants["table"], decision.qparams))


TIED = {
    "convolutions": (
        f"""g (float[1,8,8,8] x) => (float y) {{
            a = {CONV}(x, w) r = Relu(a) b = {CONV}(r, w) y = {CONV}(b, w) }}""",
        {"w": weights(8, 8, 3, 3)},
        "QLinearConv",
    ),
    "products": (
        "g (float[1,4,64] x) => (float y) { a = MatMul(x, m) b = Softmax(a) y = MatMul(b, m) }",
        {"m": weights(64, 64)},
        "MatMul",
    ),
}


@pytest.mark.parametrize("name", TIED)
@pytest.mark.parametrize("target", ["linux-x64", "android"])
def test_a_weight_of_several_nodes_is_stored_once_and_still_fuses(name: str, target: str) -> None:
    text, constants, kernel = TIED[name]
    chain = quantized(parse(text, **constants), target)
    big = [v for v in chain.model.graph.initializers.values() if v.const_value.nbytes >= 576]
    assert len(big) == 1
    assert len({use.node for use in big[0].uses()}) == len(big[0].uses()) > 1
    placement = read_placement(chain.model, chain.target.provider, expected=chain.plan.nodes)
    heavy = [node for node in placement.nodes if node.op_type in ("Conv", "MatMul")]
    assert all(kernel in node.runs_as and node.kind == "integer" for node in heavy)


def test_block_weights_of_several_nodes_are_stored_for_each() -> None:
    text = "g (float[1,4,64] x) => (float y) { a = MatMul(x, m) y = MatMul(a, m) }"
    chain = quantized(parse(text, m=weights(64, 64)), scheme="w4")
    assert len([v for v in chain.model.graph.initializers.values() if v.const_value.nbytes == 2048]) == 2
    placement = read_placement(chain.model, chain.target.provider, expected=chain.plan.nodes)
    assert [node.runs_as for node in placement.nodes] == ["MatMulNBits", "MatMulNBits"]


def test_unchanged_arrays_are_shared() -> None:
    model = parse("g (float[4,8] x) => (float[4,8] y) { h = Tanh(x) y = Gemm(h, m) z2 = Add(k, y) }",
                  m=weights(8, 8), k=weights(4, 8))  # fmt: skip
    chain = quantized(model)
    assert chain.model.graph.initializers["k"].const_value is chain.shaped.graph.initializers["k"].const_value


@pytest.mark.parametrize(
    ("tensor", "consumer", "message"),
    [
        ("ghost", "y", "the plan names the tensor 'ghost', which the model does not have"),
        ("x", "ghost", "the plan names the node 'ghost', which the model does not have"),
    ],
)
def test_a_plan_of_another_model_is_refused(tensor: str, consumer: str, message: str) -> None:
    model = parse("g (float[4,8] x) => (float[4,8] y) { y = Gemm(x, m) }", m=weights(8, 8))
    spec = TensorSpec(IntType(8, False), False)
    qparams = QParams(np.array(0.1, np.float32), np.array(3, np.uint8), spec)
    plan = QuantPlan("toy", Scheme(8, 8), (Decision(tensor, "activation", (consumer,), "rule", qparams),))
    with pytest.raises(ModelError, match=message):
        insert_qdq(model, plan)


def test_a_computed_tensor_is_no_weight() -> None:
    model = parse("g (float[4,8] x) => (float[4,8] y) { y = Gemm(x, m) }", m=weights(8, 8))
    qparams = QParams(np.array(0.1, np.float32), np.array(0, np.int8), TensorSpec(IntType(8, True), True))
    plan = QuantPlan("toy", Scheme(8, 8), (Decision("x", "weight", ("y",), "rule", qparams),))
    with pytest.raises(ModelError, match="the plan calls 'x' a weight, but it is no constant"):
        insert_qdq(model, plan)


def test_an_empty_plan_changes_nothing() -> None:
    model = parse("g (float[4,8] x) => (float[4,8] y) { y = Gemm(x, m) }", m=weights(8, 8))
    result = insert_qdq(model, QuantPlan("toy", Scheme(8, 8), ()))
    assert ir.to_proto(result).SerializeToString(deterministic=True) == ir.to_proto(model).SerializeToString(
        deterministic=True
    )


BRANCHES = f"""g (float[1,3,8,8] x) => (float[1,8,8,8] y) {{
    a = {CONV}(x, w)
    m = ReduceMean<keepdims=0>(x)
    c = Greater(m, zero)
    b = If (c) <
        then_branch = g1 () => (float[1,8,8,8] p) {{ p = {CONV}(a, w2) }},
        else_branch = g2 () => (float[1,8,8,8] q) {{ h = {CONV}(a, w3) q = Relu(h) }}>
    y = {CONV}(b, w4)
}}"""


@pytest.mark.parametrize("same_names", [False, True])
def test_nodes_in_branches_stay_float_and_read_what_the_integer_kernel_gives(same_names: bool) -> None:
    constants = {name: weights(8, 8, 3, 3, seed=seed) for seed, name in enumerate(("w2", "w3", "w4"))}
    model = parse(BRANCHES, w=weights(8, 3, 3, 3), zero=np.float32(0), **constants)
    if same_names:  # exporters number the nodes of each branch anew
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            if node.graph is not model.graph and node.op_type == "Conv":
                node.name = "y"
    chain = quantized(model)
    nodes = chain.plan.nodes
    assert [name for name in nodes if nodes[name].kind == "integer"] == ["a", "y"]
    assert nodes["b"].why == "the 3 nodes inside If stay float"
    branch = next(node for node in chain.model.graph if node.op_type == "If")
    inside = [n for key in branch.attributes for n in branch.attributes[key].as_graph()]
    assert [n.op_type for n in inside] == ["Conv", "Conv", "Relu"]
    assert {n.inputs[0].producer().op_type for n in inside if n.op_type == "Conv"} == {"DequantizeLinear"}
    for sample in chain.feed:
        assert sqnr_db(run_model(model, sample)["y"], chain.run(sample)["y"]) > 25
