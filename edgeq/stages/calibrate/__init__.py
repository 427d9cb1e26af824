"""Calibration: from a user's data to streamed statistics of a float model's tensors."""

from edgeq.stages.calibrate.feeds import Feed, check_data, load_feed, split_feed
from edgeq.stages.calibrate.observe import calibrate

__all__ = ["Feed", "calibrate", "check_data", "load_feed", "split_feed"]
