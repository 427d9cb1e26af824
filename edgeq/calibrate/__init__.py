"""Calibration: from a user's data to streamed statistics of a float model's tensors."""
