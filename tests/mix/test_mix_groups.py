"""Which nodes change format together, on networks small enough to see and on real ones."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from small_models import parse, weights

from edgeq.pipeline import Job
from edgeq.qtypes import Scheme
from edgeq.stages.choose import find_layout, formats_of
from edgeq.stages.mix import Group, Structure, find_groups
from edgeq.stages.tune import shape_float
from edgeq.target import load_target


def groups_of(model: ir.Model, target: str = "linux-x64", scheme: str = "w8a8") -> list[Group]:
    profile, parsed = load_target(target), Scheme.parse(scheme)
    shaped = shape_float(model, profile, parsed)
    layout = find_layout(shaped, profile, parsed)
    offered = {str(node.name): formats_of(node, profile, parsed) for node in shaped.graph}
    kinds = {name: capability.kind for name, capability in layout.integer.items()}
    found = find_groups(shaped, Structure(kinds, layout.absorbed, layout.owner, profile.floats.avoid), offered)
    assert sorted(name for group in found for name in group.nodes) == sorted(str(node.name) for node in shaped.graph)
    return list(found)


def test_a_kernel_its_relu_and_what_only_moves_its_result_are_one_group() -> None:
    model = parse(
        """g (float[1,3,8,8] x) => (float[1,4,2,2] z) {
            c = Conv<pads=[1,1,1,1]>(x, w) r = Relu(c) m = MaxPool<kernel_shape=[2,2],strides=[2,2]>(r)
            c2 = Conv(m, w2) s = Sigmoid(c2) y = Mul(s, c2) z = Conv(y, w3) }""",
        w=weights(4, 3, 3, 3),
        w2=weights(4, 4, 3, 3, seed=1),
        w3=weights(4, 4, 1, 1, seed=2),
    )
    found = groups_of(model)
    assert [group.nodes for group in found] == [("c", "r", "m"), ("c2",), ("s",), ("y",), ("z",)]
    assert [group.name for group in found] == ["c", "c2", "s", "y", "z"]
    assert [own.name for own in found[0].formats] == ["w8a8", "float"]
    assert found[0].needs == ()
    assert found[3].needs == (("s",), ("c2",), ("z",)), "an integer Mul wants integers, before and behind"
    assert found[2].needs == (("c2",), ("y",))


def test_layers_that_read_one_tensor_are_one_group() -> None:
    model = parse(
        """g (float[2,4,32] x) => (float[2,4,32] y) {
            q = MatMul(x, wq) k = MatMul(x, wk) t = Transpose<perm=[0,2,1]>(k) s = MatMul(q, t) v = MatMul(x, wv)
            y = MatMul(s, v) }""",
        wq=weights(32, 32),
        wk=weights(32, 32, seed=1),
        wv=weights(32, 32, seed=2),
    )
    found = groups_of(model)
    assert found[0].nodes[:2] == ("q", "k")
    assert {"q", "k", "v"} <= set(found[0].nodes)


def test_a_bias_that_is_added_belongs_to_its_product() -> None:
    text = "g (float[2,4,32] x) => (float[2,4,8] y) { p = MatMul(x, w) a = Add(b, p) y = MatMul(a, v) }"
    model = parse(text, w=weights(32, 8), b=weights(8), v=weights(8, 8, seed=1))
    assert [set(group.nodes) for group in groups_of(model)] == [{"p", "a"}, {"y"}]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["linux-x64", "android-npu"])
def test_every_layer_of_minilm_has_q_k_and_v_in_one_group(target: str) -> None:
    job = Job("example:minilm", target)
    found = groups_of(job.prepared.model, target)
    products = {str(n.name): n for n in job.shaped(Scheme.parse("w8a8")).graph if n.op_type == "MatMul"}
    by_input: dict[ir.Value, set[str]] = {}
    for name, node in products.items():
        if node.inputs[1] is not None and node.inputs[1].is_initializer():
            by_input.setdefault(node.inputs[0], set()).add(name)  # type: ignore[arg-type]
    attention = [names for names in by_input.values() if len(names) == 3]
    assert len(attention) == 6
    for names in attention:
        assert any(names <= set(group.nodes) for group in found)
