"""Rewrite the float graph so that it computes the same and quantizes better.

Each method proposes rewrites (``Alternative``); which of them are kept is decided by whoever measures them,
but for ``smooth``, which decides by predicted error.
"""

from edgeq.stages.equalize.absorb_bias import absorption
from edgeq.stages.equalize.alternative import Alternative
from edgeq.stages.equalize.cross_layer import cross_layer
from edgeq.stages.equalize.groups import LinearGroup, find_groups
from edgeq.stages.equalize.layer_norm import reparametrization
from edgeq.stages.equalize.outlier_suppression import suppressions
from edgeq.stages.equalize.pairs import Pair, chains, find_pairs
from edgeq.stages.equalize.smooth import Smoothing, has_channels, smooth, smoothings

__all__ = [
    "Alternative",
    "LinearGroup",
    "Pair",
    "Smoothing",
    "absorption",
    "chains",
    "cross_layer",
    "find_groups",
    "find_pairs",
    "has_channels",
    "reparametrization",
    "smooth",
    "smoothings",
    "suppressions",
]
