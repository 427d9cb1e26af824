"""Learned rounding, scales and biases by gradient: AdaRound, BRECQ and QDrop as one engine. All of it is torch."""

from edgeq.stages.refine.learn.reconstruct import Learned, reconstruct
from edgeq.stages.refine.learn.settings import Settings, default_settings

__all__ = ["Learned", "Settings", "default_settings", "reconstruct"]
