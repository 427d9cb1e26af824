"""What a Linux or Android system tells of itself: one command over the transport."""

from __future__ import annotations

import re
from collections import Counter

from edgeq.device_report import Cluster, DeviceInfo, Kind
from edgeq.devices.transport import Transport
from edgeq.machine import name_instructions

__all__ = ["describe_linux"]

# Plain sh, for boards and phones: every part may be missing.
_SCRIPT = r"""
echo "machine=$(uname -m)"; echo "os=$(uname -s) $(uname -r)"
echo "model=$(tr -d '\000' < /proc/device-tree/model 2>/dev/null)"
echo "memory=$(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo)"
for cpu in /sys/devices/system/cpu/cpu[0-9]*; do
  echo "core=$(cat $cpu/cpufreq/cpuinfo_max_freq 2>/dev/null)"
done
echo "cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)"
echo "hardware=$(sed -n 's/^Hardware[^:]*: //p' /proc/cpuinfo | head -n 1)"
echo "flags=$(sed -n -e 's/^Features[^:]*: //p' -e 's/^flags[^:]*: //p' /proc/cpuinfo | head -n 1)"
"""

_ABIS = {"x86_64": "linux-x86_64", "amd64": "linux-x86_64", "aarch64": "linux-aarch64", "arm64": "linux-aarch64"}


def describe_linux(transport: Transport, spelling: str, kind: Kind) -> DeviceInfo:
    """Model, cores, memory and instruction sets; None for what the system does not tell.

    ``abi`` is one of ``programs.ABIS`` where there is a runner for it, else what the system calls its machine.
    """
    done = transport.run(["sh", "-c", _SCRIPT])
    lines = [line.partition("=") for line in done.out.splitlines() if "=" in line]
    facts = {key: value.strip() for key, _, value in lines if value.strip()}
    cores = [value.strip() for key, _, value in lines if key == "core"]
    machine = facts.get("machine")
    memory = facts.get("memory", "")
    return DeviceInfo(
        spelling=spelling,
        kind=kind,
        model=facts.get("model") or facts.get("cpu"),
        soc=facts.get("hardware"),
        abi=None if machine is None else _ABIS.get(machine, machine),
        os=_system(facts.get("os")),
        cores=len(cores) or None,
        clusters=_clusters(cores),
        memory_mb=round(int(memory) * 1024 / 1e6, 1) if memory.isdecimal() else None,
        isa=name_instructions(facts.get("flags", "")),
    )


def _system(text: str | None) -> str | None:
    """``"Linux 6.1.21"``: without what a distribution or a vendor put behind the version."""
    return None if text is None else re.sub(r"^(\S+ \d[\d.]*).*$", r"\1", text)


def _clusters(cores: list[str]) -> tuple[Cluster, ...]:
    """By highest frequency; one cluster of unknown frequency where a core does not tell."""
    if not cores:
        return ()
    if not all(core.isdecimal() for core in cores):
        return (Cluster(cores=len(cores)),)
    counted = Counter(int(core) // 1000 for core in cores)
    return tuple(Cluster(cores=count, max_mhz=mhz) for mhz, count in sorted(counted.items()))
