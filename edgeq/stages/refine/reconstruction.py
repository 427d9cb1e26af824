"""Reconstruction of a block by gradient (effort 2) as one more candidate; torch is imported only here, and late."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

from edgeq.blocks import Block, restrict_plan
from edgeq.qtypes import QuantPlan
from edgeq.revise import merge, weight_of
from edgeq.stages.refine.borders import Borders, Side
from edgeq.stages.refine.layers import Candidate
from edgeq.target import TargetProfile

__all__ = ["missing_torch", "reconstructed", "unsupported_nodes"]


def missing_torch() -> str | None:
    """Why nothing is learned here, or None if torch is installed."""
    if importlib.util.find_spec("torch") is not None:
        return None
    return "nothing was learned by gradient, as torch is not installed: pip install torch"


def unsupported_nodes(part: ir.Model) -> list[str]:
    """The nodes of a block that have no form in torch, with reasons."""
    from edgeq.torch_graph import unsupported

    return unsupported(part)


def reconstructed(
    model: ir.Model,
    plan: QuantPlan,
    part: ir.Model,
    block: Block,
    borders: Borders,
    samples: Sequence[int],
    *,
    target: TargetProfile,
    settled: Iterable[str],
    seed: int,
) -> Candidate:
    """The plan with roundings, scales and biases of ``block`` as learned on ``samples``.

    What an earlier block has ``settled`` stays, and so do weights that other nodes read, too; where kernels add
    pairs of products in 16 bits, the levels of all weights stay.
    """
    from edgeq.stages.refine.learn import reconstruct

    def arrays(side: Side, names: Sequence[str]) -> dict[str, list[np.ndarray]]:
        rows = [borders.get(side, names, sample) for sample in samples]
        return {name: [row[name] for row in rows] for name in names}

    owners = set(settled)
    frozen = {d.tensor for d in plan if d.role == "activation" and (d.shares or d.tensor) in owners}
    weights = [w.tensor for node in block.heavy if (w := weight_of(plan, model, node)) is not None]
    frozen.update(name for name in weights if _readers(model, name) > 1)
    learned = reconstruct(
        part,
        restrict_plan(plan, part),
        arrays("float", block.inputs),
        arrays("quantized", block.inputs),
        arrays("float", block.outputs),
        masks=[borders.masks.get(sample) for sample in samples],
        seed=seed,
        frozen=frozenset(frozen),
        fixed_rounding=frozenset(weights) if target.weights.pair_limit is not None else frozenset(),
    )
    return Candidate("reconstruction", merge(plan, model, learned.plan))


def _readers(model: ir.Model, tensor: str) -> int:
    value = model.graph.initializers.get(tensor)
    return 0 if value is None else len(value.uses())
