"""Loads and runs models with the ONNX Runtime of the interpreter that it is started with.

One JSON object per line comes in on stdin and one goes out on stdout; arrays travel in .npz files. What
libraries print goes to stderr. ``edgeq.sandbox.process`` is the other end and knows the same keys.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import queue
import re
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

# Telemetry is on by default since ONNX Runtime 1.29; it must be off before the first import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime as ort

__all__ = ["main", "perform"]

_ERROR = 3


def main() -> None:
    """Answer each line of stdin until it ends: then nobody waits any more, and the process ends at once."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print to stdout, which is the protocol's
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    _answer(answers, {"ready": ort.__version__})
    while True:
        task = json.loads(lines.get())
        try:
            answer = perform(task)
        except Exception as error:  # whatever the provider raises is its answer
            answer = {"status": "refused", "reason": str(error) or type(error).__name__}
        answer["version"] = _version(task["provider"]["package"])
        sys.stderr.flush()
        _answer(answers, answer)


def _read(lines: queue.Queue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)  # also when a task is running; without the destructors of libraries, some of which crash


def _answer(stream: TextIO, answer: dict[str, Any]) -> None:
    stream.write(json.dumps(answer) + "\n")
    stream.flush()


def perform(task: dict[str, Any]) -> dict[str, Any]:
    """Load ``task["model"]``, run each of ``task["feeds"]`` and save its outputs; the answer as a dictionary."""
    session = _open(task)
    names = [output.name for output in session.get_outputs()]
    for feed in task["feeds"]:
        with np.load(feed["file"], allow_pickle=False) as arrays:
            inputs = {name: arrays[f"a{index}"] for index, name in enumerate(feed["names"])}
        values = [_plain(value) for value in session.run(names, inputs)]
        with Path(feed["output"]).open("wb") as stream:
            np.savez(stream, **{f"a{index}": value for index, value in enumerate(values)})  # type: ignore[arg-type]
    assigned = _assigned(session)
    if "profile" in task["arguments"]:
        assigned = {**_profiled(session), **(assigned or {})}
    return {"status": "ran", "names": names, "assigned": assigned and _by_own_names(assigned)}


def _open(task: dict[str, Any]) -> ort.InferenceSession:
    provider = task["provider"]
    options = ort.SessionOptions()
    options.log_severity_level = _ERROR
    options.intra_op_num_threads = task["threads"]
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    for key, value in provider["session"].items():
        options.add_session_config_entry(key, value)
    for name, size in task["dimensions"].items():
        options.add_free_dimension_override_by_name(name, size)
    if "profile" in task["arguments"]:
        options.enable_profiling = True
        options.profile_file_prefix = task["arguments"]["profile"]
    if task["optimized"]:
        options.optimized_model_filepath = task["optimized"]
    chosen: list[Any] | None = None
    if provider["registration"] == "plugin":
        options.add_provider_for_devices(_devices(provider), provider["options"])
    elif provider["name"] not in ort.get_available_providers():
        raise RuntimeError(f"this build has no {provider['name']}, only {', '.join(ort.get_available_providers())}")
    elif provider["name"] == "CPUExecutionProvider":
        chosen = [provider["name"]]
    else:
        chosen = [(provider["name"], provider["options"]), "CPUExecutionProvider"]
    # Without enable_fallback=0, a provider that fails is silently replaced by the CPU.
    session = ort.InferenceSession(task["model"], options, providers=chosen, enable_fallback=0)
    session.disable_fallback()
    if provider["name"] not in session.get_providers():
        raise RuntimeError(f"{provider['name']} could not be started with the options {provider['options']}")
    return session


def _devices(provider: dict[str, Any]) -> list[Any]:
    """The devices of a plugin provider, whose library is registered once."""
    name = provider["name"]
    if not any(device.ep_name == name for device in ort.get_ep_devices()):
        module = importlib.import_module(provider["module"] or provider["package"].replace("-", "_"))
        ort.register_execution_provider_library(name, module.get_library_path())
    devices = [device for device in ort.get_ep_devices() if device.ep_name == name]
    if not devices:
        raise RuntimeError(f"{name} offers no device on this machine")
    return devices


def _assigned(session: ort.InferenceSession) -> dict[str, str] | None:
    """Node names to providers, or None where this version does not tell."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    groups = session.get_provider_graph_assignment_info()
    return {node.name: group.ep_name for group in groups for node in group.get_nodes()}


def _profiled(session: ort.InferenceSession) -> dict[str, str]:
    """The providers of the kernels that ran, by the names of their nodes.

    Providers that rewrite nodes for their layout (WebGPU) are not asked about those again, so that the
    assignment lacks them.
    """
    file = Path(session.end_profiling())
    events = json.loads(file.read_text(encoding="utf-8"))
    file.unlink()
    kernels = [event for event in events if event["name"].endswith("_kernel_time") and "provider" in event["args"]]
    return {event["name"].removesuffix("_kernel_time"): event["args"]["provider"] for event in kernels}


def _by_own_names(assigned: dict[str, str]) -> dict[str, str]:
    """A node that was rewritten for another layout is called ``NAME_token_7``: say it of ``NAME``, too."""
    named = {re.sub(r"_token_\d+$", "", name): provider for name, provider in assigned.items()}
    return {**named, **assigned}


def _plain(value: Any) -> np.ndarray:
    """An array that can be saved without pickle: strings come as objects."""
    array = np.asarray(value)
    return array.astype(str) if array.dtype == object else array


def _version(package: str) -> str:
    names = ["onnxruntime"] if package == "onnxruntime" else [package, "onnxruntime"]
    found = []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found) or f"onnxruntime {ort.__version__}"


if __name__ == "__main__":
    main()
