"""A whole data set through a device, in parts that never take much room."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from edgeq.devices.protocol import Arrays, Device, Job

__all__ = ["stream"]

_ROOM = 64 * 2**20
"""Bytes of inputs and outputs that are on their way at once, here and there."""

_FIRST = 8
_MOST = 1024


def stream(device: Device, job: Job, batches: Iterable[Arrays]) -> Iterator[tuple[Arrays, Arrays]]:
    """Each batch with what the one entry of ``job`` makes of it, in order; nothing is measured.

    A few batches go first: how large their outputs are says how many the next part may hold.

    Raises:
        EdgeqError: see ``Device.run``.
    """
    remaining, count = iter(batches), _FIRST
    while part := tuple(islice(remaining, count)):
        (run,) = device.run(replace(job, feeds=part, measure=False, profile=False)).runs
        yield from zip(part, run.outputs, strict=True)
        each = max((_bytes(part) + _bytes(run.outputs)) // len(part), 1)
        count = min(max(_ROOM // each, 1), _MOST)


def _bytes(batches: Sequence[Arrays]) -> int:
    return sum(array.nbytes for batch in batches for array in batch.values())
