"""Small bundles whose names, types and shapes a test may choose."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from embed_models import (
    DETECTED,
    MakeBundle,
    MakeDetectorBundle,
    MakePictureBundle,
    classifier,
    detector,
    pass_through,
    tiny_manifest,
)

import edgeq
from edgeq.bundle import Bundle, Manifest, read_bundle
from edgeq.interface import (
    BoxClassesOutput,
    BoxCountOutput,
    BoxesOutput,
    BoxScoresOutput,
    ImageInput,
    Interface,
    LogitsOutput,
)
from edgeq.recipe import ImagePreprocess, Preprocess
from edgeq.runtime import open_session, session_options
from edgeq.stages.package import write_bundle
from edgeq.target import Provider

HEADERS = Path(edgeq.__file__).parent / "devices" / "runner" / "vendor"


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
            manifest=tiny_manifest(
                Interface(
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


@pytest.fixture
def detector_bundle(tmp_path: Path) -> MakeDetectorBundle:
    """Makes a bundle of a detector, which agrees with its float model in all boxes unless told otherwise."""

    def make(
        steps: ImagePreprocess,
        folder: str = "detector",
        *,
        batch: int | str = 1,
        of: str = "input",
        labels: Sequence[str] = ("cat", "dog", "owl"),
        agreement: float = 100.0,
        names: Sequence[str] = DETECTED,
    ) -> Bundle:
        path = tmp_path / folder
        path.mkdir()
        model = detector(steps, batch, names)
        rng = np.random.default_rng(6)
        at_once = batch if isinstance(batch, int) else 1
        feeds = [{"image": rng.normal(0.5 + i, 0.1, (at_once, 3, *steps.crop)).astype(np.float32)} for i in range(2)]
        (path.parent / f"{folder}.onnx").write_bytes(ir.to_proto(model).SerializeToString())
        with open_session(path.parent / f"{folder}.onnx", session_options(threads=1)) as session:
            answers = [dict(zip((*names, "light"), session.run(None, feed), strict=True)) for feed in feeds]
        boxes, scores, classes, count = names
        named = "labels.txt" if labels else None
        write_bundle(
            path,
            model=model,
            manifest=tiny_manifest(
                Interface(
                    inputs=(ImageInput(name="image", steps=steps),),
                    outputs=(
                        BoxesOutput(
                            name=boxes, most=6, of=of, scores=scores, classes=classes, count=count, least_score=0.25
                        ),
                        BoxScoresOutput(name=scores, boxes=boxes),
                        BoxClassesOutput(name=classes, boxes=boxes, classes=8, labels=named),
                        BoxCountOutput(name=count, boxes=boxes),
                    ),
                ),
            ),
            sample_inputs=feeds,
            reference_outputs=answers,
            sqnr_db={"light": 100.0},
            box_agreement={boxes: agreement},
            labels=labels,
        )
        return read_bundle(path)

    return make


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """A folder laid out as ONNX Runtime's releases, from the library of the installed package."""
    if shutil.which("cc") is None or shutil.which("make") is None:
        pytest.skip("there is no C compiler, or no make")
    if not HEADERS.is_dir():
        pytest.skip("edgeq's runner is not part of this checkout")
    libraries = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))
    if not libraries:
        pytest.skip("the package onnxruntime has no library for Linux")
    folder = tmp_path / "ort"
    (folder / "lib").mkdir(parents=True)
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / "lib" / name).symlink_to(libraries[0])
    (folder / "include").symlink_to(HEADERS)
    return folder
