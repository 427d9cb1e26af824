"""The steps around a model that its package does itself: what they read and give, and proof that they are right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np
import onnx_ir as ir

from edgeq.errors import ConfigError, ValidationError
from edgeq.geometry import seen
from edgeq.graph import TensorInfo, constant_array, input_infos, output_infos
from edgeq.interface import Interface, PixelInput
from edgeq.meanings import output_meaning
from edgeq.qtypes import Decision, NodeForecast, QuantPlan
from edgeq.recipe import ImagePreprocess
from edgeq.report import Finding
from edgeq.roles import is_float
from edgeq.runtime import open_session, session_options
from edgeq.source import BoxLayout, Pooling
from edgeq.stages.calibrate.feeds import Feed, raw_pictures
from edgeq.stages.calibrate.images import ImageStore
from edgeq.stages.choose import Layout, forecast_nodes
from edgeq.stages.run.closeness import Closeness
from edgeq.stages.wrap import BOXES, PIXELS, SEEN, Back, answer_back, boxes_back, join, make_room, pixel_front
from edgeq.target import CPU_PROVIDER, TargetProfile
from edgeq.wrap import BoxChoice, Wrap

if TYPE_CHECKING:
    from edgeq.pipeline.job import Job

__all__ = ["Wrapping", "check_boxes", "check_wrap", "wrapping_findings"]

_WHY = "an embedded step: it stays as it is, so that the package computes what the recipe says"

_WEBGPU = "WebGpuExecutionProvider"

_PROVED_ON = 8
"""Pictures to compare the embedded steps with the recipe on."""

_LEAST_DB = 30.0
"""Less than this between the recipe's tensors and the graph's is no matter of rounding (measured: 60 dB and more)."""


@dataclass(frozen=True)
class Wrapping:
    """What ``wrap`` means for one prepared model: ``steps`` on pictures in front of it, answers behind it.

    ``task``, the number of named classes, ``pooling`` and the layout of ``boxes`` are the source's.
    """

    wrap: Wrap
    model: ir.Model
    steps: ImagePreprocess | None
    task: str | None = None
    classes: int = 0
    pooling: Pooling | None = None
    boxes: BoxLayout | None = None

    @property
    def reads(self) -> TensorInfo:
        """What the model itself reads."""
        return input_infos(self.model)[0]

    @cached_property
    def interface(self) -> Interface:
        """What is known of the package's inputs and outputs by construction."""
        outputs = self.back(self.model.opset_imports.get("", 0)).outputs if self.wrap.answers else ()
        if self.steps is None:
            return Interface(outputs=outputs)
        orders: dict[int | None, tuple[Literal["RGB", "RGBA"], ...]] = {3: ("RGB",), 4: ("RGBA",)}
        channels = orders.get(self.wrap.channels, ("RGB", "RGBA"))
        height, width = self.wrap.size or (None, None)
        pixels = PixelInput(name=PIXELS, channels=channels, height=height, width=width, steps=self.steps)
        return Interface(inputs=(pixels,), outputs=outputs)

    def around(self, model: ir.Model) -> tuple[ir.Model, tuple[str, ...]]:
        """``model``, or what it was quantized to, with all steps around it; and the names of the added nodes."""
        opset = model.opset_imports.get("", 0)
        if self.wrap.answers:
            back = self.back(opset)
            joined = join(model, self.front(opset), back.graph, back.replaces)
        else:
            joined = join(model, self.front(opset), None)
        return joined.model, joined.added

    def make_room(self) -> None:
        """Rename what stands inside of the model and is called like the steps around it.

        Raises:
            ConfigError: they do not fit the model, or a name of its inputs and outputs is one of theirs.
        """
        opset = self.model.opset_imports.get("", 0)
        back = self.back(opset) if self.wrap.answers else None
        make_room(self.model, self.front(opset), back.graph if back else None, back.replaces if back else ())

    def front(self, opset: int) -> ir.Model | None:
        """What stands in front of the model; None for nothing."""
        if self.steps is None:
            return None
        return pixel_front(
            self.reads,
            self.steps,
            self.wrap.size,
            opset=opset,
            channels=self.wrap.channels,
            tells_seen=isinstance(self._seen, str),
        )

    def back(self, opset: int) -> Back:
        """What stands behind the model.

        Raises:
            ConfigError: nothing is known to be done with its outputs.
        """
        infos = output_infos(self.model)
        layout = self.layout
        if layout is not None:
            size, seen = self._picture_size, self._seen
            return boxes_back(infos, layout, self.wrap.boxes, size=size, seen=seen, classes=self.classes, opset=opset)
        mask = next((info for info in input_infos(self.model) if info.name == "attention_mask"), None)
        labels = ("", self.classes) if self.classes else None
        meanings = [
            output_meaning(info, value, self.task, mask.name if mask is not None else None, labels)
            for info, value in zip(infos, self.model.graph.outputs, strict=True)
        ]
        return answer_back(meanings, infos, mask=mask, pooling=self.pooling or "mean", opset=opset)

    @property
    def layout(self) -> BoxLayout | None:
        """How the model's outputs hold boxes, if boxes are asked for."""
        return (self.wrap.boxes.layout or self.boxes) if self.wrap.answers else None

    @property
    def _seen(self) -> tuple[float, float, float, float] | str | None:
        """Which part of the given picture the model sees, or what the tensor is called that says it, for boxes."""
        if self.steps is None or self.layout is None:
            return None
        if self.wrap.size is None and not self.steps.stretch:
            return SEEN
        return seen(self.steps, self.wrap.size or (1, 1))

    @property
    def _picture_size(self) -> tuple[int, int] | None:
        """``(height, width)`` of what the model itself reads; None where they are not fixed, or it is no picture."""
        if self.steps is not None:
            return self.steps.crop
        pictures = [info.shape for info in input_infos(self.model) if len(info.shape) == 4]
        if len(pictures) != 1:
            return None
        sides = pictures[0][2:] if pictures[0][1] in (1, 3, 4) else pictures[0][1:3]
        height, width = sides
        return (height, width) if isinstance(height, int) and isinstance(width, int) else None

    def package(
        self, shaped: ir.Model, plan: QuantPlan, model: ir.Model, target: TargetProfile
    ) -> tuple[ir.Model, QuantPlan, ir.Model]:
        """The float graph in the target's form, the plan and the finished model, all with the steps around them."""
        whole, added = self.around(shaped)
        finished, _ = self.around(model)
        nodes = {str(node.name): node for node in whole.graph}
        found = _forecasts(whole, added, plan, target)
        decided = {decision.tensor for decision in plan}
        skips = tuple(
            Decision(str(value.name), "activation", (name,), "embedded step", skip_reason=_WHY)
            for name in added
            for value in nodes[name].outputs
            if is_float(value) and str(value.name) not in decided
        )
        forecasts = {name: found.get(name) or plan.nodes[name] for name in nodes}
        return whole, replace(plan, nodes=forecasts, decisions=(*skips, *plan.decisions)), finished

    def feed(self, feed: Feed) -> Feed:
        """The same samples as the package takes them: raw pictures instead of the recipe's tensors.

        Raises:
            CalibrationError: the samples are no pictures, or pictures of many sizes would have to form a batch.
        """
        if self.steps is None:
            return feed
        return raw_pictures(feed, input_infos(self.around(self.model)[0]), self.wrap.size, self.wrap.channels)

    def example(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Inputs of the package where there is no data: noise in place of a picture."""
        if self.steps is None:
            return dict(inputs)
        batch = len(inputs[self.reads.name])
        shape = (batch, *(self.wrap.size or (480, 640)), self.wrap.channels or 3)
        return {PIXELS: np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)}


def check_wrap(wrap: Wrap, target: TargetProfile, *, static: bool) -> None:
    """Raise ConfigError for steps that a target cannot have, before the work starts."""
    if wrap.pixels and target.pixels is not None and target.pixels.runs == "refused":
        raise ConfigError(
            f"{target.name} cannot have its preprocessing embedded: {target.pixels.source}",
            remedy="leave out --embed-preprocessing: the manifest says what an app has to do",
        )
    if wrap.pixels and wrap.size is None and static:
        raise ConfigError(
            f"{target.name} takes graphs of fixed shapes only, and pictures of any size have none",
            remedy="give the size that the app will pass, such as --embed-preprocessing 480x640 (height x width)",
        )


def check_boxes(wrapping: Wrapping, target: TargetProfile) -> None:
    """Raise ConfigError for boxes that cannot be decoded, or not on a target; the source is known by now."""
    if wrapping.layout is not None and target.pixels is not None and target.pixels.runs == "refused":
        raise ConfigError(
            f"{target.name} cannot have its boxes decoded in the graph, which takes floats: {target.pixels.source}",
            remedy="leave out --embed-postprocessing, and decode what the model gives in the app",
        )
    unasked = wrapping.wrap.boxes == BoxChoice()
    if wrapping.wrap.answers and wrapping.layout is None and (not unasked or wrapping.task == "object-detection"):
        outputs = ", ".join(info.describe() for info in output_infos(wrapping.model))
        raise ConfigError(
            f"it is not known how this model's outputs hold boxes: {outputs}",
            remedy="name the layout of its head, such as --embed-postprocessing yolov8 (see docs/preprocessing.md)",
        )


def wrapping_findings(job: Job, plan: QuantPlan) -> list[Finding]:
    """What the embedded steps mean for the package, with the proof that they do what the recipe says.

    Raises:
        ValidationError: they do not.
    """
    wrapping = job.wrapping
    if wrapping is None:
        return []
    findings = []
    held_out = job.feeds[1] or job.feeds[0]
    if wrapping.steps is not None and held_out is not None:
        findings.append(_proof(wrapping, held_out))
    pooled = any(entry.name == "sentence_embedding" for entry in wrapping.interface.outputs)
    if pooled and wrapping.pooling is None:
        text = "the source does not say how its tokens are pooled: the embedded step takes their mean"
        findings.append(Finding(severity="warning", text=text, remedy="compare with the model's description"))
    own = job.target.provider.name
    outside = [node for node in plan.nodes.values() if node.why.startswith(_WHY) and node.provider != own]
    if outside:
        kinds = ", ".join(f"{count} {op}" for op, count in Counter(node.op_type for node in outside).most_common())
        findings.append(
            Finding(
                severity="info",
                text=f"{len(outside)} of the embedded steps are expected on the CPU beside {own}: {kinds}",
                nodes=tuple(node.node for node in outside),
                remedy="leave out --embed-preprocessing or --embed-postprocessing where the app does it faster itself",
            )
        )
    return findings


def _proof(wrapping: Wrapping, feed: Feed) -> Finding:
    """Compare what the model is fed by the recipe with what it is fed by the steps in front of it."""
    assert wrapping.steps is not None
    raw = wrapping.feed(feed)
    assert isinstance(feed.store, ImageStore)
    inner = replace(feed, store=feed.store.framed(wrapping.wrap.size), batch=raw.batch)
    name, closeness, most = wrapping.reads.name, Closeness(), 0.0
    level = min(1 / number for number in wrapping.steps.std)
    front = wrapping.front(wrapping.model.opset_imports.get("", 0))
    assert front is not None
    front.graph.outputs[0].name = "prepared"  # by itself it must not give what it takes, should the model call it so
    with open_session(front, session_options()) as session:
        for pixels, tensors in islice(zip(raw, inner, strict=True), _PROVED_ON):
            (made,) = session.run(["prepared"], dict(pixels))
            closeness.add(tensors[name], made)
            most = max(most, float(np.abs(made.astype(np.float64) - tensors[name]).max()) / level)
    text = f"embedded steps against the recipe: {closeness.sqnr_db:.1f} dB over {closeness.rows} pictures"
    if closeness.sqnr_db < _LEAST_DB:
        raise ValidationError(
            f"{text}: they do something else",
            where=feed.description,
            remedy="leave out --embed-preprocessing, and report it: this is a defect of edgeq or of ONNX Runtime",
        )
    return Finding(severity="info", text=f"{text}, at most {most:.2g} levels of 255 off")


def _forecasts(
    whole: ir.Model, added: tuple[str, ...], plan: QuantPlan, target: TargetProfile
) -> dict[str, NodeForecast]:
    """How the added nodes will run: none is quantized, and beside an accelerator the CPU has its part."""
    reasons = {str(node.name): _WHY for node in whole.graph}
    layout = Layout(scheme=plan.scheme, integer={}, reasons=reasons, activations={}, owner={}, absorbed={})
    found = forecast_nodes(whole, layout, target)
    nodes, made = {str(node.name): node for node in whole.graph}, {}
    for name in added:
        node = found[name]
        left = _left_to_cpu(nodes[name], target)
        if left is not None and target.provider.name != CPU_PROVIDER:
            node = msgspec.structs.replace(node, provider=CPU_PROVIDER, why=f"{_WHY}; {left}")
        made[name] = node
    return made


def _left_to_cpu(node: ir.Node, target: TargetProfile) -> str | None:
    """Why an accelerator leaves an embedded step to the CPU; None if it does not.

    QNN refuses antialiasing, Pad with axes, and rows that are picked by number; WebGPU's kernel for Resize takes no
    such integers, and picks rows of floats alone (measured, onnxruntime-qnn 2.7.0 and onnxruntime-web 1.30); sizes are
    computed on the CPU wherever graphs have dynamic shapes.
    """
    own, output = target.provider.name, node.outputs[0]
    floats = any(is_float(value) for value in node.inputs)
    if target.floats.runs != "all":
        if node.op_type == "Resize":
            return f"{own} has no Resize that filters integer pixels, so it falls to the CPU"
        if node.op_type == "Pad":
            return f"{own} fills no integer pixels, so that falls to the CPU"
        if node.op_type == "NonMaxSuppression" or (_picks_rows(node) and not (floats and own == _WEBGPU)):
            return "it works on as many rows as are found, which the CPU does"
    front = str(node.name).startswith(f"{PIXELS}/")
    computed = node.op_type == "Slice" and constant_array(node.inputs[1]) is None
    if front and not floats and (computed or (output.shape is not None and len(output.shape) < 4)):
        return "it finds sizes, which the CPU does"
    if not floats and (target.pixels is not None or (own == _WEBGPU and not front)):
        return f"{own} leaves integers to the CPU"
    return None


def _picks_rows(node: ir.Node) -> bool:
    """Whether a step takes rows by their number."""
    chosen = any(value is not None and value.name == f"{BOXES}/selected" for value in node.inputs)
    return chosen or node.op_type in ("GatherND", "ScatterND")
