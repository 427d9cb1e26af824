"""Make an exported model's bytes depend on the model alone, not on the machine that exported it."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    RemoveUnusedFunctionsPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)

from edgeq import graph

__all__ = ["keep_outputs", "tidy"]


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
