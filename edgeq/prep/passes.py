"""The preparation passes in their order: one visible list.

The list runs again and again until a whole round changes nothing: folding a shape makes a Reshape
constant, which makes the next shape known.
"""

from __future__ import annotations

from edgeq.prep.clear_metadata import ClearMetadata
from edgeq.prep.fix_reshapes import FixReshapes
from edgeq.prep.fold_affine import FoldAffine
from edgeq.prep.fold_batch_norm import FoldBatchNorm
from edgeq.prep.fold_constants import FoldConstants
from edgeq.prep.fold_pads import FoldPads
from edgeq.prep.fold_shapes import FoldShapes
from edgeq.prep.global_average_pool import UseGlobalAveragePool
from edgeq.prep.infer_shapes import InferShapes
from edgeq.prep.inline_functions import InlineFunctions
from edgeq.prep.lift_constants import LiftConstants
from edgeq.prep.merge_clips import MergeClips
from edgeq.prep.merge_duplicates import MergeDuplicates
from edgeq.prep.merge_slices import MergeSlices
from edgeq.prep.merge_views import MergeViews
from edgeq.prep.remove_no_ops import RemoveNoOps
from edgeq.prep.remove_unused import RemoveUnused
from edgeq.prep.resolve_casts import ResolveCasts
from edgeq.prep.rewrite import PrepPass
from edgeq.prep.transpose_weights import TransposeWeights

__all__ = ["PREP_PASSES"]

PREP_PASSES: tuple[PrepPass, ...] = (
    InlineFunctions(),
    ClearMetadata(),
    LiftConstants(),
    RemoveUnused(),
    InferShapes(),
    ResolveCasts(),
    FoldShapes(),
    FoldConstants(),
    FixReshapes(),
    RemoveNoOps(),
    MergeDuplicates(),
    MergeViews(),
    MergeSlices(),
    MergeClips(),
    FoldPads(),
    FoldBatchNorm(),
    FoldAffine(),
    TransposeWeights(),
    UseGlobalAveragePool(),
)
