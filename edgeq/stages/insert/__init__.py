"""Perform a ``QuantPlan``: integer weights, int32 biases and Q/DQ pairs, exactly as decided."""

from edgeq.stages.insert.qdq import insert_qdq
from edgeq.stages.insert.verify import verify_qdq

__all__ = ["insert_qdq", "verify_qdq"]
