"""Packages of detectors: boxes decoded in the graph, judged as boxes, by labels where there are some."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from command_line import edgeq as command
from PIL import Image
from small_models import parse, weights

import edgeq
from edgeq.bundle import read_bundle
from edgeq.errors import ConfigError, ValidationError
from edgeq.interface import BoxClassesOutput, BoxesOutput, PixelInput
from edgeq.pipeline import Job
from edgeq.pipeline.device_data import EvaluationData
from edgeq.request import Data
from edgeq.stages.run.predict import predictor
from edgeq.stages.run.validate import validate
from edgeq.wrap import parse_wrap

COLOURS = np.array([[220, 30, 30], [30, 30, 220], [30, 210, 30]])
SIDE, CELL = 64, 8


def detector(names: bool = True) -> ir.Model:
    """Finds squares of 16 pixels by their colour: a score for each cell and class, and boxes around the cells."""
    size, edge = SIDE // CELL - 1, 16
    mean = np.full((1, 1, edge, edge), 1 / edge**2)
    colour = np.full((3, 3), -1.0) + 2 * np.eye(3)[[0, 2, 1]]  # red, blue, green
    conv = (colour[:, :, None, None] * mean * 12).astype(np.float32)
    middle = np.mgrid[:size, :size][::-1] * CELL + CELL
    grid = np.concatenate([middle, np.full((2, size, size), float(edge))])[None].astype(np.float32)
    model = parse(
        f"g (float[1,3,{SIDE},{SIDE}] images) => (float[1,7,{size * size}] output0) {{"
        f" c = Conv<strides = [{CELL},{CELL}]>(images, w, b) s = Sigmoid(c)"
        f" m = Conv<strides = [{CELL},{CELL}]>(images, v) t = Tanh(m) o = Add(t, grid)"
        " j = Concat<axis = 1>(o, s) output0 = Reshape(j, shape) }",
        w=conv,
        b=np.full(3, -5.5, np.float32),
        v=weights(4, 3, edge, edge, scale=0.01),
        grid=grid,
        shape=np.array([1, 7, size * size]),
    )
    if names:
        found = str({0: "red square", 1: "blue square", 2: "green square"})
        facts = {"author": "Ultralytics", "task": "detect", "imgsz": f"[{SIDE}, {SIDE}]", "names": found}
        model.metadata_props.update(facts)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares on cells of dark pictures, and where they are, in COCO's form; then the same pictures of half size."""
    folder = tmp_path_factory.mktemp("squares")
    random = np.random.default_rng(0)
    images, rows = [], []
    for number in range(20):
        pixels = random.integers(0, 40, (SIDE, SIDE, 3))
        taken: list[tuple[int, int]] = []
        for label in random.permutation(3)[: random.integers(1, 4)]:
            row, column = (int(n) for n in random.integers(0, 7, 2))
            if any(abs(row - r) < 3 and abs(column - c) < 3 for r, c in taken):
                continue
            taken.append((row, column))
            top, left = row * CELL, column * CELL
            pixels[top : top + 16, left : left + 16] = COLOURS[label] + random.integers(-20, 20, 3)
            box = {"bbox": [left, top, 16, 16], "category_id": int(label) + 5, "image_id": number}
            rows.append({"id": len(rows) + 1, **box})
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{number:02}.png")
        images.append({"id": number, "file_name": f"{number:02}.png", "height": SIDE, "width": SIDE})
    names = [{"id": n + 5, "name": f"{c} square"} for n, c in enumerate(("red", "blue", "green"))]
    table = {"images": images, "annotations": rows, "categories": names}
    (folder / "labels.json").write_text(json.dumps(table))
    return folder


