"""All sandboxes by name: the one place that knows them. Each has a file of its own; add a line here."""

from __future__ import annotations

from edgeq.errors import ConfigError
from edgeq.sandbox.browser import browser_sandboxes
from edgeq.sandbox.emulated import emulated_processors
from edgeq.sandbox.local import CpuSandbox, QnnSandbox
from edgeq.sandbox.protocol import Sandbox
from edgeq.sandbox.venvs import VenvSandbox
from edgeq.sandbox.webgpu import WebGpuSandbox

__all__ = ["find_sandbox", "sandbox_names"]

_SANDBOXES: tuple[Sandbox, ...] = (
    CpuSandbox(),
    QnnSandbox(),
    *emulated_processors(),
    VenvSandbox("openvino"),
    VenvSandbox("tensorrt-rtx", gives="build", script="trt_worker.py", option="capabilities"),
    WebGpuSandbox(),
    *browser_sandboxes(),
)


def sandbox_names() -> tuple[str, ...]:
    """The names of all sandboxes, whether installed or not."""
    return tuple(sandbox.name for sandbox in _SANDBOXES)


def find_sandbox(name: str) -> Sandbox:
    """The sandbox of that name; raises ConfigError that lists what there is."""
    for sandbox in _SANDBOXES:
        if sandbox.name == name:
            return sandbox
    raise ConfigError(f"there is no sandbox {name!r}", remedy=f"choose one of: {', '.join(sandbox_names())}")
