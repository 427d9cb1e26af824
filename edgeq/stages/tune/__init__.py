"""Give the graph the form that the target's execution provider really fuses.

``shape_float`` rewrites the float graph before anything is decided (the plan must see the final
nodes); ``finish`` stamps the quantized graph with the target's opset, IR version and Q/DQ domain;
``opset_note`` tells where the opset could not be the target's; ``stamp`` renews the fingerprint of a finished
graph that something was added to.
"""

from edgeq.stages.tune.finish import finish, stamp
from edgeq.stages.tune.float_forms import shape_float
from edgeq.stages.tune.opset import opset_note

__all__ = ["finish", "opset_note", "shape_float", "stamp"]
