"""What is tried in a block, and that only what lowers its error is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from refine_cases import identical, network, refined
from small_models import parse

from edgeq.affine import range_to_qparams
from edgeq.blocks import find_blocks, restrict_plan
from edgeq.padding import counted, mask_of
from edgeq.qtypes import IntType, QuantPlan, TensorSpec
from edgeq.revise import bias_home, with_bias
from edgeq.runtime import run_model
from edgeq.stages.insert import insert_qdq
from edgeq.stages.refine import sweep
from edgeq.stages.refine.borders import Borders
from edgeq.stages.refine.judge import Judge, relative_error, squares
from edgeq.stages.refine.layers import Candidate, layer_candidates
from edgeq.stages.refine.ranges import range_candidates
from edgeq.target import load_target

HEAVY = ("a", "d", "p", "e", "f", "g", "y")


def filled(limit: int = 1 << 30) -> Borders:
    """The inputs of the model at its border, which a block that begins with them reads."""
    borders = Borders(limit)
    for i, sample in enumerate(network().feed):
        for side in ("float", "quantized"):
            borders.put(side, "x", i, sample["x"])  # type: ignore[arg-type]
    return borders


def test_a_poisoned_candidate_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates with a bias that is far off, or with numbers that are none, leave the plan as it is."""
    chain = network()

    def poison(model, plan: QuantPlan, block, node: str, *rest, **options) -> list[Candidate]:  # type: ignore[no-untyped-def]
        bias = next((d for d in plan if d.role == "bias" and node in d.consumers), None)
        assert bias is not None
        size = {"a": 8, "d": 8, "p": 6, "e": 12, "f": 6, "g": 4, "y": 24}[node]
        return [
            Candidate("poison", replace(plan, weights={**plan.weights, bias.tensor: np.full(size, value, np.float32)}))
            for value in (50.0, 1e6)
        ]

    monkeypatch.setattr(sweep, "layer_candidates", poison)
    monkeypatch.setattr(sweep._Walk, "_ranges", lambda self, judge, block, error: error)
    found = refined(chain)
    tried = [trial for trial in found.trials if trial.method.startswith("poison")]
    assert len(tried) == 2 * len(HEAVY)
    assert not any(trial.kept for trial in tried)
    assert identical(found.plan, chain.plan)


def test_the_judge_counts_as_whole_models_do() -> None:
    """The error of the first block is what running its two graphs gives, whatever session is used."""
    chain = network()
    block = find_blocks(chain.shaped, HEAVY)[0]
    wide = range_to_qparams(0.0, 9.0, next(d.qparams for d in chain.plan if d.tensor == "ar" and d.qparams).spec)
    changed = replace(
        chain.plan, decisions=tuple(replace(d, qparams=wide) if d.tensor == "ar" else d for d in chain.plan)
    )
    with filled() as borders, Judge(chain.shaped, block, insert_qdq, borders) as judge:
        for i, sample in enumerate(chain.feed):
            for name, array in run_model(judge.part, sample).items():
                borders.put("float", name, i, array)
        found = judge.errors([chain.plan, changed, chain.plan], range(4))
        assert found[0] == found[2] != found[1]
        for plan, error in zip((chain.plan, changed), found, strict=False):
            graph = insert_qdq(judge.part, restrict_plan(plan, judge.part))
            wanted = [run_model(judge.part, chain.feed[i]) for i in range(4)]
            stored = [run_model(graph, chain.feed[i]) for i in range(4)]
            pairs = [[squares(w[n], s[n]) for n in block.outputs] for w, s in zip(wanted, stored, strict=True)]
            assert error == relative_error(pairs)


def test_the_corrected_bias_restores_the_mean_of_the_output() -> None:
    """``E[y_float - y_quantized]`` is zero after the correction, but for rounding both biases, old and new."""
    chain = network()
    block = find_blocks(chain.shaped, HEAVY)[0]
    home = bias_home(chain.plan, chain.shaped, "a")
    assert home is not None
    off = with_bias(chain.plan, chain.shaped, "a", home.array + np.float32(0.1), mode="int32")
    with filled() as borders:
        tried = layer_candidates(
            chain.shaped, off, block, "a", borders, range(32), target=chain.target, insert=insert_qdq
        )
    corrected = next(c for c in tried if c.method == "sequential bias correction").plan
    wanted, found = (outputs_of(m, chain.feed, "a") for m in (chain.shaped, insert_qdq(chain.shaped, corrected)))
    step = next(d.qparams for d in corrected if d.role == "bias" and d.qparams and "a" in d.consumers).scale
    assert (np.abs((wanted - found).mean(axis=(0, 2, 3), dtype=np.float64)) < 1.01 * step + 1e-6).all()
    assert {c.method for c in tried} == {
        "sequential bias correction",
        "rounding, bias corrected",
        "rounding and scales, bias corrected",
    }


def outputs_of(model, feed, name: str) -> np.ndarray:  # type: ignore[no-untyped-def]
    model = model.clone()
    value = next(v for node in model.graph for v in node.outputs if v.name == name)
    model.graph.outputs.append(value)
    return np.concatenate([run_model(model, sample, outputs=[name])[name] for sample in feed])


def test_ranges_that_are_tried_keep_to_a_clip() -> None:
    spec = TensorSpec(IntType(8, False), False)
    held, target = range_to_qparams(0.0, 5.9, spec), load_target("linux-x64")
    clip = parse(
        "g (float[4] x) => (float[4] y) { y = Clip (x, low, high) }", low=np.float32(0), high=np.float32(6)
    ).graph[0]
    free = range_candidates(held, (-1.0, 20.0), None, target)
    bound = range_candidates(held, (-1.0, 20.0), clip, target)
    assert max(q.real_range[1] for q in free) > 19
    assert len(bound) < len(free)
    assert all(q.real_range[0] >= 0 and q.real_range[1] <= 6 for q in bound)
    assert len({float(q.scale) for q in free}) == len(free) == 7


def test_padding_does_not_count() -> None:
    mask = np.array([[1, 1, 1, 0, 0]])
    tokens = mask_of({"attention_mask": mask})
    assert tokens is not None
    assert mask_of({"attention_mask": np.ones((1, 5))}) is None
    assert mask_of({"x": mask}) is None
    rng = np.random.default_rng(0)
    hidden, heads = rng.standard_normal((1, 5, 7)), rng.standard_normal((1, 2, 5, 3))
    np.testing.assert_array_equal(counted(hidden, tokens), hidden[0, :3])
    np.testing.assert_array_equal(counted(heads, tokens), heads[0].transpose(1, 0, 2)[:3])
    np.testing.assert_array_equal(counted(hidden.reshape(5, 7), tokens), hidden[0, :3])
    picture = rng.standard_normal((1, 3, 8, 8))
    assert counted(picture, tokens) is picture
    off = hidden.copy()
    off[0, 3:] += 100
    assert squares(hidden, off, tokens)[1] == 0
    assert squares(hidden, off)[1] > 0


def test_what_is_beyond_the_limit_lies_in_files_that_are_removed() -> None:
    with filled(limit=5000) as borders:
        folder = borders._folder
        assert folder is not None
        assert len(list(folder.iterdir())) == 2 * len(network().feed) - 2  # two fit into memory
        for i, sample in enumerate(network().feed):
            np.testing.assert_array_equal(borders.get("float", ["x"], i)["x"], sample["x"])
        borders.keep([])
        assert not list(folder.iterdir())
    assert not Path(folder).exists()
