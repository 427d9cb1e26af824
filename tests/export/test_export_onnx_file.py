from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeq import graph, runtime
from edgeq.errors import ExportError, ModelError
from edgeq.stages.export import load_source
from edgeq.stages.export.onnx_file import upgrade


def classifier(opset: int = 21, *, doc: str = "") -> onnx.ModelProto:
    """x[N, 8] -> Gemm -> Clip -> Softmax; in opset 9, Clip has attributes and Softmax works on two dimensions."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((8, 40)).astype(np.float32), "w"),
        numpy_helper.from_array(rng.standard_normal(40).astype(np.float32), "b"),
    ]
    if opset < 11:
        clip = helper.make_node("Clip", ["h"], ["c"], min=0.0, max=6.0)
    else:
        weights += [numpy_helper.from_array(np.float32(value), name) for name, value in (("lo", 0.0), ("hi", 6.0))]
        clip = helper.make_node("Clip", ["h", "lo", "hi"], ["c"])
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["h"]), clip, helper.make_node("Softmax", ["c"], ["y"], axis=1)]
    nodes[0].doc_string = doc
    nodes[0].metadata_props.add(key="stack", value=doc)
    body = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 40])],
        weights,
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def save_external(path: Path, model: onnx.ModelProto) -> Path:
    onnx.save(
        model, path, save_as_external_data=True, location="weights.bin", size_threshold=100, convert_attribute=False
    )
    return path


def test_a_current_file_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(classifier(), path)
    source = load_source(path)
    assert source.name == "net"
    assert source.provenance["opset"] == "21, as given"
    assert len(source.provenance["sha256"]) == 64
    assert source.task is None
    assert source.parity is None
    assert source.example_inputs["x"].shape == (1, 8)


@pytest.mark.parametrize("opset", [9, 13, 17])
def test_an_older_opset_is_raised_and_computes_the_same(tmp_path: Path, opset: int) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(classifier(opset), path)
    source = load_source(path)
    assert source.model.opset_imports[""] == 21
    assert source.provenance["opset"].startswith(f"21, raised from {opset} by onnx")
    assert source.parity is not None
    assert source.parity.sqnr_db > 120
    x = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
    np.testing.assert_allclose(
        runtime.run_model(source.model, {"x": x})["y"], runtime.run_model(path, {"x": x})["y"], atol=1e-6
    )
    assert [info.describe() for info in graph.input_infos(source.model)] == ["x: float32[N, 8]"]


def test_a_newer_opset_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(classifier(23), path)
    assert load_source(path).model.opset_imports[""] == 23


def test_a_model_that_cannot_be_converted_keeps_its_opset_and_says_why() -> None:
    model = classifier(17)
    model.graph.node[0].op_type = "Scan"  # nothing that any converter or runtime accepts
    source = load_source(model, example_inputs={"x": np.zeros((1, 8), np.float32)})
    assert source.model.opset_imports[""] == 17
    assert source.provenance["opset"].startswith("17, as given: not raised to 21, because")


def test_a_conversion_that_changes_the_outputs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: ir.Model, opset: int) -> ir.Model:
        changed = upgrade(model, opset)
        graph.set_initializer(changed, "b", np.ones(40, np.float32) * 3)
        return changed

    monkeypatch.setattr("edgeq.stages.export.onnx_file.upgrade", wrong)
    source = load_source(classifier(17))
    assert source.model.opset_imports[""] == 17
    assert "does not match its source: output 'y' is off by" in source.provenance["opset"]


def test_model_local_functions_are_inlined_by_the_conversion() -> None:
    model = classifier(17)
    model.functions.append(
        helper.make_function(
            "own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
        )
    )
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node[-1].input[0] = "twice"
    model.graph.node.insert(2, helper.make_node("Twice", ["c"], ["twice"], domain="own"))
    source = load_source(model)
    assert source.provenance["opset"].startswith("21, raised from 17")
    assert source.parity is not None


def test_external_data_stays_on_disk(tmp_path: Path) -> None:
    path = save_external(tmp_path / "net.onnx", classifier(17))
    source = load_source(path)
    assert source.model.opset_imports[""] == 21
    assert isinstance(source.model.graph.initializers["w"].const_value, ir.ExternalTensor)


def test_external_data_counts_in_the_digest(tmp_path: Path) -> None:
    path = save_external(tmp_path / "net.onnx", classifier())
    before = load_source(path).provenance["sha256"]
    data = bytearray((tmp_path / "weights.bin").read_bytes())
    data[0] ^= 1
    (tmp_path / "weights.bin").write_bytes(data)
    assert load_source(path).provenance["sha256"] != before


@pytest.mark.parametrize("escape", ["../weights.bin", "/weights.bin", "link.bin"])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, escape: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = save_external(folder / "net.onnx", classifier())
    (folder / "weights.bin").rename(tmp_path / "weights.bin")
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = escape
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="outside the model's folder"):
        load_source(path)


@pytest.mark.slow
def test_a_model_over_two_gigabytes_is_loaded_lazily(tmp_path: Path) -> None:
    """A sparse file: 2.4 GB of zeros that take no room, in a process that may not use 600 MB."""
    rows = 300_000
    (tmp_path / "weights.bin").touch()
    with (tmp_path / "weights.bin").open("r+b") as file:
        file.truncate(rows * 2000 * 4)
    table = TensorProto(name="table", data_type=TensorProto.FLOAT, dims=[rows, 2000])
    table.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", str(rows * 2000 * 4))):
        table.external_data.add(key=key, value=value)
    body = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["y"])],
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2000])],
        [table],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "big.onnx").write_bytes(model.SerializeToString())
    code = (
        "import pathlib, re; from edgeq.stages.export import load_source; from edgeq import graph\n"
        f"s = load_source({str(tmp_path / 'big.onnx')!r})\n"
        "assert graph.model_size(s.model) > 2**31, graph.model_size(s.model)\n"
        "assert s.example_inputs['ids'].max() > 0\n"
        "status = pathlib.Path('/proc/self/status').read_text()\n"  # ru_maxrss would count the parent's memory
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', status)[1]) // 1024, s.provenance['opset'])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    megabytes, _, opset = result.stdout.strip().partition(" ")
    assert int(megabytes) < 600
    assert opset == "17, as given: too large to check a conversion to 21 by running both"


def test_metadata_of_nodes_is_dropped_and_the_author_s_is_kept() -> None:
    model = classifier(doc="/home/someone/secret.py")
    model.metadata_props.add(key="author", value="A. Author")
    model.graph.doc_string = "/home/someone"
    source = load_source(model)
    assert b"/home/someone" not in graph.to_bytes(source.model)
    assert source.model.metadata_props == {"author": "A. Author"}
    assert model.graph.node[0].doc_string == "/home/someone/secret.py"  # the caller's model is left alone


def test_a_model_in_memory_is_not_changed() -> None:
    given = ir.from_proto(classifier(17))
    before = graph.to_bytes(given)
    load_source(given)
    assert graph.to_bytes(given) == before


def test_inputs_follow_names_and_tables() -> None:
    inputs = [
        ("input_ids", TensorProto.INT32, ["N", "L"]),
        ("attention_mask", TensorProto.INT64, ["N", "L"]),
        ("token_type_ids", TensorProto.INT64, ["N", "L"]),
        ("position_ids", TensorProto.INT64, ["N", "L"]),
        ("picture", TensorProto.FLOAT, ["N", 3, "H", "W"]),
        ("flag", TensorProto.BOOL, [2]),
    ]
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "ids"], ["y"]),
    ]
    body = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "L", 4])],
        [numpy_helper.from_array(np.zeros((5, 4), np.float32), "table")],
    )
    source = load_source(helper.make_model(body, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    example = source.example_inputs
    assert example["input_ids"].dtype == np.int32
    assert set(np.unique(example["input_ids"])) <= set(range(5))
    assert len(np.unique(example["input_ids"])) > 1
    assert (example["attention_mask"] == 1).all()
    assert (example["token_type_ids"] == 0).all()
    assert example["position_ids"].tolist() == [list(range(16))]
    assert example["picture"].shape == (1, 3, 224, 224)
    assert example["flag"].tolist() == [True, True]
    again = load_source(helper.make_model(body, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    for name, array in example.items():
        np.testing.assert_array_equal(array, again.example_inputs[name])


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"z": np.zeros((1, 8), np.float32)}, "do not fit the model: found z"),
        ({"x": np.zeros((1, 9), np.float32)}, r"'x' is float32\[1, 9\]"),
        ({"x": np.zeros((1, 8))}, r"'x' is float64\[1, 8\]"),
        (np.zeros((1, 8), np.float32), "arrays by input name; found ndarray"),
    ],
    ids=["name", "shape", "type", "no-names"],
)
def test_example_inputs_that_do_not_fit(given: object, text: str) -> None:
    with pytest.raises(ExportError, match=text):
        load_source(classifier(), example_inputs=given)


def test_preprocessing_beside_the_file_is_used(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    body = helper.make_graph(
        [helper.make_node("GlobalAveragePool", ["pixel_values"], ["y"])],
        "g",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3, 1, 1])],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "onnx" / "model.onnx")
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_processor_type": "ViTImageProcessor", "size": {"height": 48, "width": 48}, '
        '"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}'
    )
    source = load_source(tmp_path / "onnx" / "model.onnx")
    assert source.preprocess is not None
    assert source.preprocess.mean == (127.5, 127.5, 127.5)  # type: ignore[union-attr]
    assert source.example_inputs["pixel_values"].shape == (1, 3, 48, 48)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x0a"])
def test_files_that_are_no_models(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"not a readable ONNX model|holds no graph"):
        load_source(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the model file does not exist"):
        load_source(tmp_path / "net.onnx")


def test_an_onnx_user_never_imports_torch(tmp_path: Path) -> None:
    onnx.save(classifier(17), tmp_path / "net.onnx")
    code = (
        "import sys; from edgeq.stages.export import load_source\n"
        f"load_source({str(tmp_path / 'net.onnx')!r})\n"
        "heavy = {'torch', 'transformers', 'optimum', 'tokenizers', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_external_data_of_a_constant_node_is_checked_and_read(tmp_path: Path) -> None:
    def save(location: str) -> Path:
        tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=location)
        body = helper.make_graph(
            [helper.make_node("Constant", [], ["c"], value=tensor), helper.make_node("Add", ["x", "c"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        )
        model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        (tmp_path / "model" / "net.onnx").write_bytes(model.SerializeToString())
        return tmp_path / "model" / "net.onnx"

    (tmp_path / "model").mkdir()
    for folder in (tmp_path, tmp_path / "model"):
        (folder / "data").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    with pytest.raises(ModelError, match="'c' lies outside the model's folder"):
        load_source(save("../data"))
    source = load_source(save("data"))
    x = np.ones(4, np.float32)
    np.testing.assert_array_equal(runtime.run_model(source.model, {"x": x})["y"], np.arange(1, 5, dtype=np.float32))
