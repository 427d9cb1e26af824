"""Devices on this machine: its own processor, and those that QEMU emulates."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import msgspec

from edgeq.device_report import DeviceInfo
from edgeq.devices.linux import describe_linux
from edgeq.devices.native import Programs, run_native
from edgeq.devices.processes import run_process
from edgeq.devices.programs import find_runner, host_abi
from edgeq.devices.protocol import THIS_MACHINE, Job, Outcome
from edgeq.devices.runtimes import board_runtime, library_in
from edgeq.devices.transport import Completed
from edgeq.errors import ConfigError, ProviderError
from edgeq.progress import Progress
from edgeq.resources import cache_folder
from edgeq.runtime import plugin_library
from edgeq.sandbox.emulated import EmulatedProcessor, emulated_processors

__all__ = ["EmulatedDevice", "Here", "LocalDevice", "find_emulated"]

_CPU_OF_QEMU = "cortex-a76"


class Here:
    """The transport to this machine: nothing is copied."""

    def folder(self) -> PurePosixPath:
        """In the cache."""
        folder = cache_folder() / "device"
        folder.mkdir(parents=True, exist_ok=True)
        return PurePosixPath(folder.absolute())

    def sees(self, local: Path) -> PurePosixPath:
        return PurePosixPath(local.absolute())

    def run(
        self, command: Sequence[str], *, environment: Mapping[str, str] | None = None, timeout_s: float = 60.0
    ) -> Completed:
        """See ``Transport.run``."""
        return run_process(command, environment=environment, timeout_s=timeout_s)

    def push(self, local: Path, remote: PurePosixPath, *, executable: bool = False) -> None:
        there = Path(remote)
        there.parent.mkdir(parents=True, exist_ok=True)
        work = there.with_name(f".{there.name}.part")
        shutil.copyfile(local, work)
        work.chmod(0o755 if executable else 0o644)
        work.replace(there)

    def pull(self, remote: PurePosixPath, local: Path) -> None:
        shutil.copyfile(remote, local)

    def free_bytes(self, folder: PurePosixPath) -> int | None:
        return shutil.disk_usage(folder).free

    def remove(self, path: PurePosixPath) -> None:
        there = Path(path)
        if there.is_dir() and not there.is_symlink():
            shutil.rmtree(there, ignore_errors=True)
        else:
            there.unlink(missing_ok=True)

    def read(self, path: PurePosixPath) -> str | None:
        try:
            return Path(path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None


@dataclass(frozen=True)
class LocalDevice:
    """This machine's processor, with the ONNX Runtime of this installation, in a process without Python."""

    @classmethod
    def parse(cls, value: str) -> LocalDevice:
        """``local`` takes no value."""
        if value:
            raise ConfigError(f"'local' takes no value, but 'local:{value}' gives one", remedy="write local alone")
        return cls()

    @property
    def spelling(self) -> str:
        return "local"

    @property
    def machine(self) -> str:
        return THIS_MACHINE

    def missing(self) -> str | None:
        if host_abi() is None:
            return "the native runner runs on Linux on x86-64 and aarch64 only; leave out --device here"
        return None

    def describe(self) -> DeviceInfo:
        info = describe_linux(Here(), "local", "local")
        import onnxruntime

        return msgspec.structs.replace(info, providers=tuple(onnxruntime.get_available_providers()))

    def run(self, job: Job, progress: Progress | None = None) -> Outcome:
        del progress  # the runner does not tell how far it is
        abi = host_abi()
        if why := self.missing():
            raise ProviderError(f"the device 'local' cannot be used: {why}")
        assert abi is not None
        plugins = {
            provider.name: Path(plugin_library(provider))
            for provider in (entry.graph.provider for entry in job.entries)
            if provider.registration == "plugin"
        }
        programs = Programs(find_runner(abi), board_runtime(abi.removeprefix("linux-")), plugins=plugins)
        return run_native(Here(), job, programs, describe_linux(Here(), "local", "local"))


@dataclass(frozen=True)
class EmulatedDevice:
    """A processor under QEMU's user emulation: the real kernels and their integers, at no real speed."""

    cpu: str

    @classmethod
    def parse(cls, value: str) -> EmulatedDevice:
        """``qemu:CPU`` as QEMU spells it; ``qemu`` is a Cortex-A76."""
        return cls(value or _CPU_OF_QEMU)

    @property
    def spelling(self) -> str:
        return f"qemu:{self.cpu}"

    @property
    def machine(self) -> str:
        return THIS_MACHINE

    def _processor(self) -> EmulatedProcessor:
        """The architecture that has the processor: Arm, unless only x86-64 knows it."""
        arm, x86 = emulated_processors()
        return x86 if x86.knows(self.cpu) and not arm.knows(self.cpu) else arm

    def missing(self) -> str | None:
        processor = self._processor()
        why = processor.missing()
        return None if why is None else f"{why}; edgeq doctor --install-provider {processor.name}"

    def describe(self) -> DeviceInfo:
        processor = self._processor()
        machine = processor.machine
        return DeviceInfo(
            spelling=self.spelling, kind="qemu", model=f"{self.cpu} (QEMU)", abi=f"linux-{machine}", emulated=True
        )

    def run(self, job: Job, progress: Progress | None = None) -> Outcome:
        del progress
        processor = self._processor()
        launcher = processor.launcher(self.cpu)
        runner = find_runner(f"linux-{processor.machine}")
        programs = Programs(runner, library_in(processor.package_folder("onnxruntime")), launcher=launcher)
        return run_native(Here(), job, programs, self.describe(), sensors=False)


def find_emulated() -> tuple[EmulatedDevice, ...]:
    """A core of each class: without dot products, with them, and with all that QEMU knows."""
    return tuple(EmulatedDevice(cpu) for cpu in ("cortex-a53", "cortex-a76", "max"))
