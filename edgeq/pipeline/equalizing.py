"""Choose among rewrites of the float graph by measuring what each does to its block, once quantized.

The float model is run block by block over the fit samples. Wherever channels may change their scale, each
rewrite of the blocks concerned is calibrated on the fit samples, quantized, and run on the check samples in the
arithmetic of the specification. It is kept if it brings the outputs closer to the float ones than the best
so far by a real margin. The cost grows with the number of blocks and of samples, and with nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from edgeq.blocks import Block, extract, extract_block, find_blocks
from edgeq.graph import constant_array
from edgeq.padding import counted, mask_of, with_tokens_for_padding
from edgeq.progress import Progress, Silent, track
from edgeq.qtypes import QuantPlan, TensorStats, Trial
from edgeq.runtime import open_session, session_options
from edgeq.stages.calibrate.stats import Accumulator
from edgeq.stages.choose import Layout
from edgeq.stages.equalize import (
    Alternative,
    LinearGroup,
    Pair,
    absorption,
    chains,
    cross_layer,
    find_groups,
    find_pairs,
    has_channels,
    reparametrization,
    smoothings,
    suppressions,
)
from edgeq.stages.insert import insert_qdq

__all__ = ["Equalized", "equalize_model", "restrict_layout"]

MARGIN = 0.95
"""A rewrite that costs nothing at run time is kept if the squared error falls to this share, or further."""

ADDED_MARGIN = 0.8
"""What each added node must be worth: 1 dB of the whole block.

