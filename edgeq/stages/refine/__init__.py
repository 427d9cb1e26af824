"""Improve a plan block by block, with everything before a block quantized; the result is never worse."""

from edgeq.stages.refine.sweep import Refined, refine

__all__ = ["Refined", "refine"]
