"""Effort 2: a block learned by gradient is one more candidate, and is judged like all others."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from refine_cases import identical, network, plain, refined

from edgeq.affine import fake_quantize
from edgeq.stages.refine import sweep
from edgeq.stages.refine.layers import Candidate


def test_without_torch_the_plan_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else original(name))
    found = refined(network(), effort=2)
    assert "torch is not installed" in found.plan.notes[-1]
    assert identical(found.plan, plain().plan)


def test_a_block_that_torch_cannot_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "unsupported_nodes", lambda part: ["Conv 'a': not here"])
    found = refined(network(), effort=2)
    assert any("not learned by gradient: Conv 'a': not here" in note for note in found.plan.notes)
    assert identical(found.plan, plain().plan)


@pytest.mark.slow
def test_a_reconstruction_that_is_worse_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")

    def poisoned(model, plan, part, block, *rest, **options):  # type: ignore[no-untyped-def]
        return Candidate("reconstruction", network().plan)

    monkeypatch.setattr(sweep, "reconstructed", poisoned)
    found = refined(network(), effort=2)
    assert sum(trial.method.startswith("reconstruction") for trial in found.trials) >= 3
    assert all(t.after_db is None or t.before_db < t.after_db for t in found.trials if t.kept and t.before_db)


@pytest.mark.slow
def test_what_is_learned_comes_into_the_whole_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """From weights rounded to nearest, learning lowers errors; what it reports is what the graph then has."""
    learn = pytest.importorskip("edgeq.stages.refine.learn")
    chain = network(64, scheme="w4a8", target="android-npu")  # with fewer, blocks learn the samples by heart
    reported, measured = [], []
    original, choose = learn.reconstruct, sweep._Walk._choose

    def told(*given, **options):  # type: ignore[no-untyped-def]
        found = original(*given, **options)
        reported.append(found.loss_after)
        return found

    def judged(self, judge, name, tried, error):  # type: ignore[no-untyped-def]
        measured.extend(judge.errors([candidate.plan for candidate in tried], self.fit))
        return choose(self, judge, name, tried, error)

    monkeypatch.setattr(learn, "reconstruct", told)
    monkeypatch.setattr(sweep._Walk, "_choose", judged)
    monkeypatch.setattr(sweep._Walk, "_ranges", lambda self, judge, block, error: error)
    monkeypatch.setattr(sweep, "layer_candidates", lambda *given, **options: [])
    found = refined(chain, effort=2)
    np.testing.assert_allclose(measured, reported, rtol=0.05)
    assert any(trial.kept for trial in found.trials[:-1])
    assert found.trials[-1].kept
    for decision in found.plan:
        if decision.role == "weight" and decision.qparams is not None and decision.tensor in found.plan.weights:
            array = found.plan.weights[decision.tensor]
            np.testing.assert_allclose(fake_quantize(array, decision.qparams), array, rtol=1e-6)
