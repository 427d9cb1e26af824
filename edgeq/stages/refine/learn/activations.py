"""Fake-quantized activations with learned scales (LSQ) that are dropped at random (QDrop).

Esser et al. 2020, "Learned Step Size Quantization", arXiv 1902.08153; Wei et al. 2022, "QDrop: Randomly Dropping
Quantization for Extremely Low-bit Post-Training Quantization", arXiv 2203.05740.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from edgeq.affine import SCALE_FLOOR
from edgeq.graph import constant_array
from edgeq.qtypes import Decision, QParams
from edgeq.torch_graph import fake_quantize

__all__ = ["Grids", "clip_room", "mix"]


@dataclass(frozen=True)
class _Read:
    """Where a tensor is read: its parameters at the start, and the group whose scale moves with it."""

    qparams: QParams
    group: str | None
    first: torch.Tensor
    zero: torch.Tensor


class Grids(nn.Module):
    """The hook that fake-quantizes what is read, and drops quantization element by element.

    A scale is ``first exp(p)``, and ``p`` is learned, one for all tensors of a group. The logarithm makes a learning
    rate mean the same for every tensor: the relative change of the scale in one step of Adam, which ignores the size
    of gradients (so LSQ's factor 1 / sqrt(N Q_P) has no use here). Zero points stay, as one at the end of the levels
    makes a Relu of the grid.

    Args:
        reads: name of a tensor in the tapped graph -> the decision about what is read there.
        groups: the same names -> the group whose scale it shares; a name that is missing keeps its scale.
        room: the same names -> by how much the scale may grow at most; a name that is missing may grow freely.
    """

    def __init__(
        self,
        reads: Mapping[str, Decision],
        groups: Mapping[str, str],
        room: Mapping[str, float],
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        members = sorted(set(groups.values()))
        self._places = {group: place for place, group in enumerate(members)}
        self.logs = nn.ParameterList([nn.Parameter(torch.zeros((), device=device)) for _ in members])
        self._least = {
            group: min((room.get(name, np.inf) for name, other in groups.items() if other == group), default=np.inf)
            for group in members
        }
        self._reads: dict[str, _Read] = {}
        for name, decision in reads.items():
            assert decision.qparams is not None
            group = groups.get(name)
            first = torch.from_numpy(np.array(decision.qparams.scale)).to(device)
            zero = torch.from_numpy(np.array(decision.qparams.zero_point, dtype=np.float32)).to(device)
            self._reads[name] = _Read(decision.qparams, group, first, zero)
        self.drop = 0.0
        self.generator: torch.Generator | None = None

    def forward(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """``(tensor name, tensor)`` -> what its readers get."""
        read = self._reads.get(name)
        if read is None:
            return x
        spec = read.qparams.spec
        quantized = fake_quantize(x, self._scale(read), read.zero, spec.qmin, spec.qmax, spec.granularity)
        return mix(quantized, x, self.drop, self.generator)

    def _scale(self, read: _Read) -> torch.Tensor:
        if read.group is None:
            return read.first
        factor = torch.exp(self.logs[self._places[read.group]])
        return torch.clamp(read.first * factor, min=float(SCALE_FLOOR))

    @torch.no_grad()
    def project(self) -> None:
        """Back to where scales may be, after a step of the optimizer."""
        for group, place in self._places.items():
            self.logs[place].clamp_(max=math.log(self._least[group]))

    @torch.no_grad()
    def qparams(self, name: str) -> QParams:
        """Scale and zero point as they are now; the very same object where the scale is not learned."""
        read = self._reads[name]
        if read.group is None:
            return read.qparams
        scale = np.array(self._scale(read).cpu().numpy(), dtype=np.float32).reshape(read.qparams.scale.shape)
        return QParams(scale, read.qparams.zero_point, read.qparams.spec)


def mix(quantized: torch.Tensor, x: torch.Tensor, drop: float, generator: torch.Generator | None) -> torch.Tensor:
    """Each element stays as it was with probability ``drop``, else it is quantized (QDrop, equation 9)."""
    if not drop:
        return quantized
    kept = torch.rand(x.shape, generator=generator, device=x.device) < drop
    return torch.where(kept, x, quantized)


def clip_room(value: ir.Value, qparams: QParams) -> float:
    """By how much a scale may grow so that the integers' ends still do the work of the Clip in front of ``value``.

    Infinite where there is no Clip, or where the integers reach beyond it already.
    """
    producer = value.producer()
    if producer is None or producer.op_type != "Clip" or qparams.scale.ndim:
        return float("inf")
    bounds = [constant_array(bound) for bound in (*producer.inputs[1:], None, None)[:2]]
    zero, scale, room = int(qparams.zero_point), float(qparams.scale), float("inf")
    for bound, end in zip(bounds, (qparams.spec.qmin - zero, qparams.spec.qmax - zero), strict=True):
        if bound is None or not end:
            continue
        most = float(bound) / end  # a scale beyond it puts the end of the levels outside of the bound
        if most < scale * (1 - 1e-6):
            return float("inf")
        room = min(room, max(1.0, float(np.nextafter(np.float32(most), np.float32(0))) / scale))
    return room
