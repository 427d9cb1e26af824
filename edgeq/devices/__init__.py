"""Devices: where a bundle is run and measured, on the thing itself or on what stands in for it."""

from __future__ import annotations

from edgeq.devices.protocol import Arrays, Device, Entry, Job, Outcome

__all__ = ["Arrays", "Device", "Entry", "Job", "Outcome"]
