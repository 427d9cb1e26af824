"""Trials on a cluster that the user has named to joblib give what they give here."""

from __future__ import annotations

import joblib
import pytest
from refine_cases import identical, network, plain, refined

from edgeq.parallel import cluster_named, map_trials
from edgeq.stages.refine import judge


def square(x: int) -> int:
    return x * x


def test_trials_come_in_order() -> None:
    with joblib.parallel_config("threading"):
        assert map_trials(square, range(20)) == [x * x for x in range(20)]
    assert map_trials(square, []) == []


def test_joblibs_own_backends_are_no_cluster() -> None:
    assert not cluster_named()
    for backend in ("loky", "threading"):
        with joblib.parallel_config(backend):
            assert not cluster_named()


def test_trials_that_are_handed_out_give_the_same_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """The form in which trials travel, without a cluster: the graph as bytes, and arrays."""
    handed = []

    def run(function, trials, **options):  # type: ignore[no-untyped-def]
        handed.extend(trials)
        return [function(trial) for trial in trials]

    monkeypatch.setattr(judge, "cluster_named", lambda: True)
    monkeypatch.setattr(judge, "map_trials", run)
    found = refined(network())
    assert len(handed) > 20
    assert identical(found.plan, plain().plan)
    assert found.trials == plain().trials


@pytest.mark.slow
def test_a_dask_cluster_gives_the_same_plan() -> None:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config("dask"),
    ):
        assert cluster_named()
        assert map_trials(square, range(20)) == [x * x for x in range(20)]
        found = refined(network())
    assert identical(found.plan, plain().plan)
    assert found.trials == plain().trials
