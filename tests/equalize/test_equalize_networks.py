"""Every rewrite of real networks keeps what they compute."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx_ir as ir
import pytest

from edgeq.graph import input_infos
from edgeq.pipeline import Job
from edgeq.qtypes import Scheme, TensorStats
from edgeq.runtime import run_model
from edgeq.stages.calibrate import calibrate, load_feed
from edgeq.stages.choose import find_layout
from edgeq.stages.equalize import (
    absorption,
    chains,
    cross_layer,
    find_groups,
    find_pairs,
    reparametrization,
    smoothings,
    suppressions,
)
from edgeq.stages.tune import shape_float

pytestmark = pytest.mark.slow

SCHEME = Scheme.parse("w8a8")
Sample = dict[str, np.ndarray]


@cache
def prepared(name: str) -> tuple[ir.Model, dict[str, TensorStats], Sample, object]:
    """The network for linux-x64, statistics of all that may change by channel on two samples, and the first of them."""
    job = Job(f"example:{name}", "linux-x64")
    model = shape_float(job.prepared.model, job.target, SCHEME)
    layout = find_layout(model, job.target, SCHEME)
    given = job.source.example_inputs
    rng = np.random.default_rng(1)
    other = {key: rng.permutation(array.ravel()).reshape(array.shape) for key, array in given.items()}
    axes = {name: axis for pair in find_pairs(model, layout.integer) for name, axis in pair.axes.items()}
    values = {str(v.name): v for node in model.graph for v in (*node.inputs, *node.outputs) if v is not None}
    axes |= {group.tensor: len(values[group.tensor].shape) - 1 for group in find_groups(model, layout.integer)}
    stats = calibrate(model, load_feed([given, other], input_infos(model)), list(axes), channel_axis=axes)
    return model, stats, given, layout


def assert_same(before: ir.Model, after: ir.Model, sample: Sample) -> None:
    for name, reference in run_model(before, sample).items():
        got = run_model(after, sample)[name]
        np.testing.assert_allclose(got, reference, rtol=1e-4, atol=1e-4 * np.abs(reference).max())


@pytest.mark.parametrize("number", range(3))
def test_cross_layer_equalization_of_a_network_of_bounded_activations(number: int) -> None:
    """All chains at once, by weights and by activations, below the bounds of the Clips."""
    model, stats, sample, layout = prepared("efficientnet-lite0")
    after, done = model.clone(), 0
    for chain in chains(find_pairs(model, layout.integer)):
        found = [a for a in cross_layer(model, chain, stats) if not a.structural]
        if number < len(found):
            found[number].apply(after)
            done += 1
    assert done > 10
    assert_same(model, after, sample)


def test_absorbed_biases_of_a_network() -> None:
    model, stats, sample, layout = prepared("efficientnet-lite0")
    found = [absorption(model, pair, stats) for pair in find_pairs(model, layout.integer)]
    after = model.clone()
    for alternative in found:
        if alternative is not None:
            alternative.apply(after)
    assert any(alternative is not None for alternative in found)
    assert_same(model, after, sample)


@pytest.mark.parametrize("method", ["SmoothQuant", "shift only", "threshold"])
def test_groups_of_a_transformer(method: str) -> None:
    """All groups at once: norms are read by the residual branch, too, so nodes are put in front of the products."""
    model, stats, sample, layout = prepared("minilm")
    after, done = model.clone(), 0
    for group in find_groups(model, layout.integer):
        seen = stats[group.tensor]
        x = np.stack([seen.channel_lo, seen.channel_hi]).astype(np.float32)
        assert reparametrization(group, seen, 8) is None
        found = [*smoothings(model, group, seen, x, SCHEME), *suppressions(model, group, seen, x, SCHEME)]
        wanted = [alternative for alternative in found if method in alternative.method]
        if wanted:
            wanted[0].apply(after)
            done += 1
    assert done == 24
    assert_same(model, after, sample)
