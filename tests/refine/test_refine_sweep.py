"""The walk over the blocks: errors never rise, nothing depends on chance, an interrupted run goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from refine_cases import identical, network, plain, refined
from small_models import samples

from edgeq.affine import fake_quantize
from edgeq.blocks import find_blocks
from edgeq.metrics import sqnr_db
from edgeq.qtypes import QuantPlan
from edgeq.revise import weight_of
from edgeq.runtime import run_model
from edgeq.stages.insert import insert_qdq, verify_qdq
from edgeq.stages.refine import sweep


def quality(plan: QuantPlan, count: int = 24, **options: str) -> float:
    """SQNR of the outputs on samples that nothing was fitted to."""
    chain = network(**options)
    model = insert_qdq(chain.shaped, plan)
    drawn = samples(chain.shaped, count, seed=99)
    wanted, found = (np.concatenate([run_model(m, s)["y"] for s in drawn]) for m in (chain.shaped, model))
    return sqnr_db(wanted, found)


@pytest.mark.parametrize(
    ("scheme", "target", "gain"),
    # Noise in 8 bits through random weights leaves nothing to find: it must not become worse than by chance.
    [("w4a8", "android-npu", 0.5), ("w8a8", "linux-x64", -0.3), ("w8a8", "linux-x64@avx2", -0.3)],
)
def test_outputs_come_closer_to_the_float_models(scheme: str, target: str, gain: float) -> None:
    chain = network(scheme=scheme, target=target)
    found = plain(scheme, target)
    assert quality(found.plan, scheme=scheme, target=target) > quality(chain.plan, scheme=scheme, target=target) + gain
    verify_qdq(insert_qdq(chain.shaped, found.plan))


def test_the_error_of_a_block_never_rises() -> None:
    found = plain()
    kept = [trial for trial in found.trials if trial.kept]
    assert len(kept) >= 5
    assert all(t.before_db is not None and t.after_db is not None and t.after_db > t.before_db for t in kept)
    blocks: dict[str, float] = {}
    for trial in kept:
        assert trial.before_db is not None
        assert trial.after_db is not None
        assert trial.before_db == pytest.approx(blocks.get(trial.block, trial.before_db), abs=1e-9)
        blocks[trial.block] = trial.after_db
    assert found.plan.trials == found.trials


def test_weights_lie_on_their_grid_and_biases_fit_int32() -> None:
    chain = network()
    plan = plain().plan
    changed = [d for d in plan if d.role == "weight" and d.tensor in plan.weights and d.qparams is not None]
    assert len(changed) >= 2
    for decision in changed:
        assert decision.qparams is not None
        array = plan.weights[decision.tensor]
        np.testing.assert_array_equal(fake_quantize(array, decision.qparams), array)
    scales = {n: d.qparams.scale for d in plan if d.role == "activation" and d.qparams for n in d.consumers}
    for decision in plan:
        if decision.role == "bias" and decision.qparams is not None:
            node = decision.consumers[0]
            weight = weight_of(plan, chain.shaped, node)
            assert weight is not None
            assert weight.qparams is not None
            np.testing.assert_array_equal(decision.qparams.scale, scales[node] * weight.qparams.scale)
            array = plan.weights.get(decision.tensor)
            if array is not None:
                assert np.abs(array.astype(np.float64) / decision.qparams.scale).max() < 2**31


def test_a_range_stays_within_the_clip_that_it_replaces() -> None:
    plan = plain().plan
    low, high = next(d.qparams for d in plan if d.tensor == "dr" and d.qparams).real_range
    assert low >= 0
    assert high <= 6 * (1 + 1e-6)
    shared = {d.tensor: float(d.qparams.scale) for d in plan if d.role == "activation" and d.qparams}
    assert shared["m"] == shared["s"]


def test_the_same_input_gives_the_same_plan() -> None:
    chain = network()
    one, other = plain(), refined(chain)
    assert identical(one.plan, other.plan)
    assert one.trials == other.trials


def test_an_interrupted_run_goes_on_to_the_same_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = network()
    whole = plain()
    count = len(find_blocks(chain.shaped, [n.name for n in chain.shaped.graph if n.op_type in ("Conv", "Gemm")]))
    assert count >= 3
    improved = []
    original = sweep._Walk._improve

    def interrupted(self: sweep._Walk, judge: sweep.Judge, block: sweep.Block) -> None:
        improved.append(block.name)
        if len(improved) == 2:
            raise KeyboardInterrupt
        original(self, judge, block)

    monkeypatch.setattr(sweep._Walk, "_improve", interrupted)
    with pytest.raises(KeyboardInterrupt):
        refined(chain, cache=tmp_path)
    resumed = refined(chain, cache=tmp_path)
    assert improved.count(improved[0]) == 1  # the first block was not done twice
    assert identical(resumed.plan, whole.plan)
    assert resumed.trials == whole.trials


def test_a_damaged_or_foreign_checkpoint_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chain = network()
    whole = refined(chain, cache=tmp_path)
    files = sorted(tmp_path.rglob("*.npz"))
    assert files
    data = bytearray(files[0].read_bytes())
    data[-1] ^= 1
    files[0].write_bytes(bytes(data))
    again = refined(chain, cache=tmp_path)
    assert "damaged" in caplog.text
    assert identical(again.plan, whole.plan)
    other = replace(chain, feed=chain.feed[:-1])
    refined(other, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # other samples, another folder


def test_a_plan_that_makes_the_model_worse_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that all report success, and a model that is worse: the plan that came is given back."""
    chain = network()
    monkeypatch.setattr(sweep._Walk, "_whole_error", lambda self, plan: 1.0 if plan is chain.plan else 2.0)
    found = refined(chain)
    assert identical(found.plan, chain.plan)
    assert "undone" in found.plan.notes[-1]
    assert not found.trials[-1].kept


def test_what_is_best_on_the_way_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is worse in the end, and better after the first block: that block stays refined."""
    chain = network()
    steps = plain().trials
    first = steps[0].block

    def error(self: sweep._Walk, plan: QuantPlan) -> float:
        return 1.0 if plan is chain.plan else 0.5 if plan is self.stages[0][1] else 2.0

    monkeypatch.setattr(sweep._Walk, "_whole_error", error)
    found = refined(chain)
    assert found.trials[-1].kept
    assert f"up to the block {first}" in found.plan.notes[-1]
    last = {d.tensor: d for d in chain.plan}
    assert all(d.qparams is last[d.tensor].qparams for d in found.plan if d.tensor in ("w6", "y"))
    assert not identical(found.plan, chain.plan)


def test_nothing_is_done_at_effort_0_or_with_too_few_samples() -> None:
    chain = network()
    assert refined(chain, effort=0).plan is chain.plan
    few = refined(replace(chain, feed=chain.feed[:7]))
    assert identical(few.plan, chain.plan)
    assert "too few" in few.plan.notes[-1]
    assert not few.trials


def test_samples_beyond_the_limit_of_memory_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = network()
    whole = plain()
    monkeypatch.setattr(sweep, "_MEMORY", 10_000)
    assert identical(refined(chain).plan, whole.plan)
