"""Calibration: from a user's data to streamed statistics of a float model's tensors."""

from edgeq.stages.calibrate.feeds import Feed, load_feed, split_feed
from edgeq.stages.calibrate.observe import calibrate

__all__ = ["Feed", "calibrate", "load_feed", "split_feed"]
