"""Decide: model + statistics + scheme + target -> ``QuantPlan``. Nothing is changed here."""

from edgeq.choose.layout import Layout, find_layout
from edgeq.choose.plan import choose_plan
from edgeq.choose.ranges import RANGE_METHODS

__all__ = ["RANGE_METHODS", "Layout", "choose_plan", "find_layout"]
