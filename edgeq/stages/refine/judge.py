"""How far a block's quantized outputs are from its float outputs, for one plan or for many."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.blocks import Block, extract_block, restrict_plan
from edgeq.graph import to_bytes
from edgeq.padding import counted
from edgeq.parallel import cluster_named, map_trials
from edgeq.qtypes import QuantPlan
from edgeq.stages.refine.borders import Borders
from edgeq.stages.refine.runs import Runner, in_order

__all__ = ["Insert", "Judge", "decibels", "relative_error", "squares"]

Insert = Callable[[ir.Model, QuantPlan], ir.Model]


def squares(reference: np.ndarray, found: np.ndarray, mask: np.ndarray | None = None) -> tuple[float, float]:
    """Squared sums of the signal and of the noise, where the signal is finite; of the tokens in ``mask`` alone."""
    reference, found = counted(reference, mask), counted(found, mask)
    if found.dtype.kind != "f":
        return 0.0, 0.0
    wanted, got = reference.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(wanted)
    signal = float(np.square(wanted[finite]).sum())
    same = wanted == got
    return signal, float(np.square(np.where(same, 0.0, wanted - np.where(same, 0.0, got))).sum())


def relative_error(pairs: Sequence[Sequence[tuple[float, float]]]) -> float:
    """The mean over outputs of ``noise / signal``, from the squares ``[samples][outputs]``; inf if not finite."""
    total, count = 0.0, 0
    for signals in zip(*pairs, strict=True):
        signal, noise = (math.fsum(column) for column in zip(*signals, strict=True))
        if not math.isfinite(noise):
            return math.inf
        if signal or noise:
            total += noise / max(signal, 1e-30)
            count += 1
    return total / max(count, 1)


def decibels(error: float) -> float | None:
    """Signal to noise of a relative error, in dB; None for no error or one without bounds."""
    return -10 * math.log10(error) if 0 < error < math.inf else None


class Judge:
    """One block: its float part, and the error of a plan on some samples.

    ``errors`` does not depend on where it is computed: on threads here or, where the user has named a cluster
    to joblib, there.
    """

    def __init__(self, model: ir.Model, block: Block, insert: Insert, borders: Borders) -> None:
        self.model, self.block, self.insert, self.borders = model, block, insert, borders
        self.part = extract_block(model, block)
        self._stack = ExitStack()
        self._runner: Runner | None = None

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @property
    def measurable(self) -> bool:
        """Whether the block puts out numbers whose error can be told."""
        return any(value.dtype in (None, ir.DataType.FLOAT) for value in self.part.graph.outputs)

    def quantized(self, plan: QuantPlan) -> ir.Model:
        """The block with the decisions of the whole ``plan`` carried out."""
        return self.insert(self.part, restrict_plan(plan, self.part))

    def error(self, plan: QuantPlan, samples: Sequence[int]) -> float:
        return self.errors([plan], samples)[0]

    def errors(self, plans: Sequence[QuantPlan], samples: Sequence[int]) -> list[float]:
        """The relative squared error of the block's outputs under each plan."""
        if len(plans) > 1 and cluster_named():
            trials = [self._trial(plan, samples) for plan in plans]
            return map_trials(run_trial, trials)
        sessions = [self._session(self.quantized(plan)) for plan in plans]
        work = [(*session, sample) for session in sessions for sample in samples]

        def judged(item: tuple[Runner, dict[str, np.ndarray], int]) -> list[tuple[float, float]]:
            runner, changes, sample = item
            found = runner.run(self.borders.get("quantized", self.block.inputs, sample), changes)
            wanted = self.borders.get("float", self.block.outputs, sample)
            mask = self.borders.masks.get(sample)
            return [squares(wanted[name], array, mask) for name, array in zip(self.block.outputs, found, strict=True)]

        pairs = list(in_order(judged, work))
        count = len(samples)
        return [relative_error(pairs[i * count : (i + 1) * count]) for i in range(len(plans))]

    def _session(self, model: ir.Model) -> tuple[Runner, dict[str, np.ndarray]]:
        if self._runner is not None:
            changes = self._runner.changes(model)
            if changes is not None:
                return self._runner, changes
        self._runner = Runner(model, self._stack)
        return self._runner, {}

    def _trial(self, plan: QuantPlan, samples: Sequence[int]) -> BlockTrial:
        return BlockTrial(
            to_bytes(self.quantized(plan)),
            self.block.outputs,
            tuple(self._inputs(sample) for sample in samples),
            tuple(tuple(self.borders.get("float", self.block.outputs, sample).values()) for sample in samples),
            tuple(self.borders.masks.get(sample) for sample in samples),
        )

    def _inputs(self, sample: int) -> dict[str, np.ndarray]:
        return self.borders.get("quantized", self.block.inputs, sample)


@dataclass(frozen=True)
class BlockTrial:
    """All that another machine needs to judge one plan for one block."""

    model: bytes
    outputs: tuple[str, ...]
    inputs: tuple[dict[str, np.ndarray], ...]
    references: tuple[tuple[np.ndarray, ...], ...]
    masks: tuple[np.ndarray | None, ...]


def run_trial(trial: BlockTrial) -> float:
    """The relative error of a trial, as ``Judge.errors`` computes it."""
    import onnx

    model = ir.from_proto(onnx.load_from_string(trial.model))
    with ExitStack() as stack:
        runner = Runner(model, stack)
        pairs = []
        for feeds, references, mask in zip(trial.inputs, trial.references, trial.masks, strict=True):
            found = runner.run(feeds)
            pairs.append([squares(wanted, array, mask) for wanted, array in zip(references, found, strict=True)])
    return relative_error(pairs)