Its error has several sources, of which one rewrite removes one (measured on MiniLM: with 3 dB 10 Muls and 21.5 dB
are left of 23 Muls and 23.1 dB, as no two layers of a block may be far better while each alone is).
"""

MOST_SAMPLES = 64
"""More samples than this make the trials slower and no decision better: 48 to fit, 16 to check."""

MOST_BYTES = 1 << 30
"""How much of the tensors between blocks is kept in memory: fewer samples are used where they are larger."""

Sample = Mapping[str, np.ndarray]
Values = dict[str, list[np.ndarray]]


@dataclass(frozen=True)
class Equalized:
    """The rewritten float model, the trials in their order, and in words what was done."""

    model: ir.Model
    trials: tuple[Trial, ...] = ()
    notes: tuple[str, ...] = ()


def equalize_model(
    model: ir.Model,
    samples: Sequence[Sample],
    *,
    find: Callable[[ir.Model], Layout],
    plan: Callable[[ir.Model, Layout, Mapping[str, TensorStats]], QuantPlan],
    progress: Progress | None = None,
) -> Equalized:
    """Try every rewrite where it may help, and keep what does.

    ``find`` gives the layout of a model and ``plan`` every decision about one, as they are meant in the end:
    for the same target, scheme, range method and formats. Every fourth sample is a check sample, which nothing
    is fitted on. ``model`` is left as it is.
    """
    layout = find(model)
    usable = list(samples)[:MOST_SAMPLES]
    if not layout.observed or len(usable) < 4:
        return Equalized(model)
    return _Search(model, usable, layout, find, plan).run(progress or Silent())


def restrict_layout(layout: Layout, part: ir.Model) -> Layout:
    """What the layout of a model says of a part of it that was extracted.

    Where data outside of the part owns the scale of a tensor, the first tensor of that scale owns it here.
    """
    nodes = {str(node.name) for node in part.graph}
    values = {str(value.name) for value in (*part.graph.inputs, *part.graph.initializers.values())}
    values.update(str(value.name) for node in part.graph for value in node.outputs)
    activations = {
        tensor: tuple(reader for reader in readers if reader in nodes)
        for tensor, readers in layout.activations.items()
        if tensor in values and (tensor in layout.produced or any(reader in nodes for reader in readers))
    }
    first: dict[str, str] = {}
    owner = {}
    for tensor in activations:
        held = layout.owner[tensor]
        owner[tensor] = held if held in values else first.setdefault(held, tensor)
    return replace(
        layout,
        integer={name: capability for name, capability in layout.integer.items() if name in nodes},
        reasons={name: reason for name, reason in layout.reasons.items() if name in nodes},
        activations=activations,
        owner=owner,
        absorbed={name: into for name, into in layout.absorbed.items() if name in nodes},
        produced=layout.produced & values,
        ranged={
            tensor: tuple(reader for reader in readers if reader in nodes)
            for tensor, readers in layout.ranged.items()
            if any(reader in nodes for reader in readers)
        },
        constants=layout.constants & values,
    )


@dataclass(frozen=True)
class _Place:
    """Where channels may change: one group of products or layers in a row, and the blocks that see it."""

    region: Block
    first: int
    group: LinearGroup | None = None
    chain: tuple[Pair, ...] = ()

    @property
    def axes(self) -> dict[str, int]:
        """The tensors whose channels must be known, with their axes; -1 is the last."""
        if self.group is not None:
            return {self.group.tensor: -1}
        return {name: axis for pair in self.chain for name, axis in pair.axes.items()}


@dataclass
class _Search:
    model: ir.Model
    samples: list[Sample]
    layout: Layout
    find: Callable[[ir.Model], Layout]
    plan: Callable[[ir.Model, Layout, Mapping[str, TensorStats]], QuantPlan]
    values: Values = field(default_factory=dict)
    masks: list[np.ndarray | None] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    known: tuple[Block, Values, float] | None = None
    """The blocks measured last, what they give in float, and their error as the model is now."""

    def run(self, progress: Progress) -> Equalized:
        blocks = find_blocks(self.model, _heavy(self.model, self.layout))
        places = _places(self.model, self.layout, blocks)
        self.values = {name: [sample[name] for sample in self.samples] for name in self.samples[0]}
        self.masks = [mask_of(sample) for sample in self.samples]
        for number, block in track(list(enumerate(blocks)), progress, "equalize"):
            for place in (place for place in places if place.first == number):
                self._try(place)
            self._advance(block, blocks[number + 1 :])
            self.known = None
        return Equalized(self.model, tuple(self.trials), tuple(self.notes))

    def _advance(self, block: Block, later: Sequence[Block]) -> None:
        """Compute what the block gives, and forget what nobody needs any more."""
        outputs = [name for name in block.outputs if any(name in other.inputs for other in later)]
        if outputs:
            part = extract(self.model, list(block.inputs), outputs)
            self.values.update(self._compute(part, outputs, range(len(self.samples))))
        needed = {name for other in later for name in other.inputs}
        self.values = {name: arrays for name, arrays in self.values.items() if name in needed}
        size = sum(arrays[0].nbytes for arrays in self.values.values() if arrays)
        most = max(8, MOST_BYTES // max(size, 1))
        if len(self.samples) > most:
            self.samples = self.samples[:most]
            self.values = {name: arrays[:most] for name, arrays in self.values.items()}

    def _compute(self, part: ir.Model, outputs: Sequence[str], rows: Sequence[int]) -> Values:
        found: Values = {name: [] for name in outputs}
        names = [str(value.name) for value in part.graph.inputs]
        with open_session(part, session_options(optimization="none")) as session:
            for row in rows:
                arrays = session.run(list(outputs), {name: self.values[name][row] for name in names})
                for name, array in zip(outputs, arrays, strict=True):
                    found[name].append(array)
        return found

    @property
    def check(self) -> range:
        return range(3, len(self.samples), 4)

    @property
    def fit(self) -> list[int]:
        return [row for row in range(len(self.samples)) if row % 4 != 3]

    # -- one place

    def _try(self, place: _Place) -> None:
        """Measure all rewrites of one place, keep the best if it is good enough, and then what it makes possible."""
        region = place.region
        if any(name not in self.values for name in region.inputs):
            return
        part = extract_block(self.model, region)
        outputs = [str(value.name) for value in part.graph.outputs if value.dtype == ir.DataType.FLOAT]
        if not outputs:
            return
        if self.known is None or self.known[0] != region:
            reference = self._compute(part, outputs, self.check)
            self.known = (region, reference, self._error(part, self.layout, reference))
        _, reference, before = self.known
        before = self._keep_best(place, part, reference, before, self._alternatives(place, part))
        stats = self._observe(extract_block(self.model, region), place.axes) if place.chain else {}
        hidden = {pair.hidden for pair in place.chain}
        for pair in find_pairs(extract_block(self.model, region), self.layout.integer) if hidden else ():
            part = extract_block(self.model, region)
            found = absorption(part, pair, stats) if pair.hidden in hidden else None
            before = self._keep_best(place, part, reference, before, [found] if found is not None else [])
        self.known = (region, reference, before)

    def _keep_best(
        self, place: _Place, part: ir.Model, reference: Values, before: float, found: Sequence[Alternative]
    ) -> float:
        """The error after trying ``found``: of the best of them if it was kept, else as before."""
        best: tuple[float, float, Alternative] | None = None
        measured = []
        for alternative in found:
            error = self._measure(alternative, place, part, reference)
            worth = error / (MARGIN if not alternative.added else ADDED_MARGIN**alternative.added)
            measured.append((alternative, error))
            if worth < before and (best is None or worth < best[0]):
                best = (worth, error, alternative)
        for alternative, error in measured:
            kept = best is not None and alternative is best[2]
            name = f"{alternative.method} on {alternative.place}"
            self.trials.append(
                Trial(block=place.region.name, method=name, before_db=_db(before), after_db=_db(error), kept=kept)
            )
        if best is None:
            return before
        self.model = self.model.clone()
        best[2].apply(self.model)
        if best[2].structural:
            self.layout = self.find(self.model)
        gain = 10 * np.log10(before / max(best[1], 1e-30))
        self.notes.append(
            f"{best[2].place}: {best[2].method}, {gain:.1f} dB less error of the block {place.region.name}"
        )
        return best[1]

    def _alternatives(self, place: _Place, part: ir.Model) -> list[Alternative]:
        stats = self._observe(part, place.axes)
        if place.group is None:
            return cross_layer(part, place.chain, stats)
        seen = stats.get(place.group.tensor)
        if seen is None or not has_channels(part, place.group, seen):
            return []
        # Behind an integer kernel the tensor is rounded before anything in front of the products could help.
        if place.group.norm is None and place.group.tensor in self.layout.produced:
            return []
        bits = self.layout.bits_of(place.group.tensor) or 8
        known = (part, place.group, seen, self._rows(part, place.group.tensor), self.layout.scheme)
        found = [*smoothings(*known), *suppressions(*known)]
        other = reparametrization(place.group, seen, bits)
        return found if other is None else [*found, other]

    def _rows(self, part: ir.Model, tensor: str) -> np.ndarray:
        """Some rows of a tensor from a few fit samples, ``[R, K]``."""
        few = self.fit[:: max(1, len(self.fit) // 8)][:8]
        inside = tensor not in {str(value.name) for value in part.graph.inputs}
        inputs = [str(value.name) for value in part.graph.inputs]
        arrays = (
            self._compute(extract(part, inputs, [tensor]), [tensor], few)[tensor]
            if inside
            else [self.values[tensor][row] for row in few]
        )
        arrays = [self._seen(array, row) for array, row in zip(arrays, few, strict=True)]
        rows = np.concatenate([array.reshape(-1, array.shape[-1]) for array in arrays])
        return rows[:: max(1, len(rows) // 256)]

    def _measure(self, alternative: Alternative, place: _Place, part: ir.Model, reference: Values) -> float:
        layout, edited = self.layout, part.clone()
        if alternative.structural:
            whole = self.model.clone()
            alternative.apply(whole)
            layout = self.find(whole)
            if not _as_fused(self.layout, layout):
                return float("inf")
            edited = extract_block(whole, place.region)
        else:
            alternative.apply(edited)
        return self._error(edited, layout, reference)

    def _error(self, part: ir.Model, layout: Layout, reference: Values) -> float:
        """Squared error of the quantized part's outputs on the check samples, as a share of theirs; inf if it fails.

        What is computed for padding does not count.
        """
        here = restrict_layout(layout, part)
        stats = self._observe(part, dict.fromkeys(here.observed, None) | here.channel_axes(part))
        quantized = insert_qdq(part, self.plan(part, here, stats))
        found = self._compute(quantized, list(reference), self.check)
        shares = []
        for name, arrays in reference.items():
            signal = noise = 0.0
            for row, *pair in zip(self.check, arrays, found[name], strict=True):
                wanted, got = (counted(array, self.masks[row]).astype(np.float64) for array in pair)
                signal, noise = signal + float(np.square(wanted).sum()), noise + float(np.square(wanted - got).sum())
            shares.append(noise / max(signal, 1e-30))
        error = float(np.mean(shares))
        return error if np.isfinite(error) else float("inf")

    def _observe(self, part: ir.Model, axes: Mapping[str, int | None]) -> dict[str, TensorStats]:
        """Statistics of tensors of a part over the fit samples, along an axis of channels where one is given."""
        known = {str(value.name): value for value in (*part.graph.inputs, *_results(part))}
        accumulators = {}
        for name, axis in axes.items():
            shape = known[name].shape
            resolved = len(shape) + axis if shape is not None and axis is not None and axis < 0 else axis
            accumulators[name] = Accumulator(resolved)
        computed = [name for name in axes if name not in {str(value.name) for value in part.graph.inputs}]
        exposed = part.clone()
        results = {str(value.name): value for value in _results(exposed)}
        exposed.graph.outputs[:] = [results[name] for name in computed]
        inputs = [str(value.name) for value in part.graph.inputs]
        failed: set[str] = set()
        with open_session(exposed, session_options(optimization="none")) if computed else _nothing() as session:
            for row in self.fit:
                feeds = {name: self.values[name][row] for name in inputs}
                arrays = session.run(computed, feeds) if session is not None else []
                for name, array in {**feeds, **dict(zip(computed, arrays, strict=True))}.items():
                    if name not in accumulators:
                        continue
                    try:
                        accumulators[name].update(self._seen(array, row), row)
                    except ValueError:  # not finite, or of another size than before: no statistics
                        failed.add(name)
        found = {}
        for name, accumulator in accumulators.items():
            if name not in failed:
                with suppress(ValueError):
                    found[name] = accumulator.finish()
        return found

    def _seen(self, array: np.ndarray, row: int) -> np.ndarray:
        """What quantization has to fit of a tensor: a range that is found at run time includes the padding."""
        return array if self.layout.scheme.dynamic else with_tokens_for_padding(array, self.masks[row])


@contextmanager
def _nothing() -> Iterator[None]:
    yield None


def _results(part: ir.Model) -> list[ir.Value]:
    return [value for node in part.graph for value in node.outputs]


def _db(error: float) -> float | None:
    return float(-10 * np.log10(error)) if 0 < error < float("inf") else None


def _as_fused(before: Layout, after: Layout) -> bool:
    """Whether everything that ran in integers, or in another's kernel, still does."""
    return set(before.absorbed) <= set(after.absorbed) and set(before.integer) <= set(after.integer)


