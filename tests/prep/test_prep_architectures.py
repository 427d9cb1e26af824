"""Small random models of common architectures, as torch exports them: outputs are proved, and nothing is left to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgeq.graph import name_nodes
from edgeq.stages.prep import PREP_PASSES, prepare

VIT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
IMAGES: dict[str, tuple[dict[str, Any], int]] = {
    "ViT": (VIT | {"image_size": 64, "patch_size": 16}, 62),
    "Swin": ({"image_size": 64, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}, 171),
    "MobileNetV2": ({"image_size": 64, "depth_multiplier": 0.5}, 100),
    "ResNet": ({"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2]}, 35),
    "ConvNext": ({"hidden_sizes": [16, 32], "depths": [2, 2], "num_stages": 2, "image_size": 64}, 44),
}
"""Configuration, and the number of nodes that the model has afterwards."""


def check(model: ir.Model, feeds: dict[str, np.ndarray], most: int, *, static: bool) -> None:
    name_nodes(model)
    result = prepare(model, static=static, example_inputs=feeds)
    assert len(result.model.graph) <= most
    assert not any(step(result.model).modified for step in PREP_PASSES)
    assert all(output.shape is not None and output.dtype for node in result.model.graph for output in node.outputs)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("optimize", [True, False], ids=["optimized", "raw"])
@pytest.mark.parametrize("name", IMAGES)
def test_image_models(name, optimize):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config, most = IMAGES[name]
    torch.manual_seed(0)
    inner = getattr(transformers, f"{name}ForImageClassification")(getattr(transformers, f"{name}Config")(**config))
    for module in inner.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, pixel_values):
            return self.inner(pixel_values=pixel_values, return_dict=False)[0]

    image = torch.randn(1, 3, 64, 64)
    program = torch.onnx.export(
        Classifier().eval(), (image,), dynamo=True, opset_version=21, optimize=optimize, verbose=False
    )
    feeds = {program.model.graph.inputs[0].name: image.numpy()}
    check(program.model, feeds, most, static=True)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize(("static", "most"), [(True, 65), (False, 80)], ids=["static", "dynamic"])
def test_distilbert(static, most):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.DistilBertConfig(vocab_size=100, dim=64, hidden_dim=128, n_layers=2, n_heads=4)
    inner = transformers.DistilBertModel(config)

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, input_ids, attention_mask):
            return self.inner(input_ids=input_ids, attention_mask=attention_mask, return_dict=False)[0]

    ids = torch.randint(0, 100, (2, 12))
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=512)}
    program = torch.onnx.export(
        Encoder().eval(), (ids, mask), dynamo=True, opset_version=21, dynamic_shapes=(dims, dims), verbose=False
    )
    feeds = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    check(program.model, feeds, most, static=static)
