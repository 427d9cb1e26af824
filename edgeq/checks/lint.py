"""Rules of a profile, checked on a finished model without running it: independent of the stages that wrote it.

Where nothing runs a target on a PC, this is all that can be said. Each rule reads the graph and the
profile anew, so that a stage which forgets one is caught.
"""

from __future__ import annotations

import onnx_ir as ir

from edgeq.checks.rules import Rule, Violation
from edgeq.checks.rules_graph import GRAPH_RULES
from edgeq.checks.rules_ops import OPERATOR_RULES
from edgeq.checks.rules_types import TYPE_RULES
from edgeq.checks.view import View
from edgeq.target import TargetProfile

__all__ = ["RULES", "Violation", "lint"]

RULES: tuple[Rule, ...] = (*GRAPH_RULES, *TYPE_RULES, *OPERATOR_RULES)
"""All rules, in the order in which they are reported."""


def lint(model: ir.Model, profile: TargetProfile) -> list[Violation]:
    """Every place where ``model`` breaks a rule of ``profile``, rule by rule."""
    view = View(model, profile)
    return [
        Violation(rule=rule.name, severity=rule.severity, node=node, text=text)
        for rule in RULES
        for node, text in rule.find(view)
    ]
