"""Closed-form rounding of constant weights: second moments of a layer's inputs, and what follows from them.

``observe`` gathers ``Moments`` sample by sample, ``refusal`` says which layers have none, and ``round_layer``
returns a weight on the grid. The algorithms behind it, GPTQ, COMQ and the search of scales, all minimize one
``Quadratic``.
"""

from edgeq.stages.refine.rounding.comq import comq
from edgeq.stages.refine.rounding.gptq import gptq
from edgeq.stages.refine.rounding.layer import Rounded, round_layer
from edgeq.stages.refine.rounding.moments import Moments, observe, refusal, restore_weight, weight_matrix
from edgeq.stages.refine.rounding.quadratic import Quadratic, bias_shift, quadratic
from edgeq.stages.refine.rounding.sequential_mse import sequential_mse

__all__ = [
    "Moments",
    "Quadratic",
    "Rounded",
    "bias_shift",
    "comq",
    "gptq",
    "observe",
    "quadratic",
    "refusal",
    "restore_weight",
    "round_layer",
    "sequential_mse",
    "weight_matrix",
]
