"""The providers that can share edgeq's own packages, still in a process of their own: the CPU, and Qualcomm's emulator.

The HTP emulator is a plugin of the ONNX Runtime that is installed; it can end the process.
"""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import msgspec

from edgeq.errors import ProviderError
from edgeq.progress import Progress
from edgeq.sandbox.process import Worker, python_command, run_tasks
from edgeq.sandbox.protocol import Outcome, Task

if TYPE_CHECKING:
    from edgeq.target import Provider

__all__ = ["CpuSandbox", "QnnSandbox"]


class CpuSandbox:
    """ONNX Runtime's CPU provider of this installation, on this machine's processor."""

    name = "cpu"
    summary = "ONNX Runtime's CPU provider, on this machine's processor"
    licence = "MIT"
    gives: Literal["numbers", "build"] = "numbers"
    size_mb = 0
    quick = True
    option: str | None = None

    def unusable(self) -> str | None:
        return None

    def missing(self) -> str | None:
        return None

    def install(self, progress: Progress) -> None:
        pass

    def run(
        self, tasks: Sequence[Task], *, arguments: Mapping[str, str] | None = None, timeout_s: float = 300.0
    ) -> list[Outcome]:
        return run_tasks(Worker(python_command()), tasks, arguments=arguments, timeout_s=timeout_s)


class QnnSandbox:
    """Qualcomm's HTP, emulated on x86-64 Linux by onnxruntime-qnn; arguments are options of the provider."""

    name = "qnn"
    summary = "Qualcomm's NPU (HTP), emulated: takes and refuses nodes as the chip does, with its integers"
    licence = "Qualcomm's own, MIT for the plugin"
    gives: Literal["numbers", "build"] = "numbers"
    size_mb = 99
    quick = True
    option: str | None = "soc_model"

    def unusable(self) -> str | None:
        here = f"{platform.system()} {platform.machine()}"
        return None if here == "Linux x86_64" else f"the emulator is in the package for Linux x86_64; this is {here}"

    def missing(self) -> str | None:
        if why := self.unusable():
            return why
        if importlib.util.find_spec("onnxruntime_qnn") is None:
            return "the package onnxruntime-qnn is not installed"
        return None

    def install(self, progress: Progress) -> None:  # noqa: ARG002 the protocol's
        raise ProviderError(
            "onnxruntime-qnn is an extra of edgeq, not a sandbox of its own", remedy="pip install 'edgeq[npu]'"
        )

    def run(
        self, tasks: Sequence[Task], *, arguments: Mapping[str, str] | None = None, timeout_s: float = 300.0
    ) -> list[Outcome]:
        if why := self.missing():
            raise ProviderError(f"the sandbox {self.name!r} is not usable: {why}", remedy="pip install 'edgeq[npu]'")
        chosen = [replace(task, provider=_with_options(task.provider, arguments or {})) for task in tasks]
        return run_tasks(Worker(python_command()), chosen, timeout_s=timeout_s)


def _with_options(provider: Provider, options: Mapping[str, str]) -> Provider:
    return msgspec.structs.replace(provider, options={**provider.options, **options})
