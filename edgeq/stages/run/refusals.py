"""Why a plugin provider refused a node: only its verbose log tells, so a child process writes one and we read it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgeq.stages.run.kernels import PLUMBING, labelled

if TYPE_CHECKING:
    from edgeq.target import Provider

__all__ = ["Refusals", "parse_refusals", "read_refusals"]

_TIMEOUT_S = 300
_UNIT = re.compile(r"Validation FAILED for \d+ nodes in .*?\n((?:\s*Operator type: .*\n)+)\s*REASON : (.*)")
_MEMBER = re.compile(r"Operator type: (\S+) Node name: (\S+)")
_OPERATION = re.compile(r"Qnn_OpConfig node name: (\S+) .*QNN_op_type: (\S+) .*\n((?:.*\n)*?)\s*node_params")
_INVALID = re.compile(r"backendValidateOpConfig\(\) failed for node `(\S+)` of type `(\S+)` with error code (\d+)")


_WHOLE = re.compile(
    r"GetCapability\(\) for \S+ failed with error: (?:\[ONNXRuntimeError\] : \d+ : \w+ : )?([^\n\x1b]*)"
)


@dataclass(frozen=True)
class Refusals:
    """Reasons by node index, and why the provider took nothing at all, if it said so."""

    nodes: dict[int, str]
    whole: str | None = None


def read_refusals(model: Path, provider: Provider) -> Refusals:
    """Reasons for a file whose nodes carry labels; empty if the log tells nothing."""
    job = msgspec.json.encode({"model": str(model), "provider": msgspec.to_builtins(provider)})
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    try:
        child = subprocess.run(
            [sys.executable, "-m", "edgeq.stages.run.refusals"],
            input=job,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Refusals({})
    return parse_refusals(child.stderr.decode(errors="replace"))


def parse_refusals(log: str) -> Refusals:
    """Reasons from QNN's verbose log, in its own words plus the types that it was offered."""
    offered: dict[str, str] = {}
    for name, op, tensors in _OPERATION.findall(log):
        types = re.findall(r"(node_outputs)|dataType=QNN_DATATYPE_(\w+)", tensors)
        sides: list[list[str]] = [[]]
        for marker, found in types:
            if marker:
                sides.append([])
            else:
                sides[-1].append(found.lower().replace("_point", ""))
        offered[name] = f"{op} of ({', '.join(sides[0])}) to ({', '.join(sides[-1])})"
    invalid = {labelled(name): (offered.get(name, op), code) for name, op, code in _INVALID.findall(log)}
    reasons: dict[int, str] = {}
    for members, reason in _UNIT.findall(log):
        for op, name in _MEMBER.findall(members):
            index = labelled(name)
            if index is None or op in PLUMBING or index in reasons:
                continue
            if index in invalid:
                operation, code = invalid[index]
                reasons[index] = f"the provider does not support {operation} (its error {code})"
            else:
                reasons[index] = f"refused by the provider: {reason.strip().rstrip('.')}"
    whole = _WHOLE.search(log)
    return Refusals(reasons, whole.group(1).strip() if whole else None)


def _main() -> None:
    import onnxruntime

    from edgeq.runtime import open_session, session_options
    from edgeq.target import Provider

    onnxruntime.set_default_logger_severity(2)
    job = msgspec.json.decode(sys.stdin.buffer.read())
    provider = msgspec.convert(job["provider"], Provider)
    config = {key: value for key, value in provider.session.items() if key != "session.disable_cpu_ep_fallback"}
    options = session_options(threads=1, config=config)
    options.log_severity_level = 0
    with open_session(job["model"], options, provider):
        pass


if __name__ == "__main__":
    _main()
