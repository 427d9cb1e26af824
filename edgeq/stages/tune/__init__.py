"""Give the graph the form that the target's execution provider really fuses.

``shape_float`` rewrites the float graph before anything is decided (the plan must see the final
nodes); ``finish`` stamps the quantized graph with the target's opset and IR version.
"""

from edgeq.stages.tune.finish import finish
from edgeq.stages.tune.float_forms import shape_float

__all__ = ["finish", "shape_float"]
