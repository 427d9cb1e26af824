"""Outlier Suppression+: centre each channel, and scale down those that still stick out.

    x' = (x - d) / s,    d_j = (max_j + min_j) / 2,    s_j = max(1, max|x_j - d_j| / t)

Wei et al. 2023, arXiv 2304.09145, sections 4.1 and 4.2; the threshold ``t`` is searched, and large enough a ``t``
 leaves the scale alone. The shift goes into the bias of a LayerNormalization and into
those of the products behind it.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from edgeq.qtypes import TensorStats
from edgeq.stages.equalize.alternative import Alternative
from edgeq.stages.equalize.groups import LinearGroup, change_channels

__all__ = ["suppressions"]

THRESHOLDS = (1.0, 0.6, 0.4, 0.25, 0.15)
"""``t`` as a share of the largest amplitude of all channels; at 1 the channels are shifted only."""


def suppressions(group: LinearGroup, seen: TensorStats) -> list[Alternative]:
    """One rewrite for each threshold; none for products without biases of their own."""
    if not group.shiftable or seen.channel_lo is None or seen.channel_hi is None:
        return []
    shift = (seen.channel_hi + seen.channel_lo) / 2
    amplitude = (seen.channel_hi - seen.channel_lo) / 2
    found = []
    for share in THRESHOLDS:
        threshold = share * amplitude.max()
        if not threshold > 0:
            continue
        scale = np.maximum(1.0, amplitude / threshold) if share < 1 else None
        words = f"threshold {share}" if share < 1 else "shift only"
        added = 0 if group.norm is not None else 1 + (scale is not None)
        apply = partial(change_channels, group=group, scale=scale, shift=shift)
        found.append(Alternative(group.tensor, f"Outlier Suppression+, {words}", apply, added, structural=bool(added)))
    return found
