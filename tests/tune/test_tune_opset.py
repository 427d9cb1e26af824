"""The opset, IR version and Q/DQ domain that a target asks for, and what cannot be had in them."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_models import parse, quantized, samples, weights

from edgeq.metrics import sqnr_db
from edgeq.qtypes import Scheme
from edgeq.runtime import run_model
from edgeq.stages.tune import opset_note, shape_float
from edgeq.target import TargetProfile, load_target

CONV = "Conv<pads=[1,1,1,1]>"


def asking(opset: int, domain: str = "ai.onnx", target: str = "linux-x64") -> TargetProfile:
    base = load_target(target)
    graph = msgspec.structs.replace(base.graph, opset=opset, ir_version=8, qdq_domain=domain)
    return msgspec.structs.replace(base, graph=graph)


def network(last: str = "ReduceMean<keepdims=0>(b, axes)") -> ir.Model:
    """ReduceMean has its axes as an input since opset 18, as an attribute before."""
    return parse(
        f"g (float[1,3,8,8] x) => (float y) {{ a = {CONV}(x, w) r = Relu(a) b = {CONV}(r, w2) y = {last} }}",
        w=weights(8, 3, 3, 3),
        w2=weights(8, 8, 3, 3),
        axes=np.array([2, 3], np.int64),
    )


@pytest.mark.parametrize("domain", ["ai.onnx", "com.microsoft"])
def test_an_older_opset_gives_the_same_numbers(domain: str) -> None:
    model, target = network(), asking(17, domain)
    chain = quantized(model, target)
    assert chain.model.opset_imports[""] == 17
    assert chain.model.ir_version == 8
    onnx.checker.check_model(ir.to_proto(chain.model))
    reduce = next(node for node in chain.model.graph if node.op_type == "ReduceMean")
    assert list(reduce.attributes.get_ints("axes")) == [2, 3]
    plain = quantized(network())
    for sample in chain.feed:
        assert np.array_equal(chain.run(sample)["y"], plain.run(sample)["y"])
    assert opset_note(chain.shaped, target, Scheme.parse("w8a8")) is None


def test_the_float_model_keeps_weights_names_and_shapes() -> None:
    model = network()
    lowered = shape_float(model, asking(17), Scheme.parse("w8a8"))
    assert [node.name for node in lowered.graph] == [node.name for node in model.graph]
    assert [v.name for v in lowered.graph.inputs] == ["x"]
    assert lowered.graph.initializers["w2"].const_value is model.graph.initializers["w2"].const_value
    for node in lowered.graph:
        assert node.outputs[0].shape is not None
        assert node.outputs[0].dtype == ir.DataType.FLOAT
    sample = samples(model)[0]
    assert np.array_equal(run_model(model, sample)["y"], run_model(lowered, sample)["y"])


def test_what_an_older_opset_lacks_keeps_the_graph_and_is_said() -> None:
    model, target = network("Gelu(b)"), asking(17)
    chain = quantized(model, target)
    assert chain.model.opset_imports[""] == 21
    assert chain.model.ir_version == 10
    note = opset_note(chain.shaped, target, Scheme.parse("w8a8"))
    assert note is not None
    assert "keeps opset 21, and linux-x64 asks for 17" in note
    assert "Gelu" in note


@pytest.mark.parametrize(
    ("scheme", "domain", "opset"),
    [("w8a8", "ai.onnx", 17), ("w8a16", "ai.onnx", 21), ("w8a16", "com.microsoft", 17), ("w4", "com.microsoft", 21)],
)
def test_integer_types_ask_for_their_opset(scheme: str, domain: str, opset: int) -> None:
    model = parse("g (float[4,32] x) => (float y) { a = MatMul(x, m) y = MatMul(a, m) }", m=weights(32, 32))
    target = asking(17, domain, "android-npu")
    target = msgspec.structs.replace(target, capability=(*load_target("linux-x64").capability, *target.capability))
    chain = quantized(model, target, scheme)
    assert chain.model.opset_imports[""] == opset
    said = opset_note(chain.shaped, target, Scheme.parse(scheme))
    assert (said is None) == (opset == 17)
    expected, out = run_model(model, chain.feed[0])["y"], chain.run(chain.feed[0])["y"]
    assert sqnr_db(expected, out) > (12 if scheme == "w4" else 30)


def test_the_domain_is_that_of_the_target_but_for_blocks() -> None:
    def domains(scheme: str) -> set[str]:
        chain = quantized(network("Gelu(b)") if scheme == "w8a8" else products, asking(21, "com.microsoft"), scheme)
        return {node.domain for node in chain.model.graph if "Linear" in node.op_type}

    products = parse("g (float[4,32] x) => (float y) { y = MatMul(x, m) }", m=weights(32, 32))
    assert domains("w8a8") == {"com.microsoft"}
    assert domains("w4") == {""}
