"""Whether a device that runs one execution provider takes a graph that was made for another."""

from __future__ import annotations

from edgeq.devices.protocol import Entry
from edgeq.errors import MissingProviderError

__all__ = ["made_for"]

_ANYWHERE = "CPUExecutionProvider"


def made_for(entry: Entry, provider: str, spelling: str, target: str) -> bool:
    """True if the graph was made for ``provider``, False if for the CPU: those are plain ONNX, and others take them.

    Raises:
        MissingProviderError: it was made for a third one, whose operators and types mean nothing here; ``target``
            would suit.
    """
    made = entry.graph.provider.name
    if made not in (provider, _ANYWHERE):
        raise MissingProviderError(
            f"{spelling} has no {made}, for which the graph for {entry.graph.target} was made",
            remedy=f"run it where that provider exists, or package the model for {target}",
        )
    return made == provider
