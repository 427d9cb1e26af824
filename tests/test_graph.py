"""Reading, writing and naming models: files are data from strangers."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_models import parse, weights

from edgeq import graph
from edgeq.errors import ModelError, OutputError
from edgeq.graph import (
    Names,
    check_float,
    constant_array,
    feeds_for,
    fingerprint,
    input_infos,
    load_model,
    model_size,
    name_nodes,
    open_dims,
    outer_nodes,
    output_infos,
    real_inputs,
    save_model,
    set_initializer,
    to_bytes,
)
from edgeq.runtime import run_model


def linear() -> ir.Model:
    return parse("g (float[N,8] x) => (float[N,4] y) { h = MatMul(x, w) y = Add(h, b) }", w=weights(8, 4), b=weights(4))


def test_dimensions_without_a_real_name_or_size_are_dynamic_and_apart() -> None:
    model = parse("g (float[N,8] x) => (float[N,8] y) { h = Relu(x) y = Neg(h) }")
    model.graph.inputs[0].shape = ir.Shape([-1, 3, "?", "?", "", "-1", "None", "N", "unk__2"])
    model.graph.node(0).outputs[0].shape = ir.Shape([-1, 8])
    open_dims(model)
    assert input_infos(model)[0].shape == (None, 3, None, None, None, None, None, "N", "unk__2")
    assert input_infos(model)[0].describe() == "x: float32[?, 3, ?, ?, ?, ?, ?, N, unk__2]"
    assert model.graph.node(0).outputs[0].shape == ir.Shape([None, 8])


def test_a_file_with_negative_dimensions_is_loaded_as_dynamic(tmp_path: Path) -> None:
    proto = ir.to_proto(linear())
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    onnx.save(proto, tmp_path / "m.onnx")
    assert input_infos(load_model(tmp_path / "m.onnx"))[0].shape == (None, 8)


# -- files


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save_model(linear(), tmp_path / "m.onnx")
    again = load_model(tmp_path / "m.onnx")
    assert fingerprint(again) == fingerprint(linear())
    assert to_bytes(again) == to_bytes(linear())  # the same model, the same bytes


def test_a_large_model_has_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "EXTERNAL_DATA_THRESHOLD", 100)
    save_model(linear(), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").is_file()
    again = load_model(tmp_path / "m.onnx")
    x = {"x": weights(2, 8)}
    np.testing.assert_array_equal(run_model(again, x)["y"], run_model(linear(), x)["y"])
    assert fingerprint(again) == fingerprint(linear())
    monkeypatch.undo()
    assert to_bytes(again) == to_bytes(linear())  # data is read, not referred to


def external(tmp_path: Path, location: str, size: int = 128) -> Path:
    tensor = numpy_helper.from_array(weights(8, 4), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "128")):
        tensor.external_data.add(key=key, value=value)
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 8])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])],
            [tensor],
        ),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    (tmp_path / "model").mkdir(exist_ok=True)
    (tmp_path / "model" / "m.onnx").write_bytes(proto.SerializeToString())
    (tmp_path / "secret.bin").write_bytes(b"\0" * 128)
    (tmp_path / "model" / "w.bin").write_bytes(weights(8, 4).tobytes()[:size])
    return tmp_path / "model" / "m.onnx"


def test_external_data_beside_the_model(tmp_path: Path) -> None:
    model = load_model(external(tmp_path, "w.bin"))
    np.testing.assert_array_equal(constant_array(model.graph.initializers["w"]), weights(8, 4))


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "sub/../../secret.bin", "link.bin"])
def test_external_data_outside_is_refused(tmp_path: Path, location: str) -> None:
    path = external(tmp_path, location)
    (path.parent / "sub").mkdir()
    (path.parent / "link.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(ModelError, match="of tensor 'w' lies outside the model's folder") as caught:
        load_model(path)
    assert caught.value.where == str(path)
    assert "do not trust this file" in str(caught.value.remedy)


def test_missing_and_truncated_external_data(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"external data 'none\.bin' of tensor 'w' is missing"):
        load_model(external(tmp_path, "none.bin"))
    with pytest.raises(ModelError, match="is truncated: needs 128 bytes, has 100"):
        load_model(external(tmp_path, "w.bin", 100))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file holds no graph"),
        (b"not a model at all", "the file is not a readable ONNX model"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 64, "the file is not a readable ONNX model|the file holds no graph"),
    ],
)
def test_what_is_no_model(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(tmp_path / "m.onnx")
    assert caught.value.where == str(tmp_path / "m.onnx")


def test_half_a_download(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(to_bytes(linear())[:200])
    with pytest.raises(ModelError, match="not a readable ONNX model"):
        load_model(tmp_path / "m.onnx")


def test_a_file_that_does_not_exist(tmp_path: Path) -> None:
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(ModelError, match="the model file does not exist"):
            load_model(path)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="cannot write the model: No space left on device"):
        save_model(linear(), tmp_path / "m.onnx")


# -- names


def test_every_node_gets_a_name_of_its_own() -> None:
    model = parse("g (float[4] x) => (float[4] y) { a = Relu(x) b = Relu(a) y = Tanh(b) }")
    for node, name in zip(model.graph, ["same", "same", None], strict=True):
        node.name = name
    name_nodes(model)
    assert [node.name for node in model.graph] == ["same", "same_1", "Tanh_2"]
    before = [node.name for node in model.graph]
    name_nodes(model)
    assert [node.name for node in model.graph] == before


def test_fresh_names_are_not_taken() -> None:
    names = Names(linear())
    assert [names.fresh("h"), names.fresh("h"), names.fresh("w"), names.fresh("x"), names.fresh("new")] == [
        "h_1",
        "h_2",
        "w_1",
        "x_1",
        "new",
    ]
    assert names.fresh("new") == "new_1"


# -- constants


def test_constant_array() -> None:
    model = parse(
        "g (float[4] x) => (float[4] y) { c = Constant<value_floats=[1.0, 2.0]>() a = Add(x, c) y = Add(a, w) }",
        w=weights(4),
    )
    constant, add, last = model.graph
    assert constant_array(constant.outputs[0]).tolist() == [1, 2]
    np.testing.assert_array_equal(constant_array(last.inputs[1]), weights(4))
    assert constant_array(add.inputs[0]) is None  # an input
    assert constant_array(add.outputs[0]) is None  # computed
    assert constant_array(None) is None


def test_an_initializer_that_is_also_an_input_is_a_default_not_a_constant() -> None:
    """Old models list their initializers among the inputs: a caller may override them, but need not."""
    model = linear()
    model.graph.inputs.append(model.graph.initializers["w"])
    assert [value.name for value in real_inputs(model)] == ["x"]
    assert [info.name for info in input_infos(model)] == ["x"]
    assert constant_array(model.graph.initializers["w"]) is None


def test_set_initializer_adds_and_replaces() -> None:
    model = linear()
    added = set_initializer(model, "new", np.array([1, 2], np.int8))
    assert model.graph.initializers["new"] is added
    kept = model.graph.initializers["b"]
    replaced = set_initializer(model, "b", np.zeros((1, 4), np.float32))
    assert replaced is kept
    assert (tuple(replaced.shape), replaced.dtype) == ((1, 4), ir.DataType.FLOAT)
    onnx.checker.check_model(ir.to_proto(model))
    assert run_model(model, {"x": weights(2, 8)})["y"].shape == (2, 4)


def test_model_size_counts_the_weights() -> None:
    assert model_size(linear()) >= (8 * 4 + 4) * 4


def test_fingerprint_sees_what_matters() -> None:
    same, weight, attribute = linear(), linear(), parse("g (float[4] x) => (float[4] y) { y = Softmax<axis=0>(x) }")
    assert fingerprint(same) == fingerprint(linear())
    changed = weights(8, 4)
    changed[0, 0] += 1
    set_initializer(weight, "w", changed)
    assert fingerprint(weight) != fingerprint(same)
    other = parse("g (float[4] x) => (float[4] y) { y = Softmax<axis=-1>(x) }")
    assert fingerprint(attribute) != fingerprint(other)


@pytest.mark.parametrize("attribute", [False, True], ids=["an initializer", "a Constant"])
def test_fingerprint_sees_the_weights_inside_subgraphs(attribute: bool) -> None:
    def branching(number: float) -> ir.Model:
        held = numpy_helper.from_array(np.full(3000, number, np.float32), "k")
        constant = [helper.make_node("Constant", [], ["k"], value=held)] if attribute else []
        branches = {
            "then_branch": helper.make_graph(
                [*constant, helper.make_node("Add", ["x", "k"], ["a"])],
                "then",
                [],
                [helper.make_tensor_value_info("a", TensorProto.FLOAT, [3000])],
                [] if attribute else [held],
            ),
            "else_branch": helper.make_graph(
                [helper.make_node("Identity", ["x"], ["b"])],
                "else",
                [],
                [helper.make_tensor_value_info("b", TensorProto.FLOAT, [3000])],
            ),
        }
        return ir.from_proto(
            helper.make_model(
                helper.make_graph(
                    [helper.make_node("If", ["c"], ["y"], **branches)],
                    "g",
                    [
                        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
                        helper.make_tensor_value_info("x", TensorProto.FLOAT, [3000]),
                    ],
                    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3000])],
                )
            )
        )

    assert fingerprint(branching(1)) == fingerprint(branching(1))
    assert fingerprint(branching(1)) != fingerprint(branching(2))


# -- the interface


def test_infos() -> None:
    (x,) = input_infos(linear())
    assert (x.name, x.dtype, x.shape) == ("x", np.float32, ("N", 8))
    assert x.describe() == "x: float32[N, 8]"
    assert [info.describe() for info in output_infos(linear())] == ["y: float32[N, 4]"]


def test_an_interface_without_a_shape_is_refused() -> None:
    model = linear()
    model.graph.inputs[0].shape = None
    with pytest.raises(ModelError, match="tensor 'x' of the model's interface has no type or shape"):
        input_infos(model)


def test_missing_feeds_are_named() -> None:
    infos = input_infos(linear())
    with pytest.raises(ModelError, match=r"no data for input x: float32\[N, 8\]; got pixels") as caught:
        list(feeds_for(infos, {"pixels": weights(2, 8)}))
    assert caught.value.remedy == "name the arrays as the model's inputs"
    ((info, array),) = feeds_for(infos, {"x": weights(2, 8), "more": weights(1)})
    assert (info.name, array.shape) == ("x", (2, 8))


# -- what cannot be quantized


@pytest.mark.parametrize(
    ("node", "named"),
    [
        ("y = MatMulNBits(x, w)", "1 MatMulNBits"),
        ("q, s, z = DynamicQuantizeLinear(x) y = MatMulInteger(q, w)", "1 DynamicQuantizeLinear, 1 MatMulInteger"),
        ("y = QLinearConv(x, w)", "1 QLinearConv"),
        ("q = QuantizeLinear(x, w) y = DequantizeLinear(q, w)", "1 QuantizeLinear, 1 DequantizeLinear"),
    ],
)
def test_a_model_that_is_quantized_already_is_refused(node: str, named: str) -> None:
    text = f'<ir_version: 10, opset_import: ["": 21]> g (float[4] x, float[4] w) => (float[4] y) {{ {node} }}'
    model = ir.from_proto(onnx.parser.parse_model(text))
    with pytest.raises(ModelError, match=f"already quantized: it holds {named}") as caught:
        check_float(model)
    assert "give the float model" in str(caught.value.remedy)


def test_quantization_is_found_inside_branches() -> None:
    body = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s"], ["z"]),
        ],
        "b",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in "xs"]
    inputs.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])]
    model = ir.from_proto(helper.make_model(helper.make_graph([node], "g", inputs, outputs)))
    with pytest.raises(ModelError, match="2 QuantizeLinear, 2 DequantizeLinear"):
        check_float(model)
    assert set(outer_nodes(model).values()) == {model.graph.node(0)}
    assert len(outer_nodes(model)) == 4


@pytest.mark.parametrize(("dtype", "name"), [(np.float16, "float16"), (np.float64, "float64")])
def test_weights_of_another_type_are_refused(dtype: type, name: str) -> None:
    model = parse("g (float[4] x) => (float[4] y) { y = Relu(x) }", b=weights(4))
    check_float(model)
    set_initializer(model, "w", weights(8, 8).astype(dtype))
    with pytest.raises(ModelError, match=f"the weights are {name}, and edgeq quantizes float32 only"):
        check_float(model)
    set_initializer(model, "w32", weights(64, 64))
    check_float(model)
