"""How well the prediction of where nodes run was met by the provider: one figure, and which nodes differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from edgeq.report import NodePlacement

__all__ = ["agreement", "agrees", "disagreeing"]


def agrees(place: NodePlacement, placement: Mapping[str, NodePlacement]) -> bool | None:
    """Whether one node runs as predicted; None where nothing was predicted, or the provider does not tell.

    ``placement`` holds all nodes of the graph by name. A node agrees if the provider is the predicted
    one and

    - it was predicted ``fused``: another node's integer kernel does its work;
    - ``integer``: an integer kernel of its own does; being merged into another's was not promised;
    - ``moves data``: it moves integers or indices, alone or as part of a kernel that does nothing else
      or computes in integers;
    - ``float``: a float kernel does, its own or one that several float nodes were merged into.

    A node that was computed while loading, or optimized away, costs nothing at run time: it agrees with
    any prediction.
    """
    if place.predicted is None or place.runs_as == "not run here":
        return None
    if place.kind == "fused" and place.fused_into is None:
        return True
    if place.provider != place.predicted_provider:
        return False
    head = placement.get(str(place.fused_into)) if place.kind == "fused" else place
    if head is None:
        return False
    if place.predicted == "fused":
        return place.kind == "fused" and head.kind == "integer"
    if place.predicted == "moves data":
        return head.kind in ("moves data", "integer")
    if place.predicted == "float":
        return head.kind == "float"
    return place.kind == "integer"


def agreement(placement: Iterable[NodePlacement]) -> float | None:
    """The share of nodes (0 to 1) that run as predicted; None where the provider tells of none."""
    by_name = {place.node: place for place in placement}
    found = [found for place in by_name.values() if (found := agrees(place, by_name)) is not None]
    return sum(found) / len(found) if found else None


def disagreeing(placement: Iterable[NodePlacement]) -> tuple[NodePlacement, ...]:
    """The nodes that run otherwise than predicted, in their order."""
    by_name = {place.node: place for place in placement}
    return tuple(place for place in by_name.values() if agrees(place, by_name) is False)
