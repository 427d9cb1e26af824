"""RepQ-ViT: quantize what a LayerNormalization gives by channel, and write that so that one scale is enough.

    r1 = s / mean(s),    r2 = z - mean(z),    x' = (x + s r2) / r1

Li et al. 2022, arXiv 2212.08254, section 3.2: with the scale ``s_j`` and zero point ``z_j`` that each
channel would have for itself, ``x'`` has one grid for all channels. The LayerNormalization's scale and bias and
the products behind it take the change, so nothing is added at run time; all its readers must be such products.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from edgeq.qtypes import TensorStats
from edgeq.stages.equalize.alternative import Alternative
from edgeq.stages.equalize.groups import LinearGroup, change_channels

__all__ = ["reparametrization"]


def reparametrization(group: LinearGroup, seen: TensorStats, bits: int) -> Alternative | None:
    """The rewrite for activations of ``bits``; None where something else than the products reads the tensor."""
    if group.norm is None or not group.shiftable or seen.channel_lo is None or seen.channel_hi is None:
        return None
    low, high = np.minimum(seen.channel_lo, 0.0), np.maximum(seen.channel_hi, 0.0)
    scale = np.maximum((high - low) / (2**bits - 1), 1e-8)
    zero = -low / scale
    factor, distance = scale / scale.mean(), zero - zero.mean()
    apply = partial(change_channels, group=group, scale=factor, shift=-scale * distance)
    return Alternative(group.tensor, "RepQ-ViT reparametrization", apply)
