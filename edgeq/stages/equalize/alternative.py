"""One rewrite of the float graph that may make it quantize better: its name, its cost, and how it is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.graph import Names, constant_array, set_initializer

__all__ = ["Alternative", "set_constant"]


@dataclass(frozen=True)
class Alternative:
    """A rewrite that the caller may carry out, in place, on the model or on any part that holds its nodes.

    ``place`` is the tensor whose channels change their scale, ``method`` says how, in words for the report.
    ``added`` counts the nodes that the model gets more; ``structural`` tells whether any node comes, goes or
    becomes another, so that the layout must be found again. ``exact`` is False where the function stays the
    same for what calibration saw, and not for everything.
    """

    place: str
    method: str
    apply: Callable[[ir.Model], None]
    added: int = 0
    structural: bool = False
    exact: bool = True


def set_constant(model: ir.Model, node: ir.Node, position: int, array: np.ndarray) -> None:
    """Give ``node`` another constant at ``position``: under the old name, unless others read that, too.

    Where the node has fewer inputs, it gets more.
    """
    array = array.astype(np.float32)
    if len(node.inputs) <= position:
        node.resize_inputs(position + 1)
    held = node.inputs[position]
    own = held is not None and held.name in model.graph.initializers and len(held.uses()) == 1
    if held is not None and own and not held.is_graph_output():
        set_initializer(model, str(held.name), array)
        return
    assert held is None or constant_array(held) is not None
    stem = f"{node.name}_constant_{position}" if held is None else f"{held.name}_equalized"
    node.replace_input_with(position, set_initializer(model, Names(model).fresh(stem), array))
