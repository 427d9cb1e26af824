"""Small bundles whose names, types and shapes a test may choose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from embed_models import MakeBundle, MakePictureBundle, classifier, pass_through

from edgeq.bundle import Bundle, Manifest, read_bundle
from edgeq.interface import ImageInput, Interface, LogitsOutput
from edgeq.recipe import ImagePreprocess, Preprocess
from edgeq.stages.package import write_bundle
from edgeq.target import Provider


@pytest.fixture
def make_bundle(tmp_path: Path) -> MakeBundle:
    """Makes a bundle of a model that passes its inputs on: float32 of any batch, 3 numbers each."""

    def make(
        folder: str = "bundle",
        *,
        names: Sequence[str] = ("x",),
        name: str = "tiny",
        labels: Sequence[str] = ("cat", "dog", "owl"),
        dtype: ir.DataType = ir.DataType.FLOAT,
        shape: Sequence[int | str | None] = ("batch", 3),
        provider: Provider | None = None,
        preprocess: Preprocess | None = None,
        task: str | None = None,
    ) -> Bundle:
        model = pass_through(names, dtype, shape)
        path = tmp_path / folder
        path.mkdir()
        sizes = [dim if isinstance(dim, int) else 1 for dim in shape]
        feeds = [{n: np.full(sizes, i + 1, dtype.numpy()) for n in names} for i in range(2)]
        write_bundle(
            path,
            model=model,
            manifest=Manifest(
                edgeq="0.1.0",
                name=name,
                target="android",
                precision="w8a8",
                preprocess=preprocess,
                task=task,
                provider=provider or Provider(name="CPUExecutionProvider", package="onnxruntime", version=">=1.24"),
            ),
            sample_inputs=feeds,
            reference_outputs=[{f"{n} out": array for n, array in feed.items()} for feed in feeds],
            sqnr_db={f"{n} out": 30.0 for n in names},
            labels=labels,
        )
        return read_bundle(path)

    return make


@pytest.fixture
def picture_bundle(tmp_path: Path) -> MakePictureBundle:
    """Makes a bundle of a classifier of pictures."""

    def make(steps: ImagePreprocess) -> Bundle:
        path = tmp_path / "pictures"
        path.mkdir()
        model = classifier(steps)
        channels = 1 if steps.color == "L" else 3
        nchw = steps.layout == "NCHW"
        shape = (1, channels, *steps.crop) if nchw else (1, *steps.crop, channels)
        feed = {"image": np.random.default_rng(4).normal(size=shape).astype(np.float32)}
        write_bundle(
            path,
            model=model,
            manifest=Manifest(
                edgeq="0.1.0",
                name="tiny net",
                target="linux-x64",
                precision="w8a8",
                provider=Provider(name="CPUExecutionProvider", package="onnxruntime", version=">=1.24"),
                interface=Interface(
                    inputs=(ImageInput(name="image", steps=steps),),
                    outputs=(LogitsOutput(name="logits", classes=channels),),
                ),
            ),
            sample_inputs=[feed],
            reference_outputs=[{"logits": feed["image"].mean((2, 3) if nchw else (1, 2))}],
            sqnr_db={"logits": 100.0},
            labels=["blue", "green", "red"][:channels],
        )
        return read_bundle(path)

    return make
