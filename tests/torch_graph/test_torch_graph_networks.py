"""Whole networks against ONNX Runtime, as exported and after preparation, and their gradients against torch's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgeq.graph import name_nodes
from edgeq.runtime import run_model
from edgeq.stages.export import load_source
from edgeq.stages.prep import prepare

torch = pytest.importorskip("torch")

from edgeq.torch_graph import TorchGraph, unsupported  # noqa: E402

pytestmark = pytest.mark.torch

VIT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
PATCHES = VIT | {"image_size": 64, "patch_size": 16}
IMAGES: dict[str, dict[str, Any]] = {
    "ViT": PATCHES,
    "DeiT": PATCHES,
    "Swin": {"image_size": 64, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
    "MobileNetV1": {"image_size": 64, "depth_multiplier": 0.5},
    "MobileNetV2": {"image_size": 64, "depth_multiplier": 0.5},
    "MobileViT": {
        "image_size": 64, "hidden_sizes": [32, 48, 64], "neck_hidden_sizes": [8, 8, 16, 24, 32, 40, 80],
        "num_attention_heads": 2,
    },
    "ResNet": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2]},
    "RegNet": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2], "groups_width": 8},
    "ConvNext": {"hidden_sizes": [16, 32], "depths": [2, 2], "num_stages": 2, "image_size": 64},
    "EfficientNet": {"image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.4, "hidden_dim": 320},
    "SegformerSmall": {
        "hidden_sizes": [8, 16, 32, 64], "num_attention_heads": [1, 2, 4, 8], "depths": [1, 1, 1, 1],
        "decoder_hidden_size": 32, "num_labels": 5,
    },
}  # fmt: skip
TEXTS: dict[str, dict[str, Any]] = {
    "Bert": VIT,
    "DistilBert": {"dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 4},
    "Roberta": VIT | {"max_position_embeddings": 40},
    "Electra": VIT | {"embedding_size": 32},
    "Deberta": VIT | {"relative_attention": True, "pos_att_type": "c2p|p2c", "max_relative_positions": 16},
}
TOLERANCE = 1e-5
"""Of the largest element of each output."""


def relative_error(model: ir.Model, feeds: dict[str, np.ndarray]) -> float:
    assert unsupported(model) == []
    expected = run_model(model, feeds)
    with torch.no_grad():
        found = TorchGraph(model)({name: torch.from_numpy(array) for name, array in feeds.items()})
    assert [tuple(t.shape) for t in found.values()] == [a.shape for a in expected.values()]
    return max(float(np.abs(found[n].numpy() - a).max() / np.abs(a).max()) for n, a in expected.items())


def image_model(name: str):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    kind, task = (name, "ImageClassification") if name != "SegformerSmall" else ("Segformer", "SemanticSegmentation")
    config = getattr(transformers, f"{kind}Config")(**IMAGES[name])
    inner = getattr(transformers, f"{kind}For{task}")(config)
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

    return Classifier().eval()


def exported(module, inputs, optimize: bool = True, **options) -> ir.Model:
    program = torch.onnx.export(
        module, inputs, dynamo=True, opset_version=21, optimize=optimize, verbose=False, **options
    )
    name_nodes(program.model)
    return program.model


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES)
def test_image_models(name) -> None:
    module, image = image_model(name), torch.randn(1, 3, 64, 64)
    raw, model = exported(module, (image,), optimize=False), exported(module, (image,))
    feeds = {str(model.graph.inputs[0].name): image.numpy()}
    errors = [relative_error(m, feeds) for m in (raw, model, prepare(model, static=True, example_inputs=feeds).model)]
    print(name, errors)  # noqa: T201 (with -s, the figures)
    assert max(errors) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXTS)
def test_text_models(name) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    inner = getattr(transformers, f"{name}Model")(
        getattr(transformers, f"{name}Config")(vocab_size=100, **TEXTS[name])
    ).eval()

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, input_ids, attention_mask):
            return self.inner(input_ids=input_ids, attention_mask=attention_mask, return_dict=False)[0]

    ids = torch.randint(2, 100, (2, 12))
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=32)}
    dynamic = {} if name == "Deberta" else {"dynamic_shapes": (dims, dims)}
    model = exported(Encoder().eval(), (ids, mask), **dynamic)
    feeds = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    errors = [relative_error(model, feeds)]
    errors += [relative_error(prepare(model, static=s, example_inputs=feeds).model, feeds) for s in (True, False)]
    print(name, errors)  # noqa: T201
    assert max(errors) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ResNet", "ViT", "MobileViT"])
def test_gradients_are_those_of_the_module(name) -> None:
    """As exported with constants in place: every weight that kept its name has the gradient of torch's module."""
    module, image = image_model(name), torch.randn(2, 3, 64, 64)
    model = exported(module, (image,), optimize=False)
    graph = TorchGraph(model)
    inputs = [image.clone().requires_grad_() for _ in range(2)]
    upstream = torch.randn_like(module(image))
    (module(inputs[0]) * upstream).sum().backward()
    (graph({graph.inputs[0]: inputs[1]})[graph.outputs[0]] * upstream).sum().backward()
    pairs = [("the image", inputs[0].grad, inputs[1].grad)]
    ours = graph.weights
    pairs += [(n, p.grad, ours[n].grad) for n, p in module.named_parameters() if n in ours and p.grad is not None]
    assert len(pairs) > 10
    # Some are zero but for rounding: what a softmax does not see of its input's mean.
    largest = max(float(exact.abs().max()) for _, exact, _ in pairs)
    for label, exact, found in pairs:
        torch.testing.assert_close(
            found, exact, rtol=1e-4, atol=1e-6 * largest, msg=lambda text, at=label: f"{at}: {text}"
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Swin", "ViT", "MobileViT", "ConvNext"])
def test_stacked_samples_of_static_models(name) -> None:
    """Shapes that preparation fixed for one sample, windows and class tokens included."""
    module, images = image_model(name), torch.randn(3, 1, 3, 64, 64)
    model = exported(module, (images[0],))
    key = str(model.graph.inputs[0].name)
    graph = TorchGraph(prepare(model, static=True, example_inputs={key: images[0].numpy()}).model)
    stacked = graph.run_stacked({key: images}, graph.outputs)[graph.outputs[0]]
    single = torch.stack([graph({key: image})[graph.outputs[0]] for image in images])
    torch.testing.assert_close(stacked, single, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module", params=["example:efficientnet-lite0", "example:minilm"])
def source(request):
    return load_source(request.param)


@pytest.mark.slow
def test_examples(source) -> None:
    models = [source.model]
    models += [prepare(source.model, static=s, example_inputs=source.example_inputs).model for s in (True, False)]
    errors = [relative_error(model, source.example_inputs) for model in models]
    print(source.name, errors)  # noqa: T201
    assert max(errors) < TOLERANCE


@pytest.mark.slow
def test_blocks_of_examples_run_between_their_tensors(source) -> None:
    from edgeq.blocks import find_blocks

    model = prepare(source.model, static=True, example_inputs=source.example_inputs).model
    blocks = find_blocks(model, {str(n.name) for n in model.graph if n.op_type in ("Conv", "Gemm", "MatMul")})
    graph = TorchGraph(model)
    feeds = {name: torch.from_numpy(array) for name, array in source.example_inputs.items()}
    names = list(dict.fromkeys(n for block in blocks for n in (*block.inputs, *block.outputs)))
    with torch.no_grad():
        whole = graph.run(feeds, names)
        for block in blocks:
            part = graph.run({name: whole[name] for name in block.inputs}, block.outputs)
            for name in block.outputs:
                torch.testing.assert_close(part[name], whole[name], rtol=0, atol=0)