def test_a_detector_may_call_its_tensors_as_the_steps_around_it(folder: Path, tmp_path: Path) -> None:
    model = detector()
    model.graph.inputs[0].name, model.graph.outputs[0].name = "pixels", "boxes"
    next(node for node in model.graph if node.op_type == "Sigmoid").outputs[0].name = "box_scores"
    exported = edgeq.export(
        model,
        target="linux-x64",
        calibration=folder,
        evaluation=folder,
        labels=folder / "labels.json",
        embed_preprocessing=True,
        embed_postprocessing=True,
        max_drop=1,
        effort=0,
        measure=False,
        output=tmp_path / "package",
    )
    assert [entry.name for entry in exported.bundle.manifest.interface.inputs] == ["pixels"]
    assert [entry.name for entry in exported.bundle.manifest.interface.outputs][:2] == ["boxes", "box_scores"]
    assert exported.report.drop < 1
    assert not any("to be lost" in finding.text for finding in exported.report.findings)  # of a mean precision


def test_a_detector_from_pixels_to_boxes_is_judged_by_its_boxes(folder: Path, tmp_path: Path) -> None:
    exported = edgeq.export(
        detector(),
        target="linux-x64",
        calibration=folder,
        evaluation=folder,
        labels=folder / "labels.json",
        embed_preprocessing=True,
        embed_postprocessing="score=0.3,overlap=0.2",
        effort=0,
        measure=False,
        output=tmp_path / "package",
    )
    manifest, report = exported.bundle.manifest, exported.report
    assert manifest.task == "object-detection"
    assert isinstance(manifest.interface.inputs[0], PixelInput)
    boxes, _, classes, _ = manifest.interface.outputs
    assert isinstance(boxes, BoxesOutput)
    assert (boxes.of, boxes.least_score, boxes.most) == ("picture", 0.3, 49)
    assert classes == BoxClassesOutput(name="box_classes", boxes="boxes", classes=3, labels="labels.txt")
    metrics = {metric.name: metric for metric in report.metrics}
    assert report.primary == "mAP@50-95"
    float_value = metrics["mAP@50-95"].float_value
    assert float_value is not None
    assert 100 >= metrics["mAP@50"].value > 90
    assert metrics["box agreement"].value > 90
    assert metrics["box agreement"].samples > 20
    assert manifest.samples is not None
    assert manifest.samples.sqnr_db == {}
    assert manifest.samples.box_agreement["boxes"] > 90
    assert not any(error.tensor.startswith(("boxes/kept", "boxes/top", "box_")) for error in report.blame)
    again = validate(read_bundle(tmp_path / "package"), latency=False, memory=False)
    assert again.contract is not None
    assert [clause.option for clause in again.contract.clauses] == ["box agreement of boxes"]
    assert again.contract.met


