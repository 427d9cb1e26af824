"""aimet-onnx with Qualcomm's rules for HTP v79 (fuses Conv and Clip, but not depthwise), int8 or int4 weights."""

from __future__ import annotations

import aimet_onnx
import onnx
from aimet_onnx.cross_layer_equalization import equalize_model
from common import Task, main

ADAROUND_ITERATIONS = 10_000
"""Its default, and its documentation's advice."""


def run(task: Task, scheme: str, *, equalize: bool = False, method: str = "", fuse: bool = False) -> None:
    """Per channel for Conv by its own rules, for Gemm and MatMul as well by the file of rules named below.

    ``fuse`` switches off what its code leaves on under every file of rules: the quantizers between a depthwise Conv
    and its Clip.
    """
    from pathlib import Path

    rules = Path(aimet_onnx.__file__).parent / "common/quantsim_config/htp_quantsim_config_v79_per_channel_linear.json"
    model = onnx.load(task.model)
    if equalize:
        equalize_model(model)
    sim = aimet_onnx.QuantizationSimModel(
        model,
        param_type=f"int{task.weight_bits}",
        activation_type=f"int{task.activation_bits}",
        quant_scheme=scheme,
        config_file=str(rules),
    )
    clipped = {node.input[0] for node in model.graph.node if node.op_type == "Clip"} if fuse else set()
    for name in clipped & set(sim.qc_quantize_op_dict):
        sim.qc_quantize_op_dict[name].enabled = False
    feeds = task.feeds()
    if method == "adaround":
        aimet_onnx.apply_adaround(sim, feeds, ADAROUND_ITERATIONS)
    if method == "seqmse":
        aimet_onnx.apply_seq_mse(sim, feeds[:32])
    sim.compute_encodings(feeds)
    onnx.save(sim.to_onnx_qdq(prequantize_constants=True), task.output)


main(
    {
        "minmax": lambda task: run(task, "min_max"),
        "fused": lambda task: run(task, "min_max", fuse=True),
        "tfe": lambda task: run(task, "tf_enhanced"),
        "cle-tfe": lambda task: run(task, "tf_enhanced", equalize=True),
        "adaround": lambda task: run(task, "tf_enhanced", method="adaround"),
        "seqmse": lambda task: run(task, "min_max", method="seqmse"),
    }
)
