"""From a source to a quantized model: each stage runs once, when it is first needed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeq.errors import CalibrationError, ConfigError, NothingToQuantizeError
from edgeq.graph import TensorInfo, input_infos, saved_bytes
from edgeq.interface import BoxesOutput, Interface
from edgeq.names import read_names
from edgeq.pipeline.judging_labels import Judged, read_labels
from edgeq.pipeline.planning import plan_model
from edgeq.pipeline.wrapping import Wrapping, check_boxes, check_wrap
from edgeq.progress import Progress, Silent
from edgeq.qtypes import NodeForecast, NodeFormat, QuantPlan, Scheme, TensorStats
from edgeq.recipe import ImagePreprocess, Preprocess, TextPreprocess
from edgeq.request import Data, parse_scheme
from edgeq.runtime import check_available
from edgeq.sandbox.place import Place
from edgeq.source import Source
from edgeq.stages.calibrate.feeds import Feed, check_data, load_feed, split_feed
from edgeq.stages.calibrate.observe import calibrate
from edgeq.stages.choose import (
    Layout,
    find_islands,
    find_layout,
    forecast_floats,
    forecast_nodes,
)
from edgeq.stages.export import load_source
from edgeq.stages.insert import insert_qdq, verify_qdq
from edgeq.stages.prep import Prepared, prepare
from edgeq.stages.run.predict import Reference
from edgeq.stages.tune import finish, shape_float, stamp
from edgeq.stages.tune.context import find_chips
from edgeq.target import Gate, TargetProfile, load_target
from edgeq.wrap import Wrap

__all__ = ["EFFORTS", "Job"]

EFFORTS = (0, 1, 2)

Formats = Mapping[str, NodeFormat]


@dataclass
class Job:
    """One source for one target: each stage runs once, when it is first needed.

    ``class_names`` (a list, or a file with one a line) take the place of those that the source brings.
    ``precision`` None tries the target's own precisions in order. ``fixed_dims`` fixes dynamic
    dimensions by name. ``cache`` is a folder where statistics are kept. ``measure`` False leaves
    out latency and memory, ``with_fallback`` False the second graph that some targets have. ``places``
    are where the package is run besides this process. ``contexts`` names chips to compile for, besides
    those of the target's profile. ``gates`` are those that the package must pass. ``effort`` says how much
    is tried for accuracy: 0 what follows from statistics, 1 what is found by measuring block after block, 2
    also what is learned (see ``docs/effort.md``). ``wrap`` says what the package does around the model.
    """

    origin: Any
    profile: str | os.PathLike[str]
    data: Data = field(default_factory=Data)
    precision: str | None = None
    effort: int = 1
    range_method: str = "mse"
    bias_correction: bool = True
    smoothing: bool = True
    task: str | None = None
    class_names: Sequence[str] | str | os.PathLike[str] | None = None
    example_inputs: Any = None
    fixed_dims: dict[str, int] = field(default_factory=dict)
    cache: Path | None = None
    measure: bool = True
    with_fallback: bool = True
    places: tuple[Place, ...] = ()
    contexts: tuple[str, ...] = ()
    wrap: Wrap = field(default_factory=Wrap)
    gates: frozenset[Gate] = frozenset()
    seconds: float = 3.0
    trust_remote_code: bool = False
    allow_pickle: bool = False
    progress: Progress = field(default_factory=Silent)

    def check(self) -> None:
        """Raise what can be known to be wrong before the work starts: target, precision, chips, data.

        Raises:
            ConfigError: unknown target, precision, chip or recipe.
            CalibrationError: data that is not there.
            ProviderError: a place that is not installed, or a compiler.
        """
        if self.effort not in EFFORTS:
            raise ConfigError(f"there is no effort {self.effort!r}", remedy="choose 0, 1 or 2")
        _ = self.schemes  # the fallback's profile, too
        check_wrap(self.wrap, self.target, static=self._static)
        _ = self.names
        for place in self.places:
            place.require()
        for chip in self.chips:
            find_chips(chip, self.target)
        if self.chips:
            check_available(self.target.provider)  # its compiler
        self.data.check()
        for data in (self.data.calibration, self.data.evaluation):
            check_data(data)

    @property
    def chips(self) -> tuple[str, ...]:
        """The chips to compile for: the profile's and the user's, each once."""
        own = self.target.compile.chips if self.target.compile is not None else ()
        return tuple(dict.fromkeys((*own, *self.contexts)))

    # -- export and prep

    @cached_property
    def target(self) -> TargetProfile:
        return load_target(os.fspath(self.profile))

    @cached_property
    def fallback(self) -> Job | None:
        """The same source and data for the target whose graph goes into the bundle, too; None without one.

        Nothing is exported, prepared or read twice, and both graphs have the same inputs and outputs.
        """
        name = self.target.fallback
        if name is None or not self.with_fallback:
            return None
        return self._sharing(replace(self, profile=name, precision=None, with_fallback=False, contexts=()))

    def at_effort(self, effort: int) -> Job:
        """The same job with another effort; nothing is exported, prepared or read twice."""
        return self if effort == self.effort else self._sharing(replace(self, effort=effort))

    def _sharing(self, other: Job) -> Job:
        for done in ("source", "prepared", "wrapping", "reference", "answers", "float_bytes", "feeds", "judged"):
            setattr(other, done, getattr(self, done))
        return other

    @cached_property
    def schemes(self) -> tuple[Scheme, ...]:
        """What to try, in order: the user's precision, or the target's."""
        names = (self.precision,) if self.precision else self.target.precisions
        return tuple(parse_scheme(name, self.target) for name in names)

    @cached_property
    def names(self) -> tuple[str, ...] | None:
        """The user's names of the classes; None: there are none."""
        return None if self.class_names is None else read_names(self.class_names)

    @cached_property
    def source(self) -> Source:
        source = load_source(
            self.origin,
            task=self.task,
            example_inputs=self.example_inputs,
            fixed_dims=self.fixed_dims,
            first_sample=self.first_sample if self.has_rereadable_data else None,
            trust_remote_code=self.trust_remote_code,
            allow_pickle=self.allow_pickle,
            progress=self.progress,
        )
        return source if self.names is None else replace(source, labels=self.names)

    @cached_property
    def prepared(self) -> Prepared:
        return prepare(
            self.source.model,
            static=self._static,
            fixed_dims=self.fixed_dims,
            example_inputs=self.source.example_inputs,
            progress=self.progress,
        )

    @property
    def _static(self) -> bool:
        """Whether a target of the bundle wants fixed shapes: then all its graphs have them."""
        fallback = self.target.fallback if self.with_fallback else None
        targets = [self.target] if fallback is None else [self.target, load_target(fallback)]
        return any(target.graph.shapes == "static" for target in targets)

    @cached_property
    def wrapping(self) -> Wrapping | None:
        """The steps that the package does around the model; None: none.

        Raises:
            ConfigError: there are no such steps for this model, or they are not known.
        """
        if not self.wrap:
            return None
        source, steps = self.source, self._steps() if self.wrap.pixels else None
        wrapping = Wrapping(
            self.wrap, self.prepared.model, steps, source.task, len(source.labels), source.pooling, source.boxes
        )
        check_boxes(wrapping, self.target)
        wrapping.make_room()  # all that comes later sees the new names
        return wrapping

    @property
    def boxes(self) -> BoxesOutput | None:
        """The output of the package that holds boxes, if there is one."""
        return None if self.wrapping is None else self.wrapping.interface.boxes

    def _steps(self) -> ImagePreprocess:
        preprocess, inputs = self.preprocess, input_infos(self.prepared.model)
        if isinstance(preprocess, ImagePreprocess) and len(inputs) == 1:
            return preprocess
        if isinstance(preprocess, TextPreprocess):
            what = "text becomes tokens outside the graph: the package holds the tokenizer, and the manifest names it"
            remedy = "leave out --embed-preprocessing; --embed-postprocessing gives finished embeddings"
        else:
            what = "it is not known how the model wants its pictures prepared"
            remedy = 'write a recipe with a [preprocess] table of kind = "image" and give it with --calibration'
        raise ConfigError(f"nothing can be embedded in front of this model: {what}", remedy=remedy)

    @property
    def preprocess(self) -> Preprocess | None:
        """What the data goes through, which a recipe may say better than the source; an app must do it, too."""
        fed = (feed.preprocess for feed in self.feeds if feed is not None)
        return next((preprocess for preprocess in fed if preprocess is not None), self.source.preprocess)

    @cached_property
    def reference(self) -> ir.Model:
        """The float model that the package is measured against: the prepared one, with the embedded steps."""
        return self.prepared.model if self.wrapping is None else self.wrapping.around(self.prepared.model)[0]

    @cached_property
    def answers(self) -> Reference:
        """The reference, which remembers what it says: all precisions are compared with it."""
        return Reference(self.reference)

    @cached_property
    def float_bytes(self) -> int:
        """The size of the float model as a file."""
        return saved_bytes(self.reference)

    # -- data

    @property
    def has_rereadable_data(self) -> bool:
        """Whether there is calibration data that does not end by being looked at, as a generator does."""
        return self.data.calibration is not None and not isinstance(self.data.calibration, Iterator)

    def first_sample(self, inputs: Sequence[TensorInfo], preprocess: Preprocess | None) -> dict[str, np.ndarray]:
        """One batch of the calibration data, as example inputs for a model that brings none."""
        fixed = inputs[0].shape[0] if inputs and inputs[0].shape else 1
        count = fixed if isinstance(fixed, int) else 1
        return next(
            iter(load_feed(self.data.calibration, inputs, preprocess=preprocess, count=count, seed=self.data.seed))
        )

    def feed(self, data: Any, *, text_field: str | None = None, limited: bool = False) -> Feed:
        """A feed for the prepared model; ``limited`` applies the user's count of calibration samples."""
        return load_feed(
            data,
            input_infos(self.prepared.model),
            preprocess=self.source.preprocess,
            count=self.data.count if limited else None,
            seed=self.data.seed,
            text_field=text_field,
        )

    @cached_property
    def feeds(self) -> tuple[Feed | None, Feed | None]:
        """Calibration and evaluation data, never the same samples; None where there is none."""
        given = self.data.calibration if self.data.calibration is not None else self.source.recipe
        everything = None if given is None else self.feed(given, limited=True)
        if self.data.evaluation is not None:
            return everything, self.feed(self.data.evaluation)
        if everything is None or self.data.pairs is not None:
            return everything, None
        return split_feed(everything)

    @property
    def held_out(self) -> Feed | None:
        """The evaluation data as the package takes it."""
        held_out = self.feeds[1]
        return held_out if held_out is None or self.wrapping is None else self.wrapping.feed(held_out)

    @cached_property
    def judged(self) -> Judged:
        """What is said of the samples of ``held_out``: read once, as COCO's files are large and attempts many."""
        if self.held_out is None:
            return Judged()
        known = self.wrapping.interface if self.wrapping is not None else Interface()
        labels, names = self.data.labels, self.source.labels
        return read_labels(labels, self.held_out, known, names=names, preprocess=self.preprocess)

    @property
    def example(self) -> Mapping[str, np.ndarray]:
        """Inputs of the package where there is no data."""
        inputs = self.source.example_inputs
        return inputs if self.wrapping is None else self.wrapping.example(inputs)

    @cached_property
    def sample(self) -> Mapping[str, np.ndarray]:
        """One batch of what the model itself reads, whatever is embedded in front of it."""
        return next((dict(next(iter(feed))) for feed in reversed(self.feeds) if feed), self.source.example_inputs)

    # -- calibrate and choose

    def shaped(self, scheme: Scheme) -> ir.Model:
        return shape_float(self.prepared.model, self.target, scheme)

    def layout(self, shaped: ir.Model, scheme: Scheme, formats: Formats | None = None) -> Layout:
        if not formats:
            return find_layout(shaped, self.target, scheme)
        return find_layout(shaped, self.target, scheme, formats=formats)

    def forecast(self, shaped: ir.Model, layout: Layout) -> dict[str, NodeForecast]:
        nodes = forecast_nodes(shaped, layout, self.target)
        if self.target.floats.type == "float32":
            return nodes
        return forecast_floats(nodes, find_islands(shaped, {}, self.target))

    def statistics(self, shaped: ir.Model, layout: Layout) -> dict[str, TensorStats]:
        if not layout.observed:
            return {}
        feed = self.feeds[0]
        if feed is None and not layout.calibrated:
            return {}  # ranges found at run time: only smoothing would look at statistics
        if feed is None:
            raise CalibrationError(
                f"precision {layout.scheme.name} needs calibration data, and none was given",
                remedy="give --calibration a folder, file or recipe; weight-only precisions (w8, w4) need none",
            )
        axes = layout.channel_axes(shaped)
        return calibrate(
            shaped,
            feed,
            layout.observed,
            channel_axis=axes,
            count_padding=layout.scheme.dynamic,
            cache=self.cache,
            progress=self.progress,
        )

    def plan(self, scheme: Scheme, formats: Formats | None = None) -> tuple[ir.Model, QuantPlan]:
        """The float graph in the target's form, and every decision about it.

        ``formats`` gives some nodes, by name, another format than the scheme's.

        Raises:
            ModelError: the model is quantized already, or holds no float32 weights.
        """
        return plan_model(self, scheme, formats)

    def packaged_plan(self, scheme: Scheme) -> tuple[ir.Model, QuantPlan]:
        """The same of what the package will hold, with the embedded steps."""
        shaped, chosen = self.plan(scheme)
        if self.wrapping is None:
            return shaped, chosen
        return self.wrapping.package(shaped, chosen, shaped, self.target)[:2]

    # -- insert and tune

    def quantize(self, scheme: Scheme, formats: Formats | None = None) -> tuple[ir.Model, QuantPlan, ir.Model]:
        """The float graph in the target's form, the plan, and the finished QDQ model."""
        shaped, chosen = self.plan(scheme, formats)
        _check_worth(chosen)
        model = finish(insert_qdq(shaped, chosen), self.target, scheme, chosen.islands)
        verify_qdq(model)
        return shaped, chosen, model

    def package(self, shaped: ir.Model, plan: QuantPlan, model: ir.Model) -> tuple[ir.Model, QuantPlan, ir.Model]:
        """What ``quantize`` returned, with the embedded steps around all of it."""
        if self.wrapping is None:
            return shaped, plan, model
        shaped, plan, model = self.wrapping.package(shaped, plan, model, self.target)
        stamp(model, self.target)
        return shaped, plan, model


def _check_worth(plan: QuantPlan) -> None:
    """Raise NothingToQuantizeError for a plan that quantizes nothing."""
    if plan.scheme.floating or any(decision.qparams is not None for decision in plan):
        return
    whys = [node.why for node in plan.nodes.values() if node.kind == "float"]
    reasons = Counter(whys or [node.why for node in plan.nodes.values()])
    said = "; ".join(why for why, _ in reasons.most_common(3)) or "it holds no node that computes in floats"
    raise NothingToQuantizeError(
        f"nothing in this model can be quantized for {plan.target} in {plan.scheme.name}: {said}",
        remedy="see `edgeq inspect SOURCE --target TARGET` for every node; where If or Loop holds the layers, "
        "export the model without them",
    )
