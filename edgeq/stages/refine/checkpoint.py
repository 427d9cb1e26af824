"""What was decided block by block, in files of a folder, so that an interrupted run goes on where it ended.

A file holds what one block changed of the plan: arrays, and a JSON header that says where they belong. No pickle;
its sha256 is in the file, so that damage is noticed.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir

from edgeq.errors import OutputError
from edgeq.graph import fingerprint
from edgeq.output import atomic_file
from edgeq.qtypes import Decision, IntType, PerAxis, PerBlock, PerTensor, QParams, QuantPlan, TensorSpec, Trial

__all__ = ["Checkpoint", "key_of"]

_VERSION = 1
"""Counts up whenever the same input gives another result: older files are then computed again."""

_log = logging.getLogger(__name__)


def key_of(model: ir.Model, plan: QuantPlan, samples: Iterable[Mapping[str, np.ndarray]], *options: object) -> str:
    """A name for all that the outcome depends on: model, plan, samples and options."""
    digest = hashlib.sha256(f"{_VERSION} {fingerprint(model)} {plan.scheme.name} {plan.target} {options}".encode())
    for decision in plan:
        digest.update(repr((decision.tensor, decision.role, decision.consumers, decision.shares)).encode())
        if decision.qparams is not None:
            digest.update(repr(decision.qparams.spec).encode())
            digest.update(decision.qparams.scale.tobytes() + decision.qparams.zero_point.tobytes())
    for name, array in sorted(plan.weights.items()):
        digest.update(f"{name}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    for sample in samples:
        for name, array in sorted(sample.items()):
            digest.update(f"{name}{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:24]


class Checkpoint:
    """One folder per key; a ``folder`` of None keeps nothing. A cache that cannot be written costs a warning."""

    def __init__(self, folder: Path | None, key: str) -> None:
        self.folder = None if folder is None else folder / f"refine-{key}"

    def save(self, step: str, before: QuantPlan, after: QuantPlan, trials: tuple[Trial, ...]) -> None:
        """Keep what ``step`` changed of ``before``, and what was tried."""
        if self.folder is None:
            return
        payload = _pack(before, after, trials)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(self.folder / f"{step}.npz") as work:
                work.write_bytes(hashlib.sha256(payload).digest() + payload)
        except (OutputError, OSError) as error:
            _log.warning("refining cannot be resumed, as its cache is not written: %s", error)

    def load(self, step: str, before: QuantPlan) -> tuple[QuantPlan, tuple[Trial, ...]] | None:
        """The plan after ``step``, and what was tried; None where it is not known, or the file is damaged."""
        if self.folder is None:
            return None
        path = self.folder / f"{step}.npz"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("%s is not readable (%s): computing again", path, error.strerror)
            return None
        if hashlib.sha256(data[32:]).digest() != data[:32]:
            _log.warning("%s is damaged: computing again", path)
            return None
        return _unpack(data[32:], before)


def _pack(before: QuantPlan, after: QuantPlan, trials: tuple[Trial, ...]) -> bytes:
    known = {id(decision): index for index, decision in enumerate(before)}
    arrays: dict[str, np.ndarray] = {}
    order: list[Any] = []
    for index, decision in enumerate(after):
        order.append(known.get(id(decision), _describe(decision, index, arrays)))
    weights = [name for name, array in after.weights.items() if before.weights.get(name) is not array]
    arrays.update({f"weight{i}": after.weights[name] for i, name in enumerate(weights)})
    header = {"decisions": order, "weights": weights, "trials": [msgspec.to_builtins(trial) for trial in trials]}
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def _unpack(payload: bytes, before: QuantPlan) -> tuple[QuantPlan, tuple[Trial, ...]]:
    with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
        header = json.loads(arrays["header"].tobytes())
        decisions = tuple(
            before.decisions[entry] if isinstance(entry, int) else _restore(entry, arrays)
            for entry in header["decisions"]
        )
        weights = {name: arrays[f"weight{i}"] for i, name in enumerate(header["weights"])}
    trials = tuple(msgspec.convert(trial, Trial) for trial in header["trials"])
    return replace(before, decisions=decisions, weights={**before.weights, **weights}), trials


def _describe(decision: Decision, index: int, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The decision as JSON, and its numbers under ``arrays``."""
    said: dict[str, Any] = {
        "index": index,
        "tensor": decision.tensor,
        "role": decision.role,
        "consumers": decision.consumers,
        "rule": decision.rule,
        "skip_reason": decision.skip_reason,
        "shares": decision.shares,
    }
    if decision.qparams is not None:
        spec, granularity = decision.qparams.spec, decision.qparams.spec.granularity
        arrays[f"scale{index}"] = decision.qparams.scale
        # Types of 2 and 4 bits are none of numpy's own.
        arrays[f"zero{index}"] = decision.qparams.zero_point.astype(np.int32)
        said["spec"] = [spec.dtype.name, spec.symmetric, spec.reduced, spec.power_of_two]
        if isinstance(granularity, PerAxis):
            said["granularity"] = [granularity.axis]
        elif isinstance(granularity, PerBlock):
            said["granularity"] = [granularity.axis, granularity.size, granularity.scale_bits]
        else:
            said["granularity"] = []
    return said


def _restore(said: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Decision:
    qparams = None
    if "spec" in said:
        name, symmetric, reduced, power_of_two = said["spec"]
        form = said["granularity"]
        granularity = PerBlock(*form) if len(form) == 3 else PerAxis(*form) if form else PerTensor()
        spec = TensorSpec(IntType.parse(name), symmetric, granularity, reduced, power_of_two)
        zero = arrays[f"zero{said['index']}"].astype(spec.dtype.dtype)
        qparams = QParams(arrays[f"scale{said['index']}"], zero, spec)
    return Decision(
        said["tensor"],
        said["role"],
        tuple(said["consumers"]),
        said["rule"],
        qparams,
        said["skip_reason"],
        said["shares"],
    )
