"""From a case to the model that edgeq makes of it, through its own stages, and what that model should compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgeq.checks.cases import Case
from edgeq.graph import input_infos, name_nodes
from edgeq.qtypes import QuantPlan, Scheme
from edgeq.runtime import run_model
from edgeq.stages.calibrate import calibrate, load_feed
from edgeq.stages.calibrate.peaks import observe_peaks
from edgeq.stages.choose import choose_plan, find_islands, find_layout, forecast_floats
from edgeq.stages.insert import insert_qdq, verify_qdq
from edgeq.stages.tune import finish, shape_float
from edgeq.target import TargetProfile

__all__ = ["Emitted", "emit", "left_float"]


@dataclass(frozen=True)
class Emitted:
    """What edgeq makes of a case; ``expected`` is what the specification gives, ``exact`` what the float model does."""

    case: Case
    model: ir.Model
    plan: QuantPlan | None
    feeds: tuple[dict[str, np.ndarray], ...]
    expected: tuple[dict[str, np.ndarray], ...]
    exact: tuple[dict[str, np.ndarray], ...]


def emit(case: Case) -> Emitted:
    """The model that edgeq makes for a case, with the outputs that it should have.

    Raises:
        EdgeqError: a stage refuses the case.
    """
    model = case.model()
    name_nodes(model)
    feeds = tuple(case.feeds(model))
    plan, tuned = _quantize(model, feeds, case.profile, case.scheme)
    exact = tuple(run_model(model, feed) for feed in feeds)
    expected = tuple(run_model(tuned, feed) for feed in feeds)
    return Emitted(case, tuned, plan, feeds, expected, exact)


def _quantize(
    model: ir.Model, feeds: Sequence[Mapping[str, np.ndarray]], profile: TargetProfile, scheme: Scheme | None
) -> tuple[QuantPlan | None, ir.Model]:
    """The stages between a prepared float model and the finished one, as ``Job`` runs them."""
    if scheme is None:
        return None, model
    shaped = shape_float(model, profile, scheme)
    layout = find_layout(shaped, profile, scheme)
    stats = {}
    if layout.observed:
        data = load_feed(list(feeds), input_infos(model))
        stats = calibrate(shaped, data, layout.observed, channel_axis=layout.channel_axes(shaped))
    plan = choose_plan(shaped, layout, stats, profile)
    if profile.floats.type == "float16":
        islands = find_islands(shaped, observe_peaks(shaped, feeds), profile)
        plan = replace(plan, islands=islands, nodes=forecast_floats(plan.nodes, islands))
    tuned = finish(insert_qdq(shaped, plan), profile, scheme, plan.islands)
    verify_qdq(tuned)
    return plan, tuned


def left_float(emitted: Emitted) -> str | None:
    """Why the operator in question is not quantized as its capability promises; None if it is."""
    case, plan = emitted.case, emitted.plan
    if plan is None or case.kind in ("block", "float"):
        return None
    # A stage may have made several of one operator (MatMul "y" and Add "y_bias" of a Gemm, say).
    found = [forecast for name, forecast in plan.nodes.items() if name == "y" or name.startswith("y_")]
    if any(forecast.kind in ("integer", "moves data") for forecast in found):
        return None
    return f"edgeq leaves it float: {next((forecast.why for forecast in found), 'it was removed')}"
