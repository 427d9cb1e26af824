"""Make an exported model's bytes depend on the model alone, not on the machine that exported it."""

from __future__ import annotations

import re

import onnx_ir as ir
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    RemoveUnusedFunctionsPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)

from edgeq import graph

__all__ = ["keep_outputs", "name_dims", "tidy"]


def tidy(model: ir.Model) -> ir.Model:
    """Drop doc strings and the metadata of nodes and values (stack traces, paths), in place.

    The metadata of the model itself is kept: it is its author's, and may hold labels.
    Every node and value gets a name. Weights are not touched: external data stays on disk.
    """
    metadata = dict(model.metadata_props)
    ClearMetadataAndDocStringPass()(model)
    model.metadata_props.update(metadata)
    for part in model.graphs():
        part.metadata_props.clear()
        part.doc_string = None
        for value in part.initializers.values():
            value.metadata_props.clear()
        for value in (*part.inputs, *part.outputs):
            value.metadata_props.clear()
    RemoveUnusedFunctionsPass()(model)
    RemoveUnusedOpsetsPass()(model)
    graph.name_nodes(model)
    return model


def keep_outputs(model: ir.Model, names: tuple[str, ...]) -> None:
    """Keep the outputs ``names``, in their order in the model, and what they need, in place."""
    kept = [value for value in model.graph.outputs if value.name in names]
    model.graph.outputs.clear()
    model.graph.outputs.extend(kept)
    RemoveUnusedNodesPass()(model)


def name_dims(model: ir.Model) -> None:
    """Give torch's symbols (``s77``) names that say something: ``batch`` for a first axis, else ``INPUT_AXIS``."""
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, dim in enumerate(value.shape or ()):
            symbol = dim.value if isinstance(dim, ir.SymbolicDim) else None
            if symbol is not None and _SYMBOL.fullmatch(symbol) and symbol not in names:
                first = axis == 0 and "batch" not in names.values()
                names[symbol] = "batch" if first else f"{value.name}_{axis}"
    if not names:
        return
    values = [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(dim, names) for dim in value.shape])


_SYMBOL = re.compile(r"s\d+")


def _renamed(dim: int | ir.SymbolicDim, names: dict[str, str]) -> int | str | None:
    if isinstance(dim, int) or dim.value is None:
        return dim if isinstance(dim, int) else None
    return re.sub(r"\bs\d+\b", lambda match: names.get(match[0], match[0]), dim.value)
