"""One model on one target as a choice of formats: its groups, what each format does to the output, and its cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir

from edgeq.formats import NodeFormat, Scheme
from edgeq.front import Method, Sensitivity, in_db
from edgeq.graph import fingerprint, saved_bytes
from edgeq.machine import describe_machine
from edgeq.pipeline.effects import effects_by_gradients, measured_effects, remember
from edgeq.pipeline.job import Job
from edgeq.qtypes import QuantPlan
from edgeq.stages.choose import Layout, formats_of
from edgeq.stages.mix import (
    FLOAT,
    Effect,
    Group,
    Link,
    Option,
    Problem,
    Profile,
    Rates,
    Source,
    Structure,
    Unit,
    activation_sources,
    estimate_conversion,
    estimate_group,
    find_groups,
    group_bytes,
    group_sources,
    measure_rates,
    profile,
    tensor_shapes,
    total,
    weight_sources,
)

__all__ = ["Study", "study"]


@dataclass(frozen=True)
class Study:
    """The choice as numbers (``problem``) with what its parts are called.

    ``base`` is the choice that is the scheme as it stands; ``measured`` says whether times are of this machine;
    ``sensitivity`` is empty where no effect was measured, ``method`` says how that was done.
    """

    scheme: Scheme
    groups: tuple[Group, ...]
    offered: Mapping[str, Sequence[NodeFormat]]
    integer: frozenset[str]
    problem: Problem
    base: tuple[int, ...]
    measured: bool
    sensitivity: tuple[Sensitivity, ...] = ()
    method: Method = "measured"

    def formats(self, chosen: Sequence[int]) -> dict[str, NodeFormat]:
        """By name of node, the formats that are not the scheme's, as ``Job.quantize`` takes them."""
        found: dict[str, NodeFormat] = {}
        for group, unit, index, usual in zip(self.groups, self.problem.units, chosen, self.base, strict=True):
            if index == usual:
                continue
            wanted = NodeFormat.parse(unit.options[index].name)
            for name in group.nodes:
                if name in self.integer:
                    found[name] = _like(wanted, self.offered.get(name, ()))
        return found


def _like(wanted: NodeFormat, offered: Sequence[NodeFormat]) -> NodeFormat:
    """What a node of a group has where its head has ``wanted``: the same, the same activations, or float."""
    if wanted in offered:
        return wanted
    alike = (
        own for own in offered if own.static_bits == wanted.static_bits and not own.weight_only and not own.dynamic
    )
    return next((own for own in alike if not own.floating), NodeFormat(None, wanted.static_bits))


def study(
    job: Job,
    scheme: Scheme,
    made: tuple[ir.Model, QuantPlan, ir.Model],
    *,
    effects: bool = True,
    narrow: bool = False,
    gradients: bool = False,
    inputs: Mapping[str, np.ndarray],
) -> Study:
    """State the choice of formats around a precision that was carried out.

    Args:
        job: Source, target and data.
        scheme: The precision; it has activations whose range is known before.
        made: What ``job.quantize(scheme)`` returned.
        effects: Measure what each place does to the output; without, only speed can be chosen.
        narrow: Also offer weights of fewer bits than the scheme's.
        gradients: Take the effects of the scheme's own places from Taylor scores where torch runs the graph: they
            are in the same order, cost a pass for all places instead of one each, and are less exact by themselves.
        inputs: One batch, for sizes and times.
    """
    return _Study(job, scheme, *made, effects=effects, narrow=narrow, gradients=gradients, inputs=inputs).result()


