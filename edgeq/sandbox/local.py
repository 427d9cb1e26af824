"""The providers that can share edgeq's own packages, still in a process of their own: the CPU, Qualcomm's emulator."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import msgspec

from edgeq.progress import Progress
from edgeq.sandbox.process import Worker, python_command, run_tasks
from edgeq.sandbox.protocol import Outcome, Task
from edgeq.sandbox.venvs import VenvSandbox

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


class QnnSandbox(VenvSandbox):
    """Qualcomm's HTP, emulated on x86-64 Linux by onnxruntime-qnn; arguments are options of the provider.

    With ``edgeq[npu]`` this installation has it already; otherwise it gets an environment of its own.
    """

    def __init__(self) -> None:
        super().__init__("qnn", option="soc_model")

    def missing(self) -> str | None:
        return None if _has_plugin() and self.unusable() is None else super().missing()

    def install(self, progress: Progress) -> None:
        if self.missing() is not None:
            super().install(progress)

    def run(
        self, tasks: Sequence[Task], *, arguments: Mapping[str, str] | None = None, timeout_s: float = 300.0
    ) -> list[Outcome]:
        chosen = [replace(task, provider=_with_options(task.provider, arguments or {})) for task in tasks]
        if _has_plugin():
            return run_tasks(Worker(python_command()), chosen, timeout_s=timeout_s)
        return super().run(chosen, timeout_s=timeout_s)


def _has_plugin() -> bool:
    return importlib.util.find_spec("onnxruntime_qnn") is not None


def _with_options(provider: Provider, options: Mapping[str, str]) -> Provider:
    return msgspec.structs.replace(provider, options={**provider.options, **options})
