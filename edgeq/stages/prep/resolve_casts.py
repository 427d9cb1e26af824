"""CastLike becomes Cast where the wanted type is known: the second operand is then free to go."""

from __future__ import annotations

import onnx_ir as ir

from edgeq.stages.prep.rewrite import NodePass, replace

__all__ = ["ResolveCasts"]


class ResolveCasts(NodePass):
    """Few providers know CastLike, and a Cast of a constant folds."""

    name = "resolve casts"
    ops = frozenset({"CastLike"})

    def rewrite(self, node: ir.Node) -> bool:
        value, like = node.inputs
        if like is None or like.dtype is None:
            return False
        replace(node, "Cast", [value], {"to": int(like.dtype)})
        return True
