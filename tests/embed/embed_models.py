"""Models for embedding: as simple as can be, with names that are anything but."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import onnx
import onnx_ir as ir

from edgeq.bundle import Bundle, GraphEntry, Manifest, file_entry, read_bundle
from edgeq.graph import save_model
from edgeq.interface import Interface
from edgeq.recipe import ImagePreprocess
from edgeq.target import Provider

HOSTILE = (
    '"); Runtime.exec("rm',
    "${System.exit(1)}",
    "\\(exit(1))",
    "*/ fun pwn() {} /*",
    "class",
    "Class",
    "a\nb",
    "\u202egnp.\u2066",
    "日本語",
    '"""',
    "{{ 70 * 719 }}",
    "</script><script>",
    "%s%n",
    "??/",
    "in",
    "In",
    "session",
    "1st",
    "../../x",
    "-->",
    "#{x}",
    "x" * 3000,
)
"""Names of tensors; those that a language would take for the same or for a keyword are among them."""

PREPARATIONS = (
    ImagePreprocess(resize=12, crop=(8, 8), mean=(127.0, 120.0, 110.0), std=(128.0, 64.0, 32.0), color="BGR"),
    ImagePreprocess(crop=(8, 6), stretch=True, interpolation="bilinear", layout="NHWC"),
    ImagePreprocess(resize=9, crop=(8, 8), interpolation="lanczos", color="L", mean=(0.0,), std=(255.0,)),
    ImagePreprocess(resize=9, crop=(8, 8), interpolation="nearest"),
    ImagePreprocess(crop=(8, 8)),
    ImagePreprocess(crop=(16, 13), letterbox="centre", interpolation="bilinear"),
    ImagePreprocess(crop=(9, 40), letterbox="corner", fill=7, color="BGR", layout="NHWC"),
    ImagePreprocess(crop=(80, 40), letterbox="centre", interpolation="lanczos", color="L", mean=(0.0,), std=(1.0,)),
)
"""Ways to prepare a picture: every filter, every order of channels, both layouts, every way to make it fit."""

SIZES = [(31, 23), (23, 31), (8, 90), (640, 480), (1024, 692), (700, 1024), (33, 33), (1, 50), (99, 1)]
"""``(width, height)`` of pictures; some make ties."""

PICTURES = [(31, 23), (19, 61), (47, 12)]
"""``(width, height)`` of those to prepare: wide ones and a tall one."""


def tiny_manifest(interface: Interface, name: str = "tiny net") -> Manifest:
    """Of a package for this machine's processor, whose tensors mean what ``interface`` says."""
    return Manifest(
        edgeq="0.1.0",
        name=name,
        target="linux-x64",
        precision="w8a8",
        provider=Provider(name="CPUExecutionProvider", package="onnxruntime", version=">=1.24"),
        interface=interface,
    )


def preparation_id(steps: ImagePreprocess) -> str:
    """Of one of ``PREPARATIONS``, in the name of a test."""
    how = steps.letterbox or ("stretch" if steps.stretch else f"resize{steps.resize}" if steps.resize else "crop")
    return f"{how}-{steps.interpolation}-{steps.color}"


DETECTED = "boxes", "box_scores", "box_classes", "box_count"
"""What the outputs of a detector are called that edgeq gives its postprocessing."""

MakeBundle = Callable[..., Bundle]
MakePictureBundle = Callable[[ImagePreprocess], Bundle]
MakeDetectorBundle = Callable[..., Bundle]


def pass_through(names: Sequence[str], dtype: ir.DataType, shape: Sequence[int | str | None]) -> ir.Model:
    inputs = [ir.Value(name=n, type=ir.TensorType(dtype), shape=ir.Shape(shape)) for n in names]
    nodes = [ir.node("Identity", [value], name=f"node {i}") for i, value in enumerate(inputs)]
    outputs = [node.outputs[0] for node in nodes]
    for name, value in zip(names, outputs, strict=True):
        value.name, value.type, value.shape = f"{name} out", ir.TensorType(dtype), ir.Shape(shape)
    graph = ir.Graph(inputs, outputs, nodes=nodes, opset_imports={"": 21}, name="g")
    return ir.Model(graph, ir_version=10)


