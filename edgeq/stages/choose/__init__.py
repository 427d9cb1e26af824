"""Decide: model + statistics + scheme + target -> ``QuantPlan``. Nothing is changed here."""

from edgeq.stages.choose.forecast import forecast_nodes
from edgeq.stages.choose.islands import find_islands, forecast_floats
from edgeq.stages.choose.joins import UnequalJoin, find_unequal_joins, integer_joins, joined_parts
from edgeq.stages.choose.kernels import formats_of
from edgeq.stages.choose.layout import Layout, find_layout
from edgeq.stages.choose.plan import choose_plan
from edgeq.stages.choose.ranges import RANGE_METHODS

__all__ = [
    "RANGE_METHODS",
    "Layout",
    "UnequalJoin",
    "choose_plan",
    "find_islands",
    "find_layout",
    "find_unequal_joins",
    "forecast_floats",
    "forecast_nodes",
    "formats_of",
    "integer_joins",
    "joined_parts",
]
