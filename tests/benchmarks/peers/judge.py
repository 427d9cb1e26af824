"""What a model file is worth: the same code for every tool's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.errors import ModelError
from edgeq.metrics import recall_at_1, sqnr_db, top_k_accuracy, top_k_agreement
from edgeq.runtime import Optimization, open_session, session_options
from edgeq.stages.run.accuracy import pool
from edgeq.stages.run.latency import Timing, take_turns
from peers.networks import RIGHT, Network, load
from peers.tools import one_line


def size_mb(path: Path) -> float:
    """The model file with the external data beside it, which nothing else in its folder may look like."""
    return (path.stat().st_size + sum(f.stat().st_size for f in path.parent.glob(f"{path.name}*data"))) / 1e6


def outputs(model: Path, feeds: Iterable[Mapping[str, np.ndarray]], optimization: Optimization) -> list[np.ndarray]:
    """The first output for every feed; inputs that a tool has removed are left out."""
    with open_session(model, session_options(optimization=optimization)) as session:
        names = {each.name for each in session.get_inputs()}
        first = session.get_outputs()[0].name
        return [session.run([first], {k: v for k, v in feed.items() if k in names})[0] for feed in feeds]


def judge(network: Network, model: Path, precision: str) -> dict[str, Any]:
    """SQNR in dB, agreement and task accuracy (0 .. 1) beside the float model.

    W8A8 as ONNX Runtime's kernels compute it on this machine; other precisions, which no processor here has, by the
    specification's arithmetic (no graph optimization). So are models that ONNX Runtime's optimizer fails on:
    ``unoptimized`` then says why, and there is no latency.
    """
    score = retrieval if network.task == "retrieval" else classes
    if precision != "w8a8":
        return score(network, model, "none")
    try:
        with open_session(model, session_options()):
            pass
    except ModelError as error:
        return {**score(network, model, "none"), "unoptimized": one_line(str(error))}
    return score(network, model, "all")


def classes(network: Network, model: Path, optimization: Optimization) -> dict[str, Any]:
    """Logits: agreement is the share of held-out samples with float's first class."""
    ours = np.concatenate(outputs(model, network.samples("held_out"), optimization))
    theirs = reference(network, "held_out")
    right = load(network.folder / "task.npz")[f"{RIGHT}classes"]
    logits = np.concatenate(outputs(model, network.samples("task"), optimization))
    return {
        "sqnr_db": sqnr_db(theirs, ours),
        "agreement": top_k_agreement(theirs, ours),
        "accuracy": top_k_accuracy(logits, right.tolist()),
    }


def retrieval(network: Network, model: Path, optimization: Optimization) -> dict[str, Any]:
    """Mean-pooled, normalized embeddings: agreement is the share of queries that find the document float finds."""
    ours, theirs = (
        embeddings(network, outputs(model, network.samples("task"), optimization)),
        embeddings(network, list(reference(network, "task")[:, None])),
    )
    half = len(ours) // 2
    found = [(e[:half] @ e[half:].T).argmax(axis=1) for e in (theirs, ours)]
    return {
        "sqnr_db": sqnr_db(theirs, ours),
        "agreement": float((found[0] == found[1]).mean()),
        "accuracy": recall_at_1(ours[:half], ours[half:]),
    }


def embeddings(network: Network, hidden: list[np.ndarray]) -> np.ndarray:
    masks = load(network.folder / "task.npz")["attention_mask"]
    return np.concatenate([pool(h, mask) for h, mask in zip(hidden, masks, strict=True)])


def reference(network: Network, kind: str) -> np.ndarray:
    """The float model's first output ``[samples, ...]``, kept beside it."""
    path = network.folder / f"{kind}-float.npy"
    if not path.exists():
        np.save(path, np.concatenate(outputs(network.float, network.samples(kind), "all")))
    return np.load(path)


def latency(network: Network, models: Mapping[str, Path], seconds: float) -> dict[str, dict[str, float]]:
    """By name, ``ms`` (median of wall time), ``wall_ratio`` and ``cpu_ratio`` to float: all take turns, on one thread.

    ``cpu_ratio`` is the median over the turns of the CPU time beside float's in the same turn.
    """
    inputs = next(network.samples("task", 1))
    files: dict[str, Any] = {"float": network.float, **models}
    with take_turns(files, inputs, timing=Timing(seconds=seconds)) as lanes:
        wall = {name: float(np.median(lane.wall)) for name, lane in lanes.items()}
        cpu = {name: np.maximum(lane.cpu, 1e-6) for name, lane in lanes.items()}
    return {
        name: {
            "ms": wall[name],
            "wall_ratio": wall[name] / wall["float"],
            "cpu_ratio": float(np.median(cpu[name] / cpu["float"])),
        }
        for name in files
    }
