"""Float model -> the same function, folded and canonical; each pass proves that it kept the outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.errors import EdgeqError, ModelError
from edgeq.graph import model_size, name_nodes
from edgeq.progress import Progress, Silent
from edgeq.stages.prep.fix_shapes import check_static, fix_shapes
from edgeq.stages.prep.passes import PREP_PASSES
from edgeq.stages.prep.proof import Difference, Proof
from edgeq.stages.prep.rewrite import PrepPass

__all__ = ["PrepStep", "Prepared", "prepare"]

PROVE_EACH_BYTES = 256 << 20
"""Models with more weights are proved once at the end, and pass by pass only if that fails."""

_MOST_ROUNDS = 20


@dataclass(frozen=True)
class PrepStep:
    """What one pass did over all rounds.

    ``removed_nodes`` is negative for a pass that adds nodes. ``max_abs_error`` and ``sqnr_db`` tell
    how far the worst output was from the original's after the pass last changed something; None if
    it changed nothing that is computed, or was not proved by itself.
    """

    name: str
    modified: bool
    removed_nodes: int
    max_abs_error: float | None
    sqnr_db: float | None


@dataclass(frozen=True)
class Prepared:
    """The prepared model, and one step per pass in the order of ``PREP_PASSES``."""

    model: ir.Model
    steps: tuple[PrepStep, ...]


def prepare(
    model: ir.Model,
    *,
    static: bool,
    fixed_dims: Mapping[str, int] | None = None,
    example_inputs: Mapping[str, np.ndarray],
    progress: Progress | None = None,
    prove: bool = True,
) -> Prepared:
    """Fix shapes, then run ``PREP_PASSES`` until nothing changes.

    ``model`` is not changed: the work is done on a copy that shares its weights.

    Args:
        model: A float model.
        static: All dimensions are to be fixed, to the sizes of ``example_inputs`` where
            ``fixed_dims`` says nothing.
        fixed_dims: Sizes by the name of a dimension, by ``"input:axis"``, or by the name of an
            input with one dynamic dimension.
        example_inputs: One valid batch by input name; repeated or cut to the fixed sizes.
        progress: Told of each pass.
        prove: Compare outputs in ONNX Runtime after each pass that changed the graph.

    Raises:
        ConfigError: ``fixed_dims`` names an unknown dimension.
        ModelError: the model cannot be run, contradicts itself, stays dynamic although ``static``
            is asked for, or a pass changed its outputs (the message names the pass).
    """
    fixed = model.clone()
    name_nodes(fixed)
    changed = fix_shapes(fixed, static=static, fixed_dims=fixed_dims or {}, example_inputs=example_inputs)
    first = PrepStep("fix shapes", changed, 0, None, None)
    proof = Proof(model, fixed, example_inputs) if prove else None
    each = proof is not None and model_size(model) <= PROVE_EACH_BYTES
    work, steps = _run_passes(fixed.clone(), PREP_PASSES, proof if each else None, progress or Silent())
    if proof is not None and not each:
        steps = _prove_at_end(fixed, work, steps, proof)
    if static:
        check_static(work)
    name_nodes(work)
    return Prepared(work, (first, *steps))


def _prove_at_end(fixed: ir.Model, work: ir.Model, steps: Sequence[PrepStep], proof: Proof) -> tuple[PrepStep, ...]:
    """One proof for all passes together; if it fails, repeat them to find the culprit."""
    try:
        found = proof.check(work, "all passes together", "reorders")
    except ModelError:
        _run_passes(fixed.clone(), PREP_PASSES, proof, Silent())
        raise
    last = steps[-1]
    step = PrepStep(last.name, last.modified, last.removed_nodes, found.max_abs_error, found.sqnr_db)
    return (*steps[:-1], step)


def _run_passes(
    model: ir.Model, passes: Sequence[PrepPass], proof: Proof | None, progress: Progress
) -> tuple[ir.Model, tuple[PrepStep, ...]]:
    """Run ``passes`` in place, round by round, until one changes nothing."""
    modified: dict[str, bool] = {step.name: False for step in passes}
    removed: dict[str, int] = dict.fromkeys(modified, 0)
    proved: dict[str, Difference] = {}
    progress.start("prepare", None)
    try:
        for _ in range(_MOST_ROUNDS):
            again = False
            for step in passes:
                before = model.graph.num_nodes()
                changed = _apply(step, model)
                removed[step.name] += before - model.graph.num_nodes()
                if changed and proof is not None and step.effect != "annotates":
                    proved[step.name] = proof.check(model, step.name, step.effect)
                modified[step.name] |= changed
                again |= changed
                progress.advance()
            if not again:
                break
    finally:
        progress.finish()
    return model, tuple(_step(name, modified[name], removed[name], proved.get(name)) for name in modified)


def _apply(step: PrepPass, model: ir.Model) -> bool:
    try:
        return step(model).modified
    except EdgeqError:
        raise
    except Exception as error:  # a malformed model may fail anywhere; the user needs the place
        raise ModelError(
            f"preparation pass {step.name!r} cannot handle the model: {type(error).__name__}: {error}",
            where=f"pass {step.name!r}",
            remedy="check the model with onnx.checker; if it is valid, please report it with the model",
        ) from error


def _step(name: str, modified: bool, removed: int, found: Difference | None) -> PrepStep:
    if found is None:
        return PrepStep(name, modified, removed, None, None)
    return PrepStep(name, modified, removed, found.max_abs_error, found.sqnr_db)
