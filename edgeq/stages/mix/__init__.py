"""Which group of nodes gets which format: its effect on the output, its cost, and a solver between both.

``groups`` finds what changes format together, ``sensitivity`` measures what each place does to the output,
``cost`` what each format takes in time and bytes; ``problem`` states the choice, ``solve`` makes it.
"""

from edgeq.stages.mix.cost import (
    Profile,
    Rates,
    estimate_conversion,
    estimate_group,
    group_bytes,
    measure_rates,
    profile,
    tensor_shapes,
)
from edgeq.stages.mix.groups import Group, Structure, find_groups
from edgeq.stages.mix.problem import FLOAT, Link, Option, Problem, Totals, Unit, total
from edgeq.stages.mix.sensitivity import Effect, Source, activation_sources, group_sources, measure, weight_sources
from edgeq.stages.mix.solve import cheapest, solve

__all__ = [
    "FLOAT",
    "Effect",
    "Group",
    "Link",
    "Option",
    "Problem",
    "Profile",
    "Rates",
    "Source",
    "Structure",
    "Totals",
    "Unit",
    "activation_sources",
    "cheapest",
    "estimate_conversion",
    "estimate_group",
    "find_groups",
    "group_bytes",
    "group_sources",
    "measure",
    "measure_rates",
    "profile",
    "solve",
    "tensor_shapes",
    "total",
    "weight_sources",
]