def test_boxes_that_are_other_ones_fail_the_validation(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "package"
    made = edgeq.export(
        detector(),
        target="linux-x64",
        calibration=folder,
        embed_postprocessing=True,
        effort=0,
        measure=False,
        output=output,
    )
    assert made.bundle.manifest.samples is not None
    file = output / made.bundle.manifest.samples.outputs["boxes"]
    moved = np.load(file)
    np.save(file, moved[..., ::-1])
    manifest = json.loads((output / "manifest.json").read_bytes())
    import hashlib

    digest = {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "bytes": file.stat().st_size}
    manifest["files"][file.relative_to(output).as_posix()] = digest
    (output / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValidationError, match=r"box agreement of boxes is .* %, but the manifest says .* %"):
        validate(read_bundle(output), latency=False, memory=False)


def test_boxes_are_in_parts_of_the_input_where_the_app_prepares_pictures(folder: Path, tmp_path: Path) -> None:
    bundle = edgeq.export(
        detector(names=False),
        target="linux-x64",
        calibration=recipe(folder),
        evaluation=recipe(folder),
        labels=folder / "labels.json",
        embed_postprocessing="yolov8,boxes=7",
        effort=0,
        measure=False,
        output=tmp_path / "package",
    ).bundle
    boxes = bundle.manifest.interface.boxes
    assert boxes is not None
    assert (boxes.of, boxes.most) == ("input", 7)


def recipe(folder: Path) -> Path:
    """Says how pictures are prepared, where the model does not."""
    file = folder / "squares.toml"
    source = f'kind = "images"\npath = "{folder}"\nlicence = "CC0-1.0"'
    steps = f'kind = "image"\ncrop = [{SIDE}, {SIDE}]\nletterbox = "centre"'
    file.write_text(f'summary = "squares"\n[source]\n{source}\n[preprocess]\n{steps}\n')
    return file


@pytest.mark.parametrize("precision", ["w8a8", "w8a16"])
def test_a_join_of_coordinates_and_scores_keeps_the_scores(folder: Path, precision: str) -> None:
    wrap = parse_wrap(False, True)
    data = Data(calibration=folder)
    job = Job(detector(), "android-npu", data=data, precision=precision, effort=0, measure=False, wrap=wrap)
    _, plan, model = job.quantize(job.schemes[0])
    join = next(node for node in model.graph if node.op_type == "Concat")
    floats = {str(value.producer().op_type) for value in join.inputs if value is not None and value.producer()}
    if precision == "w8a8":
        assert any("joins tensors that differ" in note for note in plan.notes)
        assert floats == {"DequantizeLinear"}
        (quantize,) = (use.node for use in join.outputs[0].uses())
        assert quantize.inputs[2] is not None
        assert quantize.inputs[2].dtype == ir.DataType.UINT16
    else:
        assert plan.notes == ()


def test_what_cannot_be_decoded_is_said_before_the_work(folder: Path) -> None:
    data = Data(calibration=recipe(folder))

    def job(model: ir.Model, text: str | bool, target: str = "linux-x64", task: str | None = None) -> Job:
        return Job(model, target, data=data, wrap=parse_wrap(False, text), task=task)

    with pytest.raises(ConfigError, match="not known how this model's outputs hold boxes: output0"):
        _ = job(detector(names=False), "score=0.2").wrapping
    with pytest.raises(ConfigError, match="not known how this model's outputs hold boxes"):
        _ = job(detector(names=False), True, task="object-detection").wrapping
    with pytest.raises(ConfigError, match="v68 cannot have its boxes decoded in the graph"):
        _ = job(detector(), True, "android-npu@v68").wrapping
    with pytest.raises(ConfigError, match="no yolov5 head of 7 boxes and 44 classes"):
        job(detector(), "yolov5").wrapping.interface  # type: ignore[union-attr]  # noqa: B018


def test_the_command_line_takes_a_layout_with_numbers(folder: Path, tmp_path: Path) -> None:
    from edgeq.graph import save_model

    save_model(detector(names=False), tmp_path / "model.onnx")
    options = ["--target", "linux-x64", "--calibration", recipe(folder), "--effort", "0", "--no-measure"]
    run = command(
        "export", tmp_path / "model.onnx", *options, "--embed-postprocessing", "yolov8,score=0.4", "-o", tmp_path / "p"
    )
    assert run.code == 0, run.err
    assert "box agreement" in run.out
    boxes = read_bundle(tmp_path / "p").manifest.interface.boxes
    assert boxes is not None
    assert boxes.least_score == 0.4


@pytest.mark.parametrize("size", [True, "48x80x4"])
def test_pictures_go_to_a_device_as_the_package_takes_them(folder: Path, tmp_path: Path, size: bool | str) -> None:
    bundle = edgeq.export(
        detector(),
        target="linux-x64",
        calibration=folder,
        embed_preprocessing=size,
        embed_postprocessing=True,
        effort=0,
        measure=False,
        output=tmp_path / "package",
    ).bundle
    data = EvaluationData(folder, labels=folder / "labels.json")
    data.check(bundle)
    with predictor(bundle.model) as predict:
        metrics = data.measure(bundle, lambda batches: ((batch, predict(batch)) for batch in batches))
    assert [metric.name for metric in metrics] == ["mAP@50-95", "mAP@50"]
    assert metrics[1].value > (50 if size is True else 30)  # the cut moves squares off the cells that find them
    shape = read_bundle(bundle.path).manifest.inputs[0].shape
    assert shape[1:] == ((48, 80, 4) if size is not True else shape[1:])
