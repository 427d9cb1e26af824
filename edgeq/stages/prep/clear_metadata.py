"""Remove doc strings and metadata of nodes and values.

Exporters put stack traces there, with the paths of the machine that exported: they make up
most of a small model's file and make equal models differ. The model's own metadata stays.
"""

from __future__ import annotations

import onnx_ir as ir

from edgeq.stages.prep.rewrite import PrepPass

__all__ = ["ClearMetadata"]


class ClearMetadata(PrepPass):
    """Nothing that ONNX Runtime reads is touched."""

    name = "clear metadata"
    effect = "annotates"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for graph in model.graphs():
            modified |= _clear(graph)
            for value in (*graph.inputs, *graph.initializers.values()):
                modified |= _clear(value)
            for node in graph:
                modified |= _clear(node)
                for output in node.outputs:
                    modified |= _clear(output)
        return ir.passes.PassResult(model, modified)


def _clear(item: ir.Graph | ir.Node | ir.Value) -> bool:
    found = bool(item.metadata_props or item.doc_string)
    item.metadata_props.clear()
    item.doc_string = None
    return found
