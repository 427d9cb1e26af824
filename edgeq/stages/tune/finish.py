"""Stamp the quantized graph with the opset, IR version and Q/DQ domain that its types and the target need."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from edgeq.graph import feeds_relu, fingerprint
from edgeq.qtypes import Scheme
from edgeq.stages.tune.drop_absorbed import drop_absorbed
from edgeq.stages.tune.half import to_float16
from edgeq.stages.tune.nbits import use_nbits
from edgeq.stages.tune.opset import ir_version_of, least_opset, opset_of_types
from edgeq.stages.tune.residuals import part_residuals
from edgeq.stages.tune.store_floats import store_floats
from edgeq.target import CPU_PROVIDER, TargetProfile

__all__ = ["finish", "stamp"]

_FUSED_LEVEL = 4
"""What ONNX Runtime gives the MatMulNBits that it makes itself: activations are rounded to 8 bits."""


def finish(
    model: ir.Model, target: TargetProfile, scheme: Scheme, islands: Mapping[str, str] | None = None
) -> ir.Model:
    """Set opset, IR version and domains in place, and return ``model``.

    The opset is the target's, unless integer types or operators need a newer one (see ``opset_note``).
    In the domain ``com.microsoft`` DequantizeLinear takes no blocks (measured, ONNX Runtime 1.32):
    those stay standard. Residual sums are kept apart from the normalization behind them where the target
    wants that. A Relu or Clip that the integers' ends replace is left out where the provider
    does not do so. Weight-only layers become ONNX Runtime's own operators where the target wants them,
    and floats become float16, but for the nodes that ``islands`` names. Weights of float kernels are stored in 16
    bits where the target computes them while loading.
    """
    beside = target.weights.beside_integers == "matmulnbits" and _reads_integers(model)
    if target.weights.form == "matmulnbits" or beside:
        use_nbits(model, target.weights.accuracy_level)
    elif target.provider.name == CPU_PROVIDER:
        use_nbits(model, _FUSED_LEVEL, wanted=feeds_relu)
    least = max(least_opset(target, scheme), opset_of_types(model, target))
    opset = max(target.graph.opset, least, model.opset_imports.get("", 0))
    model.opset_imports[""] = opset
    model.ir_version = max(target.graph.ir_version, ir_version_of(opset))
    if target.activations.absorption == "none":
        drop_absorbed(model)
    if target.graph.qdq_domain != "ai.onnx":
        for node in model.graph:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear") and "block_size" not in node.attributes:
                node.domain = target.graph.qdq_domain
                model.opset_imports[node.domain] = 1
    if target.graph.residuals == "sum":
        part_residuals(model)
    if target.floats.type == "float16":
        to_float16(model, islands or {})
    if target.floats.stored == "int16":
        store_floats(model)
    stamp(model, target)
    model.producer_name, model.producer_version = "edgeq", None
    return model


def stamp(model: ir.Model, target: TargetProfile) -> None:
    """Write the fingerprint of the content where the target's provider looks for it, if it does."""
    if target.graph.cache_key is not None:
        model.metadata_props[target.graph.cache_key] = fingerprint(model)


def _reads_integers(model: ir.Model) -> bool:
    """Whether activations are quantized: ONNX Runtime would then take weights in blocks for integer operands."""
    return any(node.op_type == "QuantizeLinear" for node in model.graph)