@dataclass
class _Study:
    job: Job
    scheme: Scheme
    shaped: ir.Model
    plan: QuantPlan
    model: ir.Model
    effects: bool
    narrow: bool
    gradients: bool
    inputs: Mapping[str, np.ndarray]
    method: Method = "measured"
    noises: dict[tuple[str, str], Effect] = field(default_factory=dict)
    profiles: dict[Scheme | None, Profile] = field(default_factory=dict)

    @cached_property
    def layout(self) -> Layout:
        return self.job.layout(self.shaped, self.scheme)

    @cached_property
    def offered(self) -> dict[str, tuple[NodeFormat, ...]]:
        target = self.job.target
        return {str(node.name): formats_of(node, target, self.scheme) for node in self.shaped.graph}

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        kinds = {name: capability.kind for name, capability in self.layout.integer.items()}
        avoid = self.job.target.floats.avoid
        structure = Structure(kinds, self.layout.absorbed, self.layout.owner, avoid)
        return find_groups(self.shaped, structure, self.offered)

    @cached_property
    def nodes(self) -> dict[str, ir.Node]:
        return {str(node.name): node for node in self.shaped.graph}

    @cached_property
    def place(self) -> dict[str, int]:
        """The number of each node's group."""
        return {name: number for number, group in enumerate(self.groups) for name in group.nodes}

    def result(self) -> Study:
        wanted = [self._wanted(group) for group in self.groups]
        usual = tuple(self._usual(formats) for formats in wanted)
        if self.effects:
            self._measure(wanted)
        units = tuple(
            Unit(group.name, tuple(self._option(number, own) for own in wanted[number]))
            for number, group in enumerate(self.groups)
        )
        named = {group.name: number for number, group in enumerate(self.groups)}
        needs = tuple(
            (named[group.name], tuple(named[other] for other in others))
            for group in self.groups
            for others in group.needs
        )
        links, here = self._links(), self.job.target.verification.latency_here
        before, between = total(Problem(units, links, needs), usual), self._between(links)
        alone = sum(unit.options[index].cost for unit, index in zip(units, usual, strict=True))
        # What no choice changes: kernels between the groups, but for the conversions that are counted anyway.
        rest = max(0.0, self._profile(self.scheme).rest - (before.cost - alone)) if here else 0.0
        problem = Problem(units, links, needs, between, rest, saved_bytes(self.model) - before.size)
        whole = total(problem, usual)
        # Around the precision as it is, a hundredth of the size is worth a hundredth of the time.
        problem = replace(problem, byte_price=whole.cost / max(whole.size, 1.0))
        integer = frozenset(self.layout.integer) | frozenset(self.layout.absorbed)
        rows = self._sensitivity(wanted, usual)
        return Study(self.scheme, self.groups, self.offered, integer, problem, usual, here, rows, self.method)

    # -- what is offered

    def _wanted(self, group: Group) -> tuple[NodeFormat, ...]:
        """Of the formats of a group those worth looking at: the scheme's, wider ones, other kinds of range, float."""
        if group.head not in self.layout.integer:
            return (NodeFormat(None, None),)
        own = self.scheme
        formats = group.formats if self.effects else [f for f in group.formats if f.floating or f.static_bits]
        kept = [
            wanted
            for wanted in formats
            if wanted.floating
            or (wanted.dynamic and wanted.weight_bits == own.weight_bits)
            or (wanted.weight_only and (wanted.weight_bits == own.weight_bits or self.narrow))
            or (
                wanted.static_bits is not None
                and wanted.static_bits >= (own.static_bits or 0)
                and (wanted.weight_bits in (None, own.weight_bits) or (self.narrow and not wanted.block))
                and wanted.block == (own.block if wanted.weight_bits else None)
            )
        ]
        return tuple(kept) or (NodeFormat(None, None),)

    def _usual(self, formats: Sequence[NodeFormat]) -> int:
        """Which format is the scheme's own."""
        same = [
            f.static_bits == self.scheme.static_bits and f.weight_bits in (None, self.scheme.weight_bits)
            for f in formats
        ]
        return same.index(True) if True in same else 0

    # -- effects

    def _measure(self, wanted: Sequence[Sequence[NodeFormat]]) -> None:
        """Run every trial: the scheme's own weights and tensors, and each other kind of format in its own plan."""
        sources = [*weight_sources(self.plan, self.groups), *activation_sources(self.plan, self.layout.owner)]
        scored = effects_by_gradients(self.job, self.shaped, self.plan, sources) if self.gradients else None
        if scored is None:
            self._trials(self.shaped, self.plan, sources)
        else:
            self.method = "taylor"
            self.noises.update({(s.kind, s.name): effect for s, effect in zip(sources, scored, strict=True)})
        others: dict[Scheme, list[Group]] = {}
        for group, formats in zip(self.groups, wanted, strict=True):
            for own in formats:
                scheme = self._scheme_of(own)
                if scheme is not None:
                    others.setdefault(scheme, []).append(group)
        for scheme, groups in others.items():
            shaped, plan = self.job.plan(scheme)
            if scheme.static_bits is not None:
                sources = [Source(_kind(scheme), s.name, s.decisions) for s in weight_sources(plan, groups)]
            else:
                sources = group_sources(plan, groups, _kind(scheme))
            self._trials(shaped, plan, sources)

    def _trials(self, shaped: ir.Model, plan: QuantPlan, sources: Sequence[Source]) -> None:
        found = measured_effects(self.job, shaped, plan, sources)
        self.noises.update({(s.kind, s.name): effect for s, effect in zip(sources, found, strict=True)})

    def _scheme_of(self, wanted: NodeFormat) -> Scheme | None:
        """The precision in whose plan a format's own effect is measured; None: the scheme's plan tells it."""
        if wanted.dynamic or wanted.weight_only:
            assert wanted.weight_bits is not None
            return Scheme(wanted.weight_bits, wanted.activation_bits, wanted.block, wanted.dynamic)
        if wanted.weight_bits not in (None, self.scheme.weight_bits) and wanted.weight_bits is not None:
            return Scheme(wanted.weight_bits, self.scheme.activation_bits, wanted.block)
        return None

    def _noise(self, kind: str, name: str) -> float:
        effect = self.noises.get((kind, name))
        return 0.0 if effect is None else effect.noise

    # -- costs

    def _profile(self, scheme: Scheme | None) -> Profile:
        """Times of the model in a precision; None: in floats."""
        if scheme not in self.profiles:
            if scheme is None:
                model = self.shaped
            else:
                model = self.model if scheme == self.scheme else self.job.quantize(scheme)[2]
            key, provider = fingerprint(model) + repr((_machine(), _shapes(self.inputs))), self.job.target.provider
            self.profiles[scheme] = remember(
                self.job.cache, "profile", key, Profile, lambda: profile(model, self.inputs, provider=provider)
            )
        return self.profiles[scheme]

    def _time(self, group: Group, wanted: NodeFormat) -> float:
        nodes = [self.nodes[name] for name in group.nodes]
        if not self.job.target.verification.latency_here:
            width = 2 if self.job.target.floats.type == "float16" or self.job.target.floats.runs != "all" else 4
            return estimate_group(nodes, wanted, self.shapes, float_bytes=width)
        scheme = None if wanted.floating else self._scheme_of(wanted) or self.scheme
        return self._profile(scheme).group(group)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        names = [str(v.name) for node in self.shaped.graph for v in node.outputs if v.dtype == ir.DataType.FLOAT]
        return tensor_shapes(self.shaped, names, self.inputs)

    def _option(self, number: int, wanted: NodeFormat) -> Option:
        group = self.groups[number]
        nodes = [self.nodes[name] for name in group.nodes]
        table = group.head in self.layout.integer and self.layout.integer[group.head].kind == "table"
        scheme = self._scheme_of(wanted)
        noise = 0.0 if wanted.floating else self._noise("weights" if scheme is None else _kind(scheme), group.name)
        domain = FLOAT if table else wanted.static_bits or FLOAT
        floats = self.job.target.floats
        float_bytes = 2 if floats.type == "float16" or floats.stored == "int16" else 4
        size = group_bytes(nodes, wanted, float_bytes=float_bytes)
        return Option(wanted.name, domain, noise, self._time(group, wanted), size)

    def _links(self) -> tuple[Link, ...]:
        """One for every scale: who computes the tensor, and who reads it or what only moves it."""
        values = {str(v.name): v for v in self.shaped.graph.inputs}
        values.update({str(v.name): v for node in self.shaped.graph for v in node.outputs})
        links = []
        for source in activation_sources(self.plan, self.layout.owner):
            tensors = dict.fromkeys([source.name, *(decision.tensor for decision in source.decisions)])
            held = [values[name] for name in tensors if name in values]
            if not held:
                continue
            producer = held[0].producer()
            writer = None if producer is None else self.place.get(str(producer.name))
            readers = {self.place[str(n.name)] for v in held for n, _ in v.uses() if str(n.name) in self.place}
            usual = self.scheme.static_bits or 8
            own = self._noise("activations", source.name)
            # Each bit more halves the step, and quarters the power of the noise.
            noise = {bits: own * 4.0 ** (usual - bits) for bits in (8, 16) if bits >= usual}
            fed_out = any(value.is_graph_output() for value in held)
            convert = self._conversions(self.shapes.get(source.name, ()))
            links.append(Link(source.name, writer, tuple(sorted(readers - {writer})), noise, convert, fed_out))
        return tuple(links)

    def _between(self, links: Sequence[Link]) -> tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...]:
        """Groups with layers that the runtime quantizes by itself between integers, and who touches their tensors."""
        found = []
        for number, group in enumerate(self.groups):
            names = [name for name in group.nodes if name in self.layout.integer]
            if not any(self.nodes[name].op_type in self.job.target.floats.requantized for name in names):
                continue
            read = [{*link.readers, link.writer} for link in links if number in link.readers]
            written = [set(link.readers) for link in links if link.writer == number]
            before, behind = (
                tuple(sorted({n for one in sets for n in one if n is not None and n != number}))
                for sets in (read, written)
            )
            found.append((number, before, behind))
        return tuple(found)

    @cached_property
    def _rates(self) -> Rates:
        return remember(self.job.cache, "rates", repr(_machine()), Rates, measure_rates)

    def _conversions(self, shape: Sequence[int]) -> dict[tuple[int, int], float]:
        elements, rank = math.prod(shape), len(shape)
        domains = [FLOAT, *sorted({bits for own in self.offered.values() for f in own if (bits := f.static_bits)})]
        pairs = [(a, b) for a in domains for b in domains if a != b]
        if not self.job.target.verification.latency_here:
            return {(a, b): estimate_conversion(elements, a, b) for a, b in pairs}
        to, back = self._rates.to_integer(elements, rank), self._rates.to_float(elements, rank)
        return {(a, b): to if a == FLOAT else back if b == FLOAT else to + back for a, b in pairs}

    # -- for people

    def _sensitivity(self, wanted: Sequence[Sequence[NodeFormat]], usual: Sequence[int]) -> tuple[Sensitivity, ...]:
        """A row per group; a tensor counts for what computes it, one from outside for what first reads it."""
        if not self.effects:
            return ()
        noise = [self._noise("weights", group.name) for group in self.groups]
        divergence = [self._divergence("weights", group.name) for group in self.groups]
        for link in self._links():
            writers = [] if link.writer is None or wanted[link.writer][0].floating else [link.writer]
            for number in (*writers, *link.readers)[:1]:
                noise[number] += self._noise("activations", link.tensor)
                divergence[number] += self._divergence("activations", link.tensor)
        whole = sum(noise) or 1.0
        told = any(effect.divergence is not None for effect in self.noises.values())
        rows = [
            Sensitivity(
                group=group.name,
                nodes=group.nodes,
                ops=dict(Counter(self.nodes[name].op_type for name in group.nodes)),
                format=wanted[number][usual[number]].name,
                formats=tuple(own.name for own in wanted[number]),
                noise=float(f"{noise[number]:.6g}"),
                share=round(noise[number] / whole, 6),
                db=in_db(noise[number]),
                divergence=float(f"{divergence[number]:.6g}") if told else None,
            )
            for number, group in enumerate(self.groups)
            if group.head in self.layout.integer
        ]
        return tuple(sorted(rows, key=lambda row: (-row.noise, row.group)))

    def _divergence(self, kind: str, name: str) -> float:
        effect = self.noises.get((kind, name))
        return 0.0 if effect is None or effect.divergence is None else effect.divergence


def _kind(scheme: Scheme) -> str:
    return f"weights of {scheme.name}" if scheme.static_bits is not None else scheme.name


def _machine() -> tuple[object, ...]:
    """What times depend on."""
    here = describe_machine()
    return here.cpu, here.architecture, here.isa, here.onnxruntime


def _shapes(inputs: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in inputs.items()}
