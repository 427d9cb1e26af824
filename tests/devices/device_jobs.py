"""Jobs for the small bundle, as short as they can be, or as long as a test needs to interrupt them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from edgeq.bundle import Bundle, read_bundle
from edgeq.devices.protocol import Arrays, Entry, Job
from edgeq.devices.registry import parse_device

__all__ = ["sample_feeds", "small_job"]


def sample_feeds(bundle: Bundle) -> tuple[Arrays, ...]:
    """The bundle's own sample inputs."""
    samples = bundle.manifest.samples
    assert samples is not None
    arrays = {name: np.load(bundle.file(file)) for name, file in samples.inputs.items()}
    return tuple({name: array[i] for name, array in arrays.items()} for i in range(samples.count))


def small_job(bundle: Bundle, *, seconds: float = 0.0, timeout_s: float = 300.0, cores: str = "all") -> Job:
    """Three runs, or runs for some seconds."""
    return Job(
        entries=(Entry("small", bundle, bundle.manifest.main),),
        feeds=sample_feeds(bundle)[:2],
        warmup_runs=1,
        warmup_s=0.0,
        min_runs=3,
        max_runs=3 if seconds == 0 else 1_000_000,
        seconds=seconds,
        timeout_s=timeout_s,
        cores=cores,
    )


if __name__ == "__main__":  # a process that can be interrupted: BUNDLE DEVICE
    parse_device(sys.argv[2]).run(small_job(read_bundle(Path(sys.argv[1])), seconds=60))
