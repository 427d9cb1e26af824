"""Running between any tensors, with hooks, other weights, gradients and stacked samples."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import onnx_ir as ir
import pytest
from small_models import parse, quantized, samples, weights

from edgeq.errors import ModelError
from edgeq.graph import load_model, save_model
from edgeq.runtime import run_model

torch = pytest.importorskip("torch")

from edgeq.torch_graph import TorchGraph, unsupported  # noqa: E402

pytestmark = pytest.mark.torch

TEXT = """
g (float[1,3,8,8] x) => (float[1,5] y) {
    c = Conv<pads=[1,1,1,1]>(x, conv.weight, conv.bias)
    r = Relu(c)
    d = Conv<pads=[1,1,1,1]>(r, deep.weight)
    a = Add(d, r)
    p = GlobalAveragePool(a)
    f = Reshape(p, shape)
    y = Gemm(f, head)
}
"""


@pytest.fixture
def model() -> ir.Model:
    text = TEXT.replace("conv.weight", "cw").replace("conv.bias", "cb").replace("deep.weight", "dw")
    constants = {
        "cw": weights(4, 3, 3, 3), "cb": weights(4), "dw": weights(4, 4, 3, 3), "head": weights(4, 5), "shape": [1, 4]
    }  # fmt: skip
    model = parse(text, **{name: np.asarray(a) for name, a in constants.items()})
    for old, new in (("cw", "conv.weight"), ("cb", "conv.bias")):  # names as torch's exporter gives them
        model.graph.initializers[old].name = new
    return model


def feed(model: ir.Model, count: int = 1):
    found = samples(model, count)
    return {name: torch.from_numpy(np.concatenate([s[name] for s in found])) for name in found[0]}


def test_weights_have_their_onnx_names(model) -> None:
    graph = TorchGraph(model)
    assert set(graph.weights) == set(model.graph.initializers)
    assert isinstance(graph.weights["conv.weight"], torch.nn.Parameter)
    assert not isinstance(graph.weights["shape"], torch.nn.Parameter)
    assert {id(p) for p in graph.parameters()} == {
        id(graph.weights[n]) for n in ("conv.weight", "conv.bias", "dw", "head")
    }
    before = graph(feed(model))["y"]
    with torch.no_grad():
        graph.weights["head"].zero_()
    assert graph(feed(model))["y"].abs().sum() == 0
    assert before.abs().sum() > 0
    np.testing.assert_array_equal(model.graph.initializers["head"].const_value.numpy(), weights(4, 5))


def test_any_part_of_the_graph_runs_by_itself(model) -> None:
    graph = TorchGraph(model)
    whole = graph.run(feed(model), ["r", "d", "a", "y"])
    part = graph.run({"r": whole["r"]}, ["a"])
    torch.testing.assert_close(part["a"], whole["a"], rtol=0, atol=0)
    # With r fed, its producer does not run; d is fed too, so that only Add does.
    part = graph.run({"r": whole["r"], "d": torch.zeros_like(whole["d"])}, ["a"])
    torch.testing.assert_close(part["a"], whole["r"], rtol=0, atol=0)
    assert graph.run({"y": whole["y"]}, ["y"])["y"] is whole["y"]
    assert graph.run({}, ["head"])["head"] is graph.weights["head"]


def test_what_is_missing_is_named(model) -> None:
    graph = TorchGraph(model)
    with pytest.raises(ModelError, match="no tensor x"):
        graph.run({}, ["y"])
    with pytest.raises(ModelError, match="no tensor nothing"):
        graph.run(feed(model), ["nothing"])
    with pytest.raises(ModelError, match=r"Conv fails in torch on \(float32\[1, 2, 8, 8\]") as error:
        graph.run({"x": torch.zeros(1, 2, 8, 8)}, ["y"])
    assert "node 'c'" in str(error.value)


def test_hooks_see_every_float_tensor_and_replace_it(model) -> None:
    graph = TorchGraph(model)
    seen: list[str] = []

    def hook(name, tensor):
        seen.append(name)
        return torch.zeros_like(tensor) if name == "d" else tensor

    found = graph.run(feed(model), ["a", "r"], hook=hook)
    assert seen == ["x", "c", "r", "d", "a"]
    torch.testing.assert_close(found["a"], found["r"], rtol=0, atol=0)


def test_other_weights_for_one_run(model) -> None:
    graph = TorchGraph(model)
    before = graph(feed(model))["y"]
    doubled = graph.run(feed(model), ["y"], weights={"head": 2 * graph.weights["head"]})["y"]
    torch.testing.assert_close(doubled, 2 * before)
    torch.testing.assert_close(graph(feed(model))["y"], before, rtol=0, atol=0)


def test_tensors_are_freed_after_their_last_reader(model) -> None:
    graph = TorchGraph(model)
    alive: dict[str, weakref.ref] = {}
    at_the_end: list[str] = []

    def hook(name, tensor):
        gc.collect()
        if name == "p":
            at_the_end.extend(n for n, reference in alive.items() if reference() is not None)
        alive[name] = weakref.ref(tensor)
        return tensor

    with torch.no_grad():
        graph.run(feed(model), ["y"], hook=hook)
    assert "c" in alive
    assert set(at_the_end) <= {"x", "a"}  # the caller holds x; a was read by the node that made p


def test_samples_may_be_stacked_although_the_batch_is_fixed(model) -> None:
    graph = TorchGraph(model)
    many = [feed_of(model, seed) for seed in range(3)]
    stacked = graph.run_stacked({"x": torch.stack([m["x"] for m in many])}, ["y", "a"])
    assert stacked["y"].shape == (3, 1, 5)
    for index, one in enumerate(many):
        single = graph.run(one, ["y", "a"])
        torch.testing.assert_close(stacked["y"][index], single["y"])
        torch.testing.assert_close(stacked["a"][index], single["a"])
    stacked["y"].square().sum().backward()
    together = graph.weights["conv.weight"].grad.clone()
    graph.zero_grad()
    sum(graph.run(one, ["y"])["y"].square().sum() for one in many).backward()
    torch.testing.assert_close(graph.weights["conv.weight"].grad, together)


def feed_of(model: ir.Model, seed: int):
    return {name: torch.from_numpy(array) for name, array in samples(model, 1, seed=seed)[0].items()}


def test_gradients_are_those_of_finite_differences(model) -> None:
    graph = TorchGraph(model).double()
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    names = ("conv.weight", "dw", "head")

    def run(x, *tensors):
        return graph.run({"x": x}, ["y"], weights=dict(zip(names, tensors, strict=True)))["y"]

    tensors = [graph.weights[name].detach().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(run, (x, *tensors), fast_mode=True)


def test_a_quantized_model_runs_as_in_onnx_runtime(model) -> None:
    for scheme, target in (("w8a8", "linux-x64"), ("w8a16", "linux-x64"), ("w4_b32", "linux-x64")):
        chain = quantized(model, target, scheme)
        graph = TorchGraph(chain.model)
        for sample in chain.feed:
            expected = chain.run(sample)
            with torch.no_grad():
                found = graph({name: torch.from_numpy(a) for name, a in sample.items()})
            for name, wanted in expected.items():
                # A level may flip where two sums round differently: one level of 255.
                np.testing.assert_allclose(found[name].numpy(), wanted, atol=np.ptp(wanted) / 100)


def test_gradients_pass_through_a_quantized_model(model) -> None:
    chain = quantized(model)
    graph = TorchGraph(chain.model)
    x = torch.from_numpy(chain.feed[0]["x"]).requires_grad_()
    graph({"x": x})["y"].sum().backward()
    exact = torch.from_numpy(chain.feed[0]["x"]).requires_grad_()
    TorchGraph(model)({"x": exact})["y"].sum().backward()
    assert torch.cosine_similarity(x.grad.flatten(), exact.grad.flatten(), dim=0) > 0.95


def test_hooks_do_not_see_levels(model) -> None:
    chain = quantized(model)
    seen: dict[str, torch.Tensor] = {}

    def hook(name, tensor):
        seen[name] = tensor
        return tensor

    TorchGraph(chain.model).run({n: torch.from_numpy(a) for n, a in chain.feed[0].items()}, ["y"], hook=hook)
    levels = {str(n.outputs[0].name) for n in chain.model.graph if n.op_type == "QuantizeLinear"}
    assert levels
    assert not levels & set(seen)


def test_what_cannot_run_is_listed_with_its_reason() -> None:
    text = """
    g (float[1,1,4,4] x) => (float y, float z) {
        a, i = MaxPool<kernel_shape=[2,2]>(x)
        b = Resize<coordinate_transformation_mode="tf_crop_and_resize">(a, roi, s)
        y = toy.Thing(b)
        z = Relu(x)
    }
    """
    model = parse(text, s=np.ones(4, np.float32), roi=np.zeros(8, np.float32))
    found = unsupported(model)
    assert len(found) == 3
    assert "MaxPool 'a': the output Indices is not supported" in found
    assert any("Resize 'b'" in line and "tf_crop_and_resize" in line for line in found)
    assert any("Thing 'y'" in line and "toy" in line for line in found)
    with pytest.raises(ModelError, match="3 nodes cannot run in torch"):
        TorchGraph(model)


def test_subgraphs_and_strings_are_listed() -> None:
    text = """
    g (bool[1] c, float[2] x) => (float[2] y) {
        y = If(c) <
            then_branch = t () => (float[2] u) { u = Relu(x) }, else_branch = e () => (float[2] v) { v = Neg(x) }
        >
    }
    """
    assert unsupported(parse(text)) == ["If 'y': the operator is not known"]
    text = "g (string[2] s, string[2] t) => (bool[2] y) { y = Equal(s, t) }"
    (line,) = unsupported(parse(text))
    assert "no torch type for STRING" in line


def test_constants_of_nodes_and_files(model, tmp_path) -> None:
    text = """
    g (float[2] x) => (float[2] y) {
        k = Constant<value = float[2] {1.0, 2.0}>()
        h = Constant<value_float = 3.0>()
        a = Add(x, k)
        y = Mul(a, h)
    }
    """
    graph = TorchGraph(parse(text))
    assert set(graph.weights) == {"k", "h"}
    assert graph({"x": torch.tensor([1.0, 1.0])})["y"].tolist() == [6.0, 9.0]
    save_model(model, tmp_path / "m.onnx")
    loaded = TorchGraph(load_model(tmp_path / "m.onnx"))
    torch.testing.assert_close(loaded(feed(model))["y"], TorchGraph(model)(feed(model))["y"], rtol=0, atol=0)


def test_the_same_input_gives_the_same_bytes(model) -> None:
    runs = [TorchGraph(model)(feed(model))["y"].detach().numpy().tobytes() for _ in range(3)]
    assert len(set(runs)) == 1
    expected = run_model(model, {n: t.numpy() for n, t in feed(model).items()})["y"]
    np.testing.assert_allclose(np.frombuffer(runs[0], np.float32).reshape(1, 5), expected, rtol=1e-5, atol=1e-6)
