"""ONNX graphs in torch, for what needs gradients: run between any tensors, fake-quantize, score sensitivity.

The whole folder imports torch; the rest of edgeq imports it lazily.
"""

from __future__ import annotations

from edgeq.torch_graph.fake_quant import LearnedScale, expand, fake_quantize
from edgeq.torch_graph.graph import TorchGraph, unsupported
from edgeq.torch_graph.taylor import Likelihood, Perturbation, taylor_scores

__all__ = [
    "LearnedScale",
    "Likelihood",
    "Perturbation",
    "TorchGraph",
    "expand",
    "fake_quantize",
    "taylor_scores",
    "unsupported",
]
