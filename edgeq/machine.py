"""The machine that measured, described without naming it or its user."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import onnxruntime as ort

from edgeq.report import Machine

__all__ = ["describe_machine", "name_instructions", "usable_cores"]

_ISA = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX512-VNNI",
    "amx_int8": "AMX-INT8",
    "asimd": "NEON",
    "asimddp": "DotProd",
    "i8mm": "I8MM",
    "sve": "SVE",
}
"""Linux's names of the instruction sets that decide how fast integer kernels are, and what people call them."""


def describe_machine() -> Machine:
    """Processor, instruction sets, usable cores and versions; ``isa`` is empty where the system does not tell."""
    facts = _cpuinfo()
    architecture = platform.machine() or "unknown"
    return Machine(
        cpu=facts.get("model name") or facts.get("Model") or platform.processor() or architecture,
        architecture=architecture,
        isa=name_instructions(facts.get("flags") or facts.get("Features") or ""),
        cores=usable_cores(),
        os=f"{platform.system()} {platform.release().split('-')[0]}",
        python=platform.python_version(),
        onnxruntime=ort.__version__,
    )


def name_instructions(flags: str) -> tuple[str, ...]:
    """What people call those of Linux's ``flags`` (separated by blanks) that decide how fast integer kernels are."""
    return tuple(name for flag, name in _ISA.items() if flag in flags.split())


def usable_cores() -> int:
    """The cores that this process may use; where the system does not tell (macOS, Windows), all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpuinfo() -> dict[str, str]:
    """The first processor's facts from Linux; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    facts: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    return facts
