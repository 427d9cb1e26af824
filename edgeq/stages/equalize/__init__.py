"""Rewrite the float graph so that it computes the same and quantizes better."""

from edgeq.stages.equalize.smooth import Smoothing, smooth

__all__ = ["Smoothing", "smooth"]