def _heavy(model: ir.Model, layout: Layout) -> frozenset[str]:
    """The integer nodes with constant weights, between which a model is cut into blocks."""
    integer = {name for name, capability in layout.integer.items() if capability.kind in ("compute", "dynamic")}
    weighted = (node for node in model.graph if len(node.inputs) > 1 and constant_array(node.inputs[1]) is not None)
    return frozenset(integer & {str(node.name) for node in weighted})


def _places(model: ir.Model, layout: Layout, blocks: Sequence[Block]) -> list[_Place]:
    """All places, each with the fewest neighbouring blocks that hold all its nodes; two at most."""
    home = {name: number for number, block in enumerate(blocks) for name in block.nodes}
    found = []
    for group in find_groups(model, layout.integer):
        names = (*group.readers, *((group.norm,) if group.norm is not None else ()))
        found.append(_place(model, blocks, [home[name] for name in names], group=group))
    within: list[list[Pair]] = []
    for chain in chains(find_pairs(model, layout.integer)):
        run: list[Pair] = []
        for pair in chain:
            inside = {home[name] for name in pair.nodes}
            if run and (len(inside) > 1 or inside != {home[name] for name in run[-1].nodes}):
                within.append(run)
                run = []
            run.append(pair)
        within.append(run)
    for part in within:
        homes = [home[name] for pair in part for name in pair.nodes]
        found.append(_place(model, blocks, homes, chain=tuple(part)))
    return [place for place in found if place is not None]


def _place(
    model: ir.Model,
    blocks: Sequence[Block],
    homes: Sequence[int],
    *,
    group: LinearGroup | None = None,
    chain: tuple[Pair, ...] = (),
) -> _Place | None:
    first, last = min(homes), max(homes)
    if last - first > 1:
        return None
    region = blocks[first] if first == last else _join(model, blocks, first)
    return _Place(region, first, group, chain)


def _join(model: ir.Model, blocks: Sequence[Block], first: int) -> Block:
    """Block ``first`` and the next as one."""
    a, b = blocks[first : first + 2]
    wanted = {name for block in (*blocks[:first], *blocks[first + 2 :]) for name in block.inputs}
    wanted.update(str(value.name) for value in model.graph.outputs)
    inputs = dict.fromkeys((*a.inputs, *(name for name in b.inputs if name not in a.outputs)))
    outputs = (*(name for name in a.outputs if name in wanted), *b.outputs)
    return Block((*a.nodes, *b.nodes), (*a.heavy, *b.heavy), tuple(inputs), outputs)
