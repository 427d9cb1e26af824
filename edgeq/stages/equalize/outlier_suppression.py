"""Outlier Suppression+: centre each channel, and scale down those that still stick out.

    x' = (x - d) / s,    d_j = (max_j + min_j) / 2,    s_j = max(1, max|x_j - d_j| / t)

Wei et al. 2023, arXiv 2304.09145, sections 4.1 and 4.2; the threshold ``t`` is searched, and large enough a ``t``
 leaves the scale alone. The shift goes into the bias of a LayerNormalization and into
those of the products behind it.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from edgeq.qtypes import Scheme, TensorStats
from edgeq.stages.equalize.alternative import Alternative
from edgeq.stages.equalize.groups import LinearGroup, change_channels, group_rows, product_error

__all__ = ["suppressions"]

THRESHOLDS = (0.8, 0.6, 0.45, 0.35, 0.25, 0.18, 0.12)
"""``t`` as a share of the largest amplitude of all channels; at 1 the channels would be shifted only."""


def suppressions(
    model: ir.Model, group: LinearGroup, seen: TensorStats, x: np.ndarray, scheme: Scheme
) -> list[Alternative]:
    """The shift alone, and with the threshold of the least error of the products on ``x`` ``[R, K]``.

    There is nothing for products that take no shift, having no constant bias.
    """
    if not group.shiftable or seen.channel_lo is None or seen.channel_hi is None:
        return []
    rows, shift = group_rows(model, group), (seen.channel_hi + seen.channel_lo) / 2
    amplitude = (seen.channel_hi - seen.channel_lo) / 2
    if not amplitude.max() > 0:
        return []
    scales = [(share, np.maximum(1.0, amplitude / (share * amplitude.max()))) for share in THRESHOLDS]
    share, best = min(scales, key=lambda pair: product_error(x, rows, scheme, pair[1], shift))
    found = []
    for words, scale in (("shift only", None), (f"threshold {share}", best)):
        added = 0 if group.norm is not None else 1 + (scale is not None)
        apply = partial(change_channels, group=group, scale=scale, shift=shift)
        method = f"Outlier Suppression+, {words}"
        found.append(Alternative(group.tensor, method, apply, added, structural=bool(added)))
    return found
