"""Blocks cover the graph once, never split a branch, and run alone as they do within the whole."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_models import parse, quantized, samples, weights

from edgeq.blocks import Block, extract, extract_block, find_blocks, restrict_plan
from edgeq.runtime import run_model
from edgeq.stages.insert import insert_qdq

RESIDUAL = """g (float[1,4,8,8] x) => (float[1,4,8,8] y, float[1,4,8,8] t) {
    a = Conv <pads = [1,1,1,1]> (x, w)
    ar = Relu (a)
    b = Conv <pads = [1,1,1,1]> (ar, w)
    c = Conv <pads = [1,1,1,1]> (b, w)
    s = Add (ar, c)
    d = Conv <pads = [1,1,1,1]> (s, w)
    e = Conv <pads = [1,1,1,1]> (d, w)
    t = Relu (e)
    f = Conv <pads = [1,1,1,1]> (t, w)
    g1 = Conv <pads = [1,1,1,1]> (f, w)
    y = Relu (g1)
}"""
HEAVY = frozenset({"a", "b", "c", "d", "e", "f", "g1"})


def residual() -> ir.Model:
    return parse(RESIDUAL, w=weights(4, 4, 3, 3))


def chained(model: ir.Model, blocks: tuple[Block, ...], sample: dict[str, np.ndarray], plan=None) -> dict:  # type: ignore[no-untyped-def, type-arg]
    """The outputs of the model, run block by block."""
    held = dict(sample)
    for block in blocks:
        part = extract_block(model, block)
        if plan is not None:
            part = insert_qdq(part, restrict_plan(plan, part))
        held.update(run_model(part, {name: held[name] for name in block.inputs}))
    return {str(value.name): held[str(value.name)] for value in model.graph.outputs}


@pytest.mark.parametrize("most", [1, 2, 4])
def test_every_node_is_in_one_block_in_order(most: int) -> None:
    model = residual()
    blocks = find_blocks(model, HEAVY, most=most)
    assert [name for block in blocks for name in block.nodes] == [node.name for node in model.graph]
    assert [name for block in blocks for name in block.heavy] == ["a", "b", "c", "d", "e", "f", "g1"]
    assert all(block.name == block.heavy[-1] for block in blocks)


def test_a_branch_is_a_block_and_chains_are_merged() -> None:
    blocks = find_blocks(residual(), HEAVY)
    assert [block.heavy for block in blocks] == [("a",), ("b", "c"), ("d", "e", "f", "g1")]
    assert [block.inputs for block in blocks] == [("x",), ("ar",), ("s",)]
    assert blocks[-1].outputs == ("t", "y")  # an output of the model from the middle of a block
    layers = find_blocks(residual(), HEAVY, most=1)
    assert [block.heavy for block in layers] == [("a",), ("b", "c"), ("d",), ("e",), ("f",), ("g1",)]


def test_a_block_without_a_place_to_end_ends_with_several_tensors() -> None:
    """Seven layers under one long skip connection, blocks of at most three times two layers."""
    lines = "\n".join(f"c{i} = Conv <pads = [1,1,1,1]> (c{i - 1}, w)" for i in range(1, 9))
    text = (
        f"g (float[1,4,8,8] x) => (float[1,4,8,8] y) {{ c0 = Conv <pads = [1,1,1,1]> (x, w) {lines} y = Add (c0, c8) }}"
    )
    model = parse(text, w=weights(4, 4, 3, 3))
    heavy = {f"c{i}" for i in range(9)}
    blocks = find_blocks(model, heavy, most=2)
    assert max(len(block.heavy) for block in blocks) == 6
    assert any(len(block.inputs) == 2 for block in blocks)  # what came so far, and the tensor that is skipped
    sample = samples(model, 1)[0]
    np.testing.assert_array_equal(chained(model, blocks, sample)["y"], run_model(model, sample)["y"])


@pytest.mark.parametrize(("target", "scheme"), [("linux-x64", "w8a8"), ("android-npu", "w4a16"), ("linux-x64", "w4")])
def test_blocks_one_after_another_are_the_model(target: str, scheme: str) -> None:
    """Bit for bit, in float and quantized."""
    chain = quantized(residual(), target, scheme)
    blocks = find_blocks(chain.shaped, HEAVY)
    whole = insert_qdq(chain.shaped, chain.plan)
    for sample in chain.feed:
        for plan, model in ((None, chain.shaped), (chain.plan, whole)):
            found, wanted = chained(chain.shaped, blocks, sample, plan), run_model(model, sample)
            for name, array in wanted.items():
                np.testing.assert_array_equal(found[name], array)


def test_a_subgraph_reads_from_outside_of_its_block() -> None:
    text = """g (float[1,4] x, bool p) => (float[1,4] y) {
        a = MatMul (x, w)
        h = MatMul (a, w)
        b = If (p) <
            then_branch = t () => (float[1,4] bt) { bt = Add (a, a) },
            else_branch = e () => (float[1,4] be) { be = Neg (a) }
        >
        c = Add (b, h)
        y = MatMul (c, w)
    }"""
    model = parse(text, w=weights(4, 4))
    blocks = find_blocks(model, {"a", "h", "y"}, most=1)
    holding = next(block for block in blocks if "b" in block.nodes)
    assert "p" in holding.inputs or "p" in blocks[0].inputs
    assert "a" in holding.inputs or "a" in holding.nodes
    for choice in (True, False):
        sample = {"x": weights(1, 4, seed=3), "p": np.asarray(choice)}
        np.testing.assert_array_equal(chained(model, blocks, sample)["y"], run_model(model, sample)["y"])


def test_what_does_not_follow_from_the_inputs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"."):
        extract(residual(), ["s"], ["b"])
    with pytest.raises(ValueError, match=r"."):
        extract(residual(), ["x"], ["nothing"])


def test_arrays_are_shared_with_the_whole() -> None:
    model = residual()
    part = extract(model, ["s"], ["t"])
    held, whole = part.graph.initializers["w"].const_value, model.graph.initializers["w"].const_value
    assert held is not None
    assert whole is not None
    assert held is whole
