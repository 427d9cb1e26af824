"""Fake quantization: forward as edgeq.affine to the bit, backward as LSQ's equations say."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import weights

from edgeq import affine
from edgeq.qtypes import IntType, PerAxis, PerBlock, PerTensor, QParams, TensorSpec

torch = pytest.importorskip("torch")

from edgeq.torch_graph import LearnedScale, fake_quantize  # noqa: E402

pytestmark = pytest.mark.torch

X = weights(12, 10, 3, seed=5, scale=1.0)
SPECS = {
    "per tensor": TensorSpec(IntType(8, False), symmetric=False),
    "16 bits": TensorSpec(IntType(16, False), symmetric=False),
    "reduced": TensorSpec(IntType(8, True), symmetric=True, reduced=True),
    "per axis": TensorSpec(IntType(8, True), symmetric=True, granularity=PerAxis(1)),
    "4 bits per block": TensorSpec(IntType(4, True), symmetric=True, granularity=PerBlock(0, 5)),
    "unsigned per block": TensorSpec(IntType(4, False), symmetric=False, granularity=PerBlock(1, 4)),
}


def qparams_of(spec: TensorSpec, x: np.ndarray = X, part: float = 0.6) -> QParams:
    """Ranges that clip some of ``x``."""
    granularity = spec.granularity
    if isinstance(granularity, PerTensor):
        lo, hi = x.min(), x.max()
    elif isinstance(granularity, PerAxis):
        other = tuple(a for a in range(x.ndim) if a != granularity.axis)
        lo, hi = x.min(other), x.max(other)
    else:
        grouped = affine.blocks(x, granularity)
        lo, hi = grouped.min(-1), grouped.max(-1)
    return affine.range_to_qparams(lo * part, hi * part, spec)


def torched(qparams: QParams):
    zero = torch.from_numpy(qparams.zero_point.astype(np.float32))
    return torch.from_numpy(np.array(qparams.scale)), zero


@pytest.mark.parametrize("name", SPECS)
def test_forward_is_affine_to_the_bit(name) -> None:
    spec = SPECS[name]
    qparams = qparams_of(spec)
    # Ties too: odd multiples of half a step.
    ties = (np.arange(X.size, dtype=np.float32).reshape(X.shape) + np.float32(0.5)) * np.float32(
        1 if spec.qmax > 200 else 0.1
    )
    x = (np.trunc(ties) + np.float32(0.5)) * affine.expand(qparams.scale, spec, X.shape)
    for values in (X, x):
        scale, zero = torched(qparams)
        found = fake_quantize(torch.from_numpy(values), scale, zero, spec.qmin, spec.qmax, spec.granularity)
        np.testing.assert_array_equal(found.numpy(), affine.fake_quantize(values, qparams))
    learned = LearnedScale(qparams, batched=False)
    np.testing.assert_array_equal(learned(torch.from_numpy(X)).detach().numpy(), affine.fake_quantize(X, qparams))


@pytest.mark.parametrize("name", SPECS)
def test_backward_is_lsq(name) -> None:
    """Eq. 3 and 5 of LSQ and eq. 8 of LSQ+, element by element, summed over what shares a scale."""
    spec = SPECS[name]
    qparams = qparams_of(spec)
    scale, zero = torched(qparams)
    x = torch.from_numpy(X).requires_grad_()
    scale.requires_grad_()
    zero.requires_grad_()
    upstream = weights(*X.shape, seed=8)
    fake_quantize(x, scale, zero, spec.qmin, spec.qmax, spec.granularity).backward(torch.from_numpy(upstream))
    s = affine.expand(qparams.scale, spec, X.shape).astype(np.float64)
    z = affine.expand(qparams.zero_point.astype(np.float32), spec, X.shape).astype(np.float64)
    place = X / s
    inside = (place + z > spec.qmin) & (place + z < spec.qmax)
    assert 0.05 < 1 - inside.mean() < 0.8
    to_scale = np.where(inside, np.rint(place) - place, np.clip(np.rint(place) + z, spec.qmin, spec.qmax) - z)
    np.testing.assert_allclose(x.grad.numpy(), np.where(inside, upstream, 0), rtol=1e-5, atol=1e-7)
    for found, exact in ((scale.grad, to_scale * upstream), (zero.grad, np.where(inside, 0, -s) * upstream)):
        np.testing.assert_allclose(found.numpy(), reduced(exact, spec), rtol=1e-3, atol=1e-3)


def reduced(values: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """Sums over the elements that share a scale."""
    granularity = spec.granularity
    if isinstance(granularity, PerTensor):
        return values.sum()
    if isinstance(granularity, PerAxis):
        return values.sum(tuple(a for a in range(values.ndim) if a != granularity.axis))
    return affine.blocks(values, granularity).sum(-1)


def test_the_learned_scale_has_lsqs_factor() -> None:
    """1 / sqrt(N Q_P), N without the batch for activations (LSQ, section 2.2)."""
    for name, batched, count, positive in (
        ("per axis", False, X.size / 10, 127),
        ("per tensor", True, X.size / 12, None),
        ("4 bits per block", False, X.size / 90, 7),
    ):
        qparams = qparams_of(SPECS[name])
        spec, (scale, zero) = qparams.spec, torched(qparams)
        positive = positive or max(255 - int(qparams.zero_point), int(qparams.zero_point))
        scale.requires_grad_()
        upstream = torch.from_numpy(weights(*X.shape, seed=8))
        fake_quantize(torch.from_numpy(X), scale, zero, spec.qmin, spec.qmax, spec.granularity).backward(upstream)
        learned = LearnedScale(qparams, batched=batched)
        learned(torch.from_numpy(X)).backward(upstream)
        torch.testing.assert_close(learned.scale.grad, scale.grad / (count * positive) ** 0.5)


def test_learning_finds_a_better_scale() -> None:
    spec = TensorSpec(IntType(4, True), symmetric=True)
    qparams = qparams_of(spec, part=1.5)
    learned = LearnedScale(qparams, batched=False)
    x = torch.from_numpy(X)
    optimizer = torch.optim.Adam(learned.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        (learned(x) - x).square().sum().backward()
        optimizer.step()
    found = learned.qparams()
    error = [float(((affine.fake_quantize(X, q) - X) ** 2).mean()) for q in (qparams, found)]
    best = min(
        float(((affine.fake_quantize(X, qparams_of(spec, part=p)) - X) ** 2).mean()) for p in np.linspace(0.4, 1.5, 100)
    )
    assert error[1] < 0.7 * error[0]
    assert error[1] < 1.05 * best


def test_a_scale_that_falls_below_zero_is_floored() -> None:
    learned = LearnedScale(qparams_of(SPECS["per tensor"]), batched=False)
    with torch.no_grad():
        learned.scale.fill_(-1.0)
    assert learned.qparams().scale == affine.SCALE_FLOOR
    assert torch.isfinite(learned(torch.from_numpy(X))).all()


def test_samples_may_be_stacked() -> None:
    qparams = qparams_of(SPECS["per axis"])
    scale, zero = torched(qparams)
    spec = qparams.spec
    x = torch.from_numpy(np.stack([X, 2 * X])).requires_grad_()
    stacked = torch.vmap(lambda one: fake_quantize(one, scale, zero, spec.qmin, spec.qmax, spec.granularity))(x)
    for one, result in zip((X, 2 * X), stacked, strict=True):
        np.testing.assert_array_equal(result.detach().numpy(), affine.fake_quantize(one, qparams))
    stacked.sum().backward()
    assert x.grad.shape == x.shape
