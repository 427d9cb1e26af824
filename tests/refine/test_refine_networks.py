"""Whole networks: what refining a real one brings on samples that it never saw."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgeq.metrics import sqnr_db
from edgeq.pipeline import Job
from edgeq.qtypes import QuantPlan, Scheme
from edgeq.request import Data
from edgeq.runtime import open_session, session_options
from edgeq.stages.insert import insert_qdq
from edgeq.stages.refine import refine


@pytest.mark.slow
def test_efficientnet_lite0_comes_closer_to_float() -> None:
    job = Job("example:efficientnet-lite0", "linux-x64", data=Data(count=50), effort=0)
    model, plan = job.plan(Scheme.parse("w8a8"))
    fitted, unseen = job.feeds
    assert fitted is not None
    assert unseen is not None
    found = refine(model, plan, [dict(s) for s in fitted][:32], target=job.target, insert=insert_qdq)
    samples = [dict(sample) for sample in unseen]

    def outputs(graph: ir.Model) -> np.ndarray:
        with open_session(graph, session_options(optimization="none")) as session:
            name = session.get_outputs()[0].name
            return np.concatenate([session.run([name], sample)[0] for sample in samples])

    def quality(chosen: QuantPlan) -> float:
        return sqnr_db(outputs(model), outputs(insert_qdq(model, chosen)))

    assert quality(found.plan) > quality(plan) + 1.0
    assert found.trials[-1].kept
