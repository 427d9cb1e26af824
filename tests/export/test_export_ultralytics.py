"""What Ultralytics' metadata say of a model is taken where the model agrees, and nothing of it is executed."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from small_models import parse, weights

from edgeq.graph import input_infos
from edgeq.recipe import ImagePreprocess
from edgeq.stages.export import load_source
from edgeq.stages.export.ultralytics import Described, read_metadata

NAMES = "{0: 'person', 1: 'traffic  light', 2: 'cat'}"


def model(shape: str = "1,7,48", **facts: str) -> ir.Model:
    count = eval(shape.replace(",", "*"))
    made = parse(
        f"g (float[1,3,32,64] images) => (float[{shape}] output0) {{"
        " p = GlobalAveragePool(images) f = Flatten(p) y = MatMul(f, w) output0 = Reshape(y, to) }",
        w=weights(3, count),
        to=__import__("numpy").array([int(n) for n in shape.split(",")]),
    )
    made.metadata_props.update(facts)
    return made


def described(shape: str = "1,7,48", **facts: str) -> Described:
    made = model(shape, **facts)
    return read_metadata(made, input_infos(made))


def test_a_detector_is_known_with_its_classes_head_and_preparation() -> None:
    source = load_source(model(author="Ultralytics", task="detect", names=NAMES, imgsz="[320, 320]"))
    assert (source.task, source.boxes) == ("object-detection", "yolov8")
    assert source.labels == ("person", "traffic light", "cat")
    # The input has a size of its own, which counts more than the one that it was exported for.
    assert source.preprocess == ImagePreprocess(crop=(32, 64), letterbox="centre", interpolation="bilinear")
    assert source.provenance["preprocess"] == "the model's metadata"
    assert load_source(model(names=NAMES), task="x").task == "x"


@pytest.mark.parametrize(
    ("shape", "facts", "layout"),
    [
        ("1,7,48", {"task": "detect"}, "yolov8"),
        ("1,48,8", {}, "yolov5"),  # YOLOv5 writes names alone
        ("1,30,6", {"task": "detect", "end2end": "True"}, "yolov10"),
        ("1,30,6", {"task": "detect"}, None),
        ("1,39,48", {"task": "segment"}, None),
        ("1,7,48", {"task": "pose"}, None),
        ("1,9,48", {"task": "detect"}, None),
    ],
)
def test_the_head_is_the_one_that_has_the_shape(shape: str, facts: dict[str, str], layout: str | None) -> None:
    assert described(shape, names=NAMES, **facts).boxes == layout


def test_a_classifier_is_resized_and_cropped() -> None:
    found = described("1,3", author="Ultralytics", task="classify", names=NAMES, imgsz="[224, 224]")
    assert (found.task, found.boxes, len(found.labels)) == ("image-classification", None, 3)
    assert found.preprocess == ImagePreprocess(crop=(32, 64), resize=32, interpolation="bilinear")


@pytest.mark.parametrize(
    "names",
    ["", "{0: 'a', 2: 'b'}", "__import__('os').getcwd()", "{0: 1}", "[" * 5000, "{0: 'a', 0: [}", "x" * (1 << 21), "3"],
    ids=lambda text: text[:12],
)
def test_names_that_are_none_are_no_names(names: str) -> None:
    assert described(names=names) == Described()


@pytest.mark.parametrize(("size", "crop"), [("[320, 640]", (320, 640)), ("[60000, 60000]", None), ("x", None)])
def test_a_model_of_any_size_takes_pictures_of_the_one_it_was_exported_for(
    size: str, crop: tuple[int, int] | None
) -> None:
    made = model(author="Ultralytics", task="detect", names=NAMES, imgsz=size)
    made.graph.inputs[0].shape = ir.Shape([1, 3, "height", "width"])
    found = read_metadata(made, input_infos(made)).preprocess
    assert (found.crop if found is not None else None) == crop


def test_other_metadata_say_nothing() -> None:
    assert described() == Described()
    assert described(author="somebody", task="detect", names=NAMES, imgsz="[32, 32]").preprocess is None
    assert described(author="Ultralytics", task="detect", names=NAMES, imgsz="[-1, 1e9]").preprocess is not None
