from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeq import graph, runtime
from edgeq.errors import ExportError
from edgeq.stages.export import load_source

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

NET = """
import torch

print("this file talks")

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3)
        self.norm = torch.nn.BatchNorm2d(8)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, pixels, scale=None):
        print("so does forward()")
        features = self.drop(self.norm(self.conv(pixels)))
        return {"logits": features.mean((2, 3)), "maps": (features, None, features + 1)}

def build():
    torch.manual_seed(0)
    return Net(), torch.zeros(2, 3, 8, 8), {"pixels": {0: "batch"}}

def wrong():
    return Net()

def broken():
    return 1 / 0

def inputs_too_small():
    return Net(), torch.zeros(2, 3, 1, 1)
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("code") / "net.py"
    path.write_text(NET)
    return path


@pytest.fixture(scope="module")
def source(file: Path):
    return load_source(f"{file}:build", task="image-classification")


def test_a_function_in_a_file(source, file: Path) -> None:
    assert source.name == "net"
    assert source.task == "image-classification"
    assert source.provenance["origin"] == "net.py:build"
    assert [info.describe() for info in graph.input_infos(source.model)] == ["pixels: float32[batch, 3, 8, 8]"]
    assert [info.describe() for info in graph.output_infos(source.model)] == [
        "logits: float32[batch, 8]",
        "maps_0: float32[batch, 8, 6, 6]",
        "maps_2: float32[batch, 8, 6, 6]",
    ]
    assert source.model.opset_imports[""] == 21
    assert source.parity.samples == 2
    assert source.parity.sqnr_db > 100
    assert "Dropout" not in {node.op_type for node in source.model.graph}


def test_the_dynamic_axis_is_dynamic(source, file: Path) -> None:
    sys.path.insert(0, str(file.parent))
    try:
        import net
    finally:
        sys.path.remove(str(file.parent))
    module, _, _ = net.build()
    pixels = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = module.eval()(pixels)["logits"].detach().numpy()
    np.testing.assert_allclose(
        runtime.run_model(source.model, {"pixels": pixels.numpy()})["logits"], expected, atol=1e-5
    )


def test_nothing_of_this_machine_is_in_the_bytes(source, file: Path) -> None:
    data = graph.to_bytes(source.model)
    for trace in (str(file.parent), "site-packages", "net.py", "stack_trace", "class_hierarchy"):
        assert trace.encode() not in data


def test_stdout_is_left_alone_and_stderr_to_the_user_s_file(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = logging.root.manager.disable
    load_source(f"{file}:build")
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "this file talks\n"
    assert logging.root.manager.disable == before


@pytest.mark.slow
def test_the_same_source_gives_the_same_bytes_in_another_process(source, file: Path) -> None:
    code = (
        "import hashlib; from edgeq.stages.export import load_source; from edgeq import graph\n"
        f"print(hashlib.sha256(graph.to_bytes(load_source({str(file)!r} + ':build').model)).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == hashlib.sha256(graph.to_bytes(source.model)).hexdigest()


@pytest.mark.parametrize(
    ("function", "text"),
    [
        ("wrong", r"wrong\(\) returned Net, not \(module, example_inputs\[, dynamic_shapes\]\)"),
        ("broken", r"the code fails: ZeroDivisionError: division by zero[\s\S]*net\.py:26"),
        ("absent", r"no function 'absent'[\s\S]*it has: broken, build, inputs_too_small, wrong"),
        ("inputs_too_small", r"the module fails on the example inputs: RuntimeError: .*[Kk]ernel size"),
    ],
)
def test_functions_that_do_not_work(file: Path, function: str, text: str) -> None:
    with pytest.raises(ExportError, match=text):
        load_source(f"{file}:{function}")


def test_a_file_that_does_not_exist_or_does_not_compile(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="the Python file does not exist"):
        load_source(f"{tmp_path}/absent.py:build")
    (tmp_path / "bad.py").write_text("def build(:\n")
    with pytest.raises(ExportError, match="the code fails: SyntaxError"):
        load_source(f"{tmp_path}/bad.py:build")


class Sum(torch.nn.Module):
    def forward(self, left, right=None, *, bias=None):
        total = left if right is None else left + right
        return total if bias is None else total + bias


def test_a_module_in_memory_with_inputs_by_name() -> None:
    module = Sum().train()
    source = load_source(
        module,
        example_inputs={"bias": torch.ones(3), "left": torch.ones(4, 3)},
        dynamic_shapes={"left": {0: torch.export.Dim("rows")}, "bias": None},
    )
    assert module.training
    assert [info.describe() for info in graph.input_infos(source.model)] == [
        "left: float32[rows, 3]",
        "bias: float32[3]",
    ]
    assert [info.name for info in graph.output_infos(source.model)] == ["output"]
    assert source.name == "Sum"


def test_symbols_of_torch_get_names() -> None:
    dynamic = torch.export.Dim.DYNAMIC
    source = load_source(Sum(), example_inputs=(torch.ones(4, 6),), dynamic_shapes=({0: dynamic, 1: dynamic},))
    assert [info.describe() for info in graph.input_infos(source.model)] == ["left: float32[batch, left_1]"]


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (None, "example inputs are needed: a tensor, a tuple of tensors or a dict"),
        ({"middle": torch.ones(1)}, r"forward\(\) takes no input middle[\s\S]*it takes: left, right, bias"),
        ((torch.ones(1),) * 3, r"3 example inputs for a forward\(\) that takes 2: left, right"),
        ({"left": 3.0}, "'left' is float, not a tensor"),
    ],
    ids=["none", "unknown", "too-many", "not-a-tensor"],
)
def test_inputs_that_do_not_fit(inputs: object, text: str) -> None:
    with pytest.raises(ExportError, match=text):
        load_source(Sum(), example_inputs=inputs)


def test_a_model_that_torch_cannot_trace_names_the_line() -> None:
    class Branch(torch.nn.Module):
        def forward(self, x):
            if x.sum() > 0:
                return x
            return x * 2

    with pytest.raises(
        ExportError, match=r"torch cannot export the model: .*test_export_torch_module\.py:\d+: if x\.sum"
    ):
        load_source(Branch(), example_inputs=torch.ones(3))


def test_a_model_that_computes_something_else_than_its_export_is_refused() -> None:
    class Counting(torch.nn.Module):
        """Its result depends on what no input shows."""

        calls = 0

        def forward(self, x):
            Counting.calls += 1
            return x * Counting.calls

    with pytest.raises(ExportError, match="does not match its source: output 'output' is off by"):
        load_source(Counting(), example_inputs=torch.ones(3))