def detector(steps: ImagePreprocess, batch: int | str, names: Sequence[str] = DETECTED) -> ir.Model:
    """Finds five boxes in each picture after ``steps``; light moves them.

    The third is at the edge of what the model sees and the fourth beyond it, the last has a class without a label.
    """
    height, width = steps.crop
    text = f"""
        <ir_version: 10, opset_import: ["": 21]>
        g (float[{batch}, 3, {height}, {width}] image) => (
            float[{batch}, 6, 4] boxes, float[{batch}, 6] box_scores, int64[{batch}, 6] box_classes,
            int64[{batch}] box_count, float[{batch}, 1] light
        ) <
            float[1, 6, 4] base = {{ 0.2, 0.2, 0.5, 0.6,  0.25, 0.2, 0.5, 0.6,  -0.1, 0.9, 0.3, 1.2,
                                     1.01, 0.1, 1.3, 0.4,  0.4, 0.1, 0.9, 0.3,  0.0, 0.0, 0.0, 0.0 }},
            float[1, 6, 4] shift = {{ 0.1, 0.2, 0.1, 0.2,  0.1, 0.1, 0.2, 0.1,  0.0, 0.05, 0.0, 0.05,
                                      0.1, 0.1, 0.1, 0.1,  0.0, 0.1, 0.0, 0.1,  0.0, 0.0, 0.0, 0.0 }},
            float[1, 6] scores = {{ 0.9, 0.8, 0.75, 0.7, 0.4, 0.0 }},
            int64[1, 6] classes = {{ 1, 0, 1, 2, 7, -1 }},
            int64[1] five = {{ 5 }}, int64[1] one = {{ 1 }}
        > {{
            means = GlobalAveragePool (image)
            channels = Flatten (means)
            light = ReduceMean <keepdims = 1> (channels, one)
            rows = Unsqueeze (light, one)
            moved = Mul (shift, rows)
            boxes = Add (base, moved)
            zero = Sub (light, light)
            box_scores = Add (scores, zero)
            none = Cast <to = 7> (zero)
            box_classes = Add (classes, none)
            flat = Squeeze (none, one)
            box_count = Add (five, flat)
        }}
    """
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    for name, value in zip(names, model.graph.outputs, strict=False):
        value.name = name
    return model


def with_fallback(bundle: Bundle) -> Bundle:
    """The bundle with a second graph: its own, for the CPU."""
    provider = Provider(
        name="CPUExecutionProvider", package="onnxruntime", version=">=1.24", session={"session.x": "1"}
    )
    (bundle.path / "fallback").mkdir()
    shutil.copyfile(bundle.model, bundle.path / "fallback" / "model.onnx")
    entry = GraphEntry(
        model="fallback/model.onnx", target="android", precision="w8a8", provider=provider, sqnr_db={"x out": 20.0}
    )
    files = {**bundle.manifest.files, entry.model: file_entry(bundle.path / entry.model)}
    manifest = msgspec.structs.replace(bundle.manifest, fallback=entry, files=files)
    (bundle.path / "manifest.json").write_bytes(manifest.to_json())
    return read_bundle(bundle.path)


def with_model(bundle: Bundle, model: ir.Model) -> Bundle:
    """The bundle with another model in its first graph."""
    save_model(model, bundle.model)
    manifest = msgspec.structs.replace(
        bundle.manifest, files={**bundle.manifest.files, "model.onnx": file_entry(bundle.model)}
    )
    (bundle.path / "manifest.json").write_bytes(manifest.to_json())
    return read_bundle(bundle.path)


def in_blocks() -> ir.Model:
    """A matrix of 4 bits in blocks of 32, as ONNX Runtime's own operator: 32 numbers in, 2 out."""
    x, y = (
        ir.Value(name=n, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", s]))
        for n, s in (("x", 32), ("y", 2))
    )
    packed = ir.Value(name="packed", const_value=ir.tensor(np.full((2, 1, 16), 0x91, np.uint8), name="packed"))
    scales = ir.Value(name="scales", const_value=ir.tensor(np.ones(2, np.float32), name="scales"))
    settings = {"K": 32, "N": 2, "bits": 4, "block_size": 32}
    node = ir.node("MatMulNBits", [x, packed, scales], settings, domain="com.microsoft", outputs=[y])
    opsets = {"": 21, "com.microsoft": 1}
    return ir.Model(
        ir.Graph([x], [y], nodes=[node], initializers=[packed, scales], opset_imports=opsets), ir_version=10
    )


def classifier(steps: ImagePreprocess) -> ir.Model:
    """As many logits as a picture after ``steps`` has channels: the mean of each."""
    channels = 1 if steps.color == "L" else 3
    nchw = steps.layout == "NCHW"
    shape = ["batch", channels, *steps.crop] if nchw else ["batch", *steps.crop, channels]
    image = ir.Value(name="image", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))
    first = [] if nchw else [ir.node("Transpose", [image], {"perm": [0, 3, 1, 2]}, name="channels first")]
    pooled = ir.node("GlobalAveragePool", [first[0].outputs[0] if first else image], name="pool")
    flat = ir.node("Flatten", [pooled.outputs[0]], name="flat")
    logits = flat.outputs[0]
    logits.name, logits.type, logits.shape = "logits", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["batch", channels])
    graph = ir.Graph([image], [logits], nodes=[*first, pooled, flat], opset_imports={"": 21}, name="g")
    return ir.Model(graph, ir_version=10)
