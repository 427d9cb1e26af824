"""What ONNX Runtime really does with a graph: the traps, each proved on the provider itself."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from small_models import parse

from edgeq.errors import ProviderError
from edgeq.qtypes import NodeForecast
from edgeq.stages.run.placement import read_placement
from edgeq.stages.run.refusals import parse_refusals
from edgeq.target import Provider


def _by_name(placement):
    return {place.node: place for place in placement.nodes}


def _planned(node: str, kind: str, why: str = "") -> dict[str, NodeForecast]:
    forecast = NodeForecast(node=node, op_type="", kind=kind, provider="CPUExecutionProvider", why=why)
    return {node: forecast}


def _errors(placement):
    return [finding for finding in placement.findings if finding.severity == "error"]


def test_conv_chain_runs_in_integers_and_absorbs_the_relu(conv_relu):
    placement = read_placement(conv_relu())
    nodes = _by_name(placement)
    assert list(nodes) == ["conv1", "relu1", "conv2"]
    assert [(n.runs_as, n.kind) for n in (nodes["conv1"], nodes["conv2"])] == [("QLinearConv", "integer")] * 2
    assert (nodes["relu1"].kind, nodes["relu1"].fused_into) == ("fused", "conv1")
    assert not _errors(placement)


def test_symmetric_int8_relu_keeps_the_conv_float_and_says_why(conv_relu):
    placement = read_placement(conv_relu(np.int8, zero=0))
    conv = _by_name(placement)["conv1"]
    assert conv.kind == "float"
    assert "the Relu behind it cannot be absorbed: its output's zero point is 0, not -128" in conv.why
    (error,) = _errors(placement)
    assert "conv1" in error.nodes
    assert "behind DequantizeLinear" in error.text
    assert error.remedy


def test_wrong_bias_scale_blocks_the_fusion_and_says_why(conv_relu):
    placement = read_placement(conv_relu(bias_scale=0.0003))
    conv = _by_name(placement)["conv1"]
    assert conv.kind == "float"
    assert "its bias is not quantized with input scale times weight scale" in conv.why
    assert _errors(placement)[0].nodes == ("conv1",)


def test_floats_of_a_shape_that_is_computed_are_floats():
    model = parse(
        "g (float[N,4] x, int64[M,2] at, float[M] found) => (float[N,4] y) {"
        " s = Shape(x) z = ConstantOfShape(s) k = ScatterND(z, at, found) y = Mul(k, x) }"
    )
    kinds = {place.op_type: place.kind for place in read_placement(model).nodes}
    assert (kinds["ConstantOfShape"], kinds["ScatterND"]) == ("moves data", "float")


def test_nodes_between_the_kernels(build):
    x = build.qdq("x")
    build.add("Conv", [x, build.weight("w", (4, 3, 1, 1))], "conv")
    tanh = build.add("Tanh", [build.qdq("conv")], "tanh")
    build.add("GlobalAveragePool", [build.qdq(tanh)], "gap")
    build.add("Flatten", [build.qdq("gap")], "flat")
    # Equal parameters on both sides, as a plan has it for operators that move data.
    scale, zero = "gap_s", "gap_z"
    build.add("QuantizeLinear", ["flat", scale, zero], "flat_q")
    build.add("DequantizeLinear", ["flat_q", scale, zero], "flat_dq")
    build.add("Gemm", ["flat_dq", build.weight("w2", (4, 5))], "gemm")
    placement = read_placement(build.model((1, 3, 4, 4), {build.qdq("gemm"): (1, 5)}))
    nodes = _by_name(placement)
    assert {name: (n.runs_as, n.kind) for name, n in nodes.items()} == {
        "conv": ("QLinearConv", "integer"),
        "tanh": ("Tanh", "float"),
        "gap": ("QLinearGlobalAveragePool", "integer"),
        "flat": ("Flatten", "moves data"),
        "gemm": ("QGemm", "integer"),
    }
    assert "no integer kernel for Tanh (uint8 in, uint8 out)" in nodes["tanh"].why
    assert not _errors(placement)
    assert [(f.gate, f.nodes) for f in placement.findings if f.gate] == [("leftover", ("tanh",))]


def test_relu_behind_a_product_without_q_blocks_every_fusion(build):
    build.add("MatMul", [build.qdq("x"), build.weight("w", (16, 8))], "mm")
    build.add("Relu", ["mm"], "relu")
    build.add("Tanh", ["relu"], "y")
    placement = read_placement(build.model((4, 16), {"y": (4, 8)}))
    assert "a Relu follows without a QuantizeLinear between them" in _by_name(placement)["mm"].why
    assert _errors(placement)[0].nodes == ("mm",)


def test_product_without_q_before_its_bias_becomes_a_float_gemm(build):
    build.add("MatMul", [build.qdq("x"), build.weight("w", (16, 8))], "mm")
    build.add("Add", ["mm", build.const("b", np.zeros(8, np.float32))], "add")
    nodes = _by_name(read_placement(build.model((4, 16), {"add": (4, 8)})))
    assert (nodes["mm"].runs_as, nodes["mm"].kind) == ("Gemm", "float")
    assert "before the bias is added" in nodes["mm"].why
    assert nodes["add"].fused_into == "mm"


def test_sixteen_bit_activations_have_no_kernel(build):
    x = build.qdq("x", 0.001, 32768, np.uint16)
    build.add("Conv", [x, build.weight("w", (4, 3, 1, 1))], "conv")
    placement = read_placement(build.model((1, 3, 4, 4), {build.qdq("conv", 0.001, 32768, np.uint16): (1, 4, 4, 4)}))
    assert "16-bit activations have no integer kernels on the CPU" in _by_name(placement)["conv"].why


def _blocked(build, block: int = 16) -> str:
    values = build.rng.integers(-8, 8, (32, 8)).astype(ml_dtypes.int4)
    scale = np.full((32 // block, 8), 0.1, np.float32)
    inputs = [build.const("w_q", values), build.const("w_s", scale)]
    return build.add("DequantizeLinear", inputs, "w", axis=0, block_size=block)


def test_weight_only_runs_as_matmul_nbits_and_is_no_finding(build):
    build.add("MatMul", ["x", _blocked(build)], "mm")
    placement = read_placement(build.model((4, 32), {"mm": (4, 8)}))
    assert (placement.nodes[0].runs_as, placement.nodes[0].kind) == ("MatMulNBits", "integer")
    assert not placement.findings


def test_blocked_weights_beside_quantized_activations_are_an_error(build):
    build.add("MatMul", [build.qdq("x"), _blocked(build)], "mm")
    placement = read_placement(build.model((4, 32), {build.qdq("mm"): (4, 8)}))
    assert "4-bit or blocked weights beside quantized activations" in placement.nodes[0].why
    assert _errors(placement)[0].nodes == ("mm",)


def test_float_fusions_are_followed_through_renaming(build):
    """NCHWc renames nodes and tensors, Gelu replaces five nodes by one."""
    build.add("Conv", ["x", build.const("w", np.ones((16, 16, 3, 3), np.float32))], "conv")
    build.add("Relu", ["conv"], "relu")
    build.add("Div", ["relu", build.const("r", np.float32(np.sqrt(2)))], "div")
    build.add("Erf", ["div"], "erf")
    build.add("Add", ["erf", build.const("one", np.float32(1))], "plus")
    build.add("Mul", ["relu", "plus"], "mul")
    build.add("Mul", ["mul", build.const("half", np.float32(0.5))], "gelu")
    nodes = _by_name(read_placement(build.model((1, 16, 8, 8), {"gelu": (1, 16, 6, 6)})))
    assert nodes["relu"].fused_into == "conv"
    assert {nodes[n].fused_into for n in ("div", "erf", "plus", "mul")} == {"gelu"}
    assert nodes["gelu"].runs_as == "Gelu"
    assert "neither its inputs nor its outputs are quantized" in nodes["conv"].why


def test_the_plans_reason_is_told_and_a_broken_promise_is_found(build):
    build.add("Tanh", [build.qdq("x")], "tanh")
    model = build.model((1, 4), {build.qdq("tanh"): (1, 4)})
    told = read_placement(model, expected=_planned("tanh", "float", "Tanh costs accuracy"))
    assert told.nodes[0].why == "Tanh costs accuracy"
    broken = read_placement(model, expected=_planned("tanh", "integer"))
    assert any("tanh was to be integer on CPU, and runs as Tanh (float on CPU)" in f.text for f in broken.findings)


def test_constants_are_computed_while_loading(build):
    build.add("Exp", [build.const("c", np.ones(4, np.float32))], "exp")
    build.add("Add", ["x", "exp"], "y")
    nodes = _by_name(read_placement(build.model((1, 4), {"y": (1, 4)})))
    assert (nodes["exp"].runs_as, nodes["exp"].why) == ("constant", "computed while loading")


def test_reading_the_placement_leaves_the_model_alone(conv_relu):
    model = conv_relu()
    before = [node.name for node in model.graph]
    read_placement(model)
    assert [node.name for node in model.graph] == before


def test_a_provider_that_this_build_lacks_is_an_error(conv_relu):
    coreml = Provider(name="CoreMLExecutionProvider", package="onnxruntime", version=">=1.24")
    with pytest.raises(ProviderError, match=r"has no CoreMLExecutionProvider; it has .*CPUExecutionProvider"):
        read_placement(conv_relu(), coreml)


def _qnn(soc: str) -> Provider:
    return Provider(
        name="QNNExecutionProvider",
        package="onnxruntime-qnn",
        version=">=2.7",
        registration="plugin",
        module="onnxruntime_qnn",
        options={"backend_type": "htp", "soc_model": soc},
    )


def _layer_norm(build):
    build.add("LayerNormalization", [build.qdq("x"), build.weight("w", (16,))], "norm")
    relu = build.add("Relu", [build.qdq("norm")], "relu")
    return build.model((1, 8, 16), {build.qdq(relu): (1, 8, 16)})


def test_npu_names_the_types_it_refuses(build):
    pytest.importorskip("onnxruntime_qnn")
    placement = read_placement(_layer_norm(build), _qnn("69"))
    nodes = _by_name(placement)
    assert (nodes["relu"].provider, nodes["relu"].kind) == ("QNNExecutionProvider", "integer")
    assert nodes["norm"].provider == "CPUExecutionProvider"
    assert "does not support LayerNorm of (ufixed_8, sfixed_8) to (ufixed_8)" in nodes["norm"].why
    assert any("1 node runs on the CPU, refused by QNNExecutionProvider" in f.text for f in placement.findings)


def test_npu_that_does_not_exist_is_an_error_not_the_cpu(build):
    pytest.importorskip("onnxruntime_qnn")
    with pytest.raises(ProviderError, match=r"took none of the model's 2 nodes: .*[Ff]ailed to create device"):
        read_placement(_layer_norm(build), _qnn("99999"))


def test_refusals_without_types_keep_the_providers_words():
    log = (
        "x LogNodeSupport] Validation FAILED for 1 nodes in OrtNodeUnit (Erf) :\n"
        "\tOperator type: Erf Node name: edgeq_7_ Node index: 7\n\tREASON : Unsupported op.\n"
    )
    assert parse_refusals(log).nodes == {7: "refused by the provider: Unsupported op"}
    assert parse_refusals("") == parse_refusals("nothing of interest\n")


def test_a_heavy_node_that_was_to_stay_float_is_no_error(build):
    x = build.qdq("x")
    build.add("Conv", [x, build.weight("w", (4, 3, 1, 1))], "conv")
    build.add("ConvTranspose", [build.qdq("conv"), build.const("k", np.ones((4, 2, 2, 2), np.float32))], "up")
    model = build.model((1, 3, 8, 8), {"up": (1, 2, 9, 9)})
    assert _errors(read_placement(model))  # nobody planned that
    planned = read_placement(model, expected=_planned("up", "float", "no integer kernel for ConvTranspose"))
    assert not _errors(planned)
    assert any("no integer kernel for ConvTranspose" in finding.text for finding in planned.findings)
