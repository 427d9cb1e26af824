"""Parses models and builds engines of them with TensorRT-RTX, on the processor: no GPU, no driver, no numbers.

One JSON object per line comes in on stdin and one goes out on stdout, as in ``ort_worker.py``.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from typing import Any, TextIO

import tensorrt_rtx_bindings as trt

__all__ = ["main", "perform"]

_CAPABILITIES = "SM89 SM120"
"""GPUs of the Ada and Blackwell generations; ``arguments.capabilities`` names others."""


class _Log(trt.ILogger):  # type: ignore[misc]
    """Keeps what TensorRT calls an error."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        if severity <= trt.ILogger.Severity.ERROR:
            self.errors.append(message)


def main() -> None:
    """Answer each line of stdin until it ends: then nobody waits any more, and the process ends at once."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print to stdout, which is the protocol's
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    _answer(answers, {"ready": trt.__version__})
    while True:
        task = json.loads(lines.get())
        try:
            answer = perform(task)
        except Exception as error:  # whatever the builder raises is its answer
            answer = {"status": "refused", "reason": str(error) or type(error).__name__}
        _answer(answers, {**answer, "version": f"tensorrt-rtx {trt.__version__}"})


def _read(lines: queue.Queue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)  # also when a build is running


def _answer(stream: TextIO, answer: dict[str, Any]) -> None:
    stream.write(json.dumps(answer) + "\n")
    stream.flush()


def perform(task: dict[str, Any]) -> dict[str, Any]:
    """Parse and build ``task["model"]`` for each GPU generation; parsing alone lets through what never builds."""
    log = _Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(task["model"]):
        found = [parser.get_error(index) for index in range(parser.num_errors)]
        return _refused([f"{e.node_operator()} {e.node_name()!r}: {e.desc()}" for e in found] or log.errors)
    names = str(task["arguments"].get("capabilities", _CAPABILITIES)).split()
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    _fix_shapes(builder, network, config)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        return _refused(log.errors or ["the builder gave no engine and no reason"])
    return {"status": "built", "reason": f"an engine of {engine.nbytes / 1e6:.2f} MB for {', '.join(names)}"}


def _refused(reasons: list[str]) -> dict[str, Any]:
    return {"status": "refused", "reason": "; ".join(reasons[:3])}


def _fix_shapes(builder: Any, network: Any, config: Any) -> None:
    """Dynamic dimensions need a profile with the sizes that the engine is to serve: 1 to 8 of each."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    if not any(size < 0 for tensor in inputs for size in tensor.shape):
        return
    profile = builder.create_optimization_profile()
    for tensor in inputs:
        low, high = ([most if size < 0 else size for size in tensor.shape] for most in (1, 8))
        profile.set_shape(tensor.name, low, high, high)
    config.add_optimization_profile(profile)


if __name__ == "__main__":
    main()
