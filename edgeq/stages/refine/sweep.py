"""Walk the blocks of a model in order and improve its plan where a block's outputs come closer to the float ones.

The float activations and those of the quantized model, refined as far as the walk has come, are kept at the
borders of blocks. In each block the ranges of activations are searched, then each layer is tried with a corrected
bias and with weights rounded anew, and at effort 2 the block is reconstructed by gradient. A candidate is made from
the fit samples and kept only if the error of the block's outputs falls on the check samples, every fourth one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeq.blocks import Block, find_blocks
from edgeq.graph import real_inputs
from edgeq.padding import mask_of
from edgeq.progress import Progress, Silent
from edgeq.qtypes import QuantPlan, Trial
from edgeq.revise import weight_of, with_activation
from edgeq.stages.refine.borders import Borders, Side
from edgeq.stages.refine.checkpoint import Checkpoint, key_of
from edgeq.stages.refine.judge import Insert, Judge, decibels, relative_error, squares
from edgeq.stages.refine.layers import Candidate, layer_candidates
from edgeq.stages.refine.ranges import extrema, range_candidates, searched
from edgeq.stages.refine.reconstruction import missing_torch, reconstructed, unsupported_nodes
from edgeq.stages.refine.runs import in_order, open_runner
from edgeq.target import TargetProfile

__all__ = ["Refined", "Samples", "refine"]

Samples = Sequence[Mapping[str, np.ndarray]]

_MOST = 128
"""Samples that are used, spread evenly over those there are: what more of them tell is not worth the time. Below 8
bits of weights twice as many: more is fitted there, and with 75 it is fitted to them (measured on EfficientNet-Lite0,
W4A8: 15 dB on what was fitted, 11 on other pictures)."""

_FEWEST = 8
"""Fewer samples leave too few to check on."""

_RANGE_SAMPLES = 16
"""Fit samples on which ranges are searched: each candidate runs the block on all of them."""

_MEMORY = 1 << 29
"""Bytes of activations at the borders of blocks that stay in memory."""

_GAIN = 0.995
"""The share of its error that a block may keep at most, or the candidate is not worth a change."""


@dataclass(frozen=True)
class Refined:
    """The better plan, never worse than the one that came in on check samples, and all that was tried for it."""

    plan: QuantPlan
    trials: tuple[Trial, ...]


def refine(
    model: ir.Model,
    plan: QuantPlan,
    samples: Samples,
    *,
    target: TargetProfile,
    insert: Insert,
    effort: int = 1,
    seed: int = 0,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Refined:
    """Improve ``plan`` block by block; ``insert`` carries a plan out.

    ``samples`` are calibration samples, for every input of ``model``; at most 128 are used, 256 for weights below 8
    bits, and fewer than 8 are too few: then the plan stays as it is, with a note. ``effort`` 0 changes nothing, 2 adds
    reconstruction by gradient, where torch is installed. Under ``cache`` (a folder) the decisions about each block are
    kept, and an interrupted run goes on with the same result. The same input gives the same plan, whatever the number
    of cores.
    """
    heavy = {str(node.name) for node in model.graph if weight_of(plan, model, str(node.name)) is not None}
    if effort < 1 or not heavy:
        return Refined(plan, ())
    chosen = _spread(len(samples), _MOST if plan.scheme.weight_bits >= 8 else 2 * _MOST)
    if len(chosen) < _FEWEST:
        note = f"not refined: {len(samples)} samples are too few to fit on some and check on others (at least 8)"
        return Refined(replace(plan, notes=(*plan.notes, note)), ())
    inputs = [str(value.name) for value in real_inputs(model)]
    with Borders(_MEMORY) as borders:
        for position, index in enumerate(chosen):
            sample = samples[index]
            mask = mask_of(sample)
            if mask is not None:
                borders.masks[position] = mask
            for name in inputs:
                borders.put("float", name, position, np.asarray(sample[name]))
                borders.put("quantized", name, position, np.asarray(sample[name]))
        held = (borders.get("float", inputs, position) for position in range(len(chosen)))
        checkpoint = Checkpoint(cache, key_of(model, plan, held, target.name, effort, seed) if cache else "")
        walk = _Walk(model, plan, target, insert, effort, seed, borders, len(chosen))
        return walk.run(find_blocks(model, heavy), checkpoint, progress or Silent())


def _spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` samples, evenly spread."""
    return list(range(count)) if count <= most else [i * count // most for i in range(most)]


@dataclass
class _Walk:
    """One walk; ``plan`` is settled for the blocks that were walked."""

    model: ir.Model
    plan: QuantPlan
    target: TargetProfile
    insert: Insert
    effort: int
    seed: int
    borders: Borders
    count: int
    trials: list[Trial] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    settled: set[str] = field(default_factory=set)
    stages: list[tuple[str, QuantPlan]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.check = [i for i in range(self.count) if i % 4 == 3]
        self.fit = [i for i in range(self.count) if i % 4 != 3]
        self.range_fit = [self.fit[i * len(self.fit) // _RANGE_SAMPLES] for i in range(_RANGE_SAMPLES)]
        self.range_fit = list(dict.fromkeys(self.range_fit))
        why = missing_torch() if self.effort >= 2 else None
        self.learning = self.effort >= 2 and why is None
        if why is not None:
            self.notes.append(why)

    def run(self, blocks: Sequence[Block], checkpoint: Checkpoint, progress: Progress) -> Refined:
        came = self.plan
        inputs = [str(value.name) for value in real_inputs(self.model)]
        progress.start("refining block by block", len(blocks))
        try:
            for index, block in enumerate(blocks):
                self._block(index, block, checkpoint)
                if not self.stages or self.plan is not self.stages[-1][1]:
                    self.stages.append((block.name, self.plan))
                later = {name for other in blocks[index + 1 :] for name in other.inputs}
                self.borders.keep({*inputs, *later, *self._model_outputs()})
                progress.advance()
        finally:
            progress.finish()
        found = replace(self.plan, trials=(*came.trials, *self.trials), notes=(*came.notes, *self.notes))
        return self._judge_whole(came, found)

    def _model_outputs(self) -> list[str]:
        return [str(value.name) for value in self.model.graph.outputs]

    def _block(self, index: int, block: Block, checkpoint: Checkpoint) -> None:
        """Improve the plan of one block, and carry the activations over it."""
        with Judge(self.model, block, self.insert, self.borders) as judge:
            self._carry("float", judge.part, block)
            unsupported = unsupported_nodes(judge.part) if self.learning and block.heavy else []
            if unsupported:
                self.notes.append(f"the block {block.name} was not learned by gradient: {'; '.join(unsupported[:3])}")
            step = f"{index:04d}"
            known = checkpoint.load(step, self.plan)
            if known is not None:
                self.plan, trials = known
                self.trials.extend(trials)
            elif block.heavy and judge.measurable:
                before, tried = self.plan, len(self.trials)
                self._improve(judge, block)
                checkpoint.save(step, before, self.plan, tuple(self.trials[tried:]))
            self.settled.update(searched(self.plan, judge.part, self.target, set()))
            self._carry("quantized", judge.quantized(self.plan), block)

    def _carry(self, side: Side, part: ir.Model, block: Block) -> None:
        with open_runner(part) as runner:

            def outputs(sample: int) -> list[np.ndarray]:
                return runner.run(self.borders.get(side, block.inputs, sample))

            for sample, arrays in enumerate(in_order(outputs, range(self.count))):
                for name, array in zip(block.outputs, arrays, strict=True):
                    self.borders.put(side, name, sample, array)

    # -- candidates

    def _improve(self, judge: Judge, block: Block) -> None:
        error = judge.error(self.plan, self.check)
        error = self._ranges(judge, block, error)
        for layer in block.heavy:
            tried = layer_candidates(
                self.model, self.plan, block, layer, self.borders, self.fit, target=self.target, insert=self.insert
            )
            error = self._choose(judge, layer, tried, error)
        if self.learning and not unsupported_nodes(judge.part):
            found = reconstructed(
                self.model,
                self.plan,
                judge.part,
                block,
                self.borders,
                self.fit,
                target=self.target,
                settled=self.settled,
                seed=self.seed,
            )
            self._choose(judge, block.name, [found], error)

    def _choose(self, judge: Judge, name: str, tried: Sequence[Candidate], error: float) -> float:
        """Keep the best of the candidates if it lowers the block's error on the check samples."""
        errors = judge.errors([candidate.plan for candidate in tried], self.check)
        best = min(range(len(tried)), key=errors.__getitem__, default=None)
        before = error
        for position, (candidate, after) in enumerate(zip(tried, errors, strict=True)):
            kept = position == best and after < before * _GAIN
            self.trials.append(
                Trial(
                    block=judge.block.name,
                    method=f"{candidate.method} of {name}",
                    before_db=decibels(before),
                    after_db=decibels(after),
                    kept=kept,
                )
            )
            if kept:
                self.plan, error = candidate.plan, after
        return error

    def _ranges(self, judge: Judge, block: Block, error: float) -> float:
        """Coordinate descent over the block's scales: searched on fit samples, accepted on check samples."""
        tensors = searched(self.plan, judge.part, self.target, self.settled)
        if not tensors:
            return error
        seen = extrema(judge.part, tensors, block.inputs, self.borders, self.fit)
        producers = {str(value.name): node for node in judge.part.graph for value in node.outputs}
        for tensor in tensors:
            held = next(d.qparams for d in self.plan if d.tensor == tensor and d.role == "activation")
            assert held is not None
            tried = range_candidates(held, seen.get(tensor), producers.get(tensor), self.target)
            plans = [with_activation(self.plan, self.model, tensor, qparams) for qparams in tried]
            found = judge.errors([self.plan, *plans], self.range_fit)
            best = min(range(len(found)), key=found.__getitem__)
            if best:
                share = float(tried[best - 1].scale / held.scale)
                candidate = Candidate(f"range times {share:.2f}", plans[best - 1])
                error = self._choose(judge, tensor, [candidate], error)
        return error

    # -- the whole

    def _judge_whole(self, came: QuantPlan, found: QuantPlan) -> Refined:
        """The refined plan if the model's outputs come closer to the float ones, else what is best on the way to it.

        A block's error does not know which of its channels matter behind it, so that all blocks may be better,
        and the model is not. The best of the plans after each block is then taken, which may be the one that came.
        """
        before, after = (self._whole_error(plan) for plan in (came, found))
        method, note, plan = "all that was kept", None, found
        if after >= before:
            plan, after, note = self._best_stage(came, before)
            method = "what was kept up to the best block" if plan is not came else method
        kept = after < before
        trial = Trial(
            block="the whole model", method=method, before_db=decibels(before), after_db=decibels(after), kept=kept
        )
        trials = (*found.trials, trial)
        notes = found.notes if note is None else (*found.notes, note)
        return Refined(replace(plan, trials=trials, notes=notes), trials[len(came.trials) :])

    def _best_stage(self, came: QuantPlan, before: float) -> tuple[QuantPlan, float, str]:
        """The plan after one of the blocks that is best for the whole model, its error, and a note on it."""
        errors = [self._whole_error(plan) for _, plan in self.stages[:-1]]
        best = min(range(len(errors)), key=errors.__getitem__, default=None)
        if best is None or errors[best] >= before:
            note = "refining was undone: the model's outputs came no closer to the float ones on check samples"
            return came, self._whole_error(self.plan), note
        name, plan = self.stages[best]
        return plan, errors[best], f"refined up to the block {name} only: beyond, the model's outputs became worse"

    def _whole_error(self, plan: QuantPlan) -> float:
        outputs = self._model_outputs()
        inputs = [str(value.name) for value in real_inputs(self.model)]
        with open_runner(self.insert(self.model, plan)) as runner:

            def judged(sample: int) -> list[tuple[float, float]]:
                found = runner.run(self.borders.get("float", inputs, sample))
                wanted = self.borders.get("float", outputs, sample)
                mask = self.borders.masks.get(sample)
                return [squares(wanted[name], array, mask) for name, array in zip(outputs, found, strict=True)]

            return relative_error(list(in_order(judged, self.check)))
