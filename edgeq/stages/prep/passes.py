"""The preparation passes in their order: one visible list.

The list runs again and again until a whole round changes nothing: folding a shape makes a Reshape
constant, which makes the next shape known.
"""

from __future__ import annotations

from edgeq.stages.prep.clear_metadata import ClearMetadata
from edgeq.stages.prep.fix_reshapes import FixReshapes
from edgeq.stages.prep.fold_affine import FoldAffine
from edgeq.stages.prep.fold_batch_norm import FoldBatchNorm
from edgeq.stages.prep.fold_constants import FoldConstants
from edgeq.stages.prep.fold_pads import FoldPads
from edgeq.stages.prep.fold_shapes import FoldShapes
from edgeq.stages.prep.global_average_pool import UseGlobalAveragePool
from edgeq.stages.prep.infer_shapes import InferShapes
from edgeq.stages.prep.inline_functions import InlineFunctions
from edgeq.stages.prep.lift_constants import LiftConstants
from edgeq.stages.prep.merge_clips import MergeClips
from edgeq.stages.prep.merge_duplicates import MergeDuplicates
from edgeq.stages.prep.merge_slices import MergeSlices
from edgeq.stages.prep.merge_views import MergeViews
from edgeq.stages.prep.remove_no_ops import RemoveNoOps
from edgeq.stages.prep.remove_unused import RemoveUnused
from edgeq.stages.prep.resolve_casts import ResolveCasts
from edgeq.stages.prep.rewrite import PrepPass
from edgeq.stages.prep.transpose_weights import TransposeWeights
from edgeq.stages.prep.use_hard_sigmoid import UseHardSigmoid

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
    UseHardSigmoid(),
    FoldAffine(),
    TransposeWeights(),
    UseGlobalAveragePool(),
)
