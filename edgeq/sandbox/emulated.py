"""Other processors, emulated by QEMU: ONNX Runtime's own kernels for Arm, and for x86-64 without VNNI.

The instructions are emulated one by one, so that the integers are those of the real processor. How fast
it would be cannot be told.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from edgeq.errors import ConfigError, ProviderError
from edgeq.progress import Progress, track
from edgeq.sandbox.debian import extract, extract_files, fetch_packages, suite_of_this_machine
from edgeq.sandbox.environments import installed_folder, installing
from edgeq.sandbox.process import Worker, python_command, run_tasks
from edgeq.sandbox.protocol import Outcome, Task

__all__ = ["EmulatedProcessor", "emulated_processors", "install_wheels"]

_PLAIN_BLAS = {"OPENBLAS_CORETYPE": "Nehalem"}
"""numpy's OpenBLAS takes an emulated Nehalem for a processor with AVX, and dies of it (numpy 2.4.6, QEMU 10.0)."""

_HOST = "host"
_OLDEST_QEMU = 9
"""Older ones pass the host's /proc/cpuinfo through, on which ONNX Runtime for Arm crashes."""

_QEMU = {"oldest": _OLDEST_QEMU}
_SUITE_WITH_QEMU = {"buster": "trixie", "bullseye": "trixie", "bookworm": "trixie"}
"""Debian releases whose QEMU is too old, and the one to take it from; its emulators are static programs."""

_ROOT_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
_SITE = "usr/lib/python3/dist-packages"
_MACHINES = {"x86_64": "x86_64", "AMD64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
_DEBIAN = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class EmulatedProcessor:
    """One architecture under QEMU's user emulation; the argument ``cpu`` chooses the processor.

    ``machine`` is the architecture as Linux names it, ``cpu`` the processor unless another is asked
    for. On a machine of that architecture this installation's own interpreter is emulated (``cpu =
    "host"``: it runs as it is); elsewhere ``install`` fetches one, with the same ONNX Runtime.
    """

    name: str
    summary: str
    machine: Literal["aarch64", "x86_64"]
    cpu: str
    size_mb: int
    licence: str = "GPL-2.0 (QEMU), Debian's own for the C library and Python, MIT (ONNX Runtime), BSD-3-Clause (NumPy)"
    gives: Literal["numbers", "build"] = "numbers"
    quick: bool = False
    option: str | None = "cpu"

    @property
    def _native(self) -> bool:
        return _MACHINES.get(platform.machine()) == self.machine

    def unusable(self) -> str | None:
        return None if sys.platform == "linux" else "QEMU emulates the programs of Linux on Linux only"

    def missing(self) -> str | None:
        if why := self.unusable():
            return why
        try:
            return self._qemu_missing() or self._root_missing()
        except OSError as error:
            return f"the cache cannot be read: {error.strerror}"

    def _qemu_missing(self) -> str | None:
        if self._qemu() is None:
            return f"there is no qemu-{self.machine} of version {_OLDEST_QEMU} or later"
        return None

    def _root_missing(self) -> str | None:
        if self._native:
            return None
        if self._root() is None:
            return f"there is no Python for {self.machine} with ONNX Runtime {_here('onnxruntime')} to emulate"
        return None

    def _root(self) -> Path | None:
        return installed_folder(self.name, {"onnxruntime": _here("onnxruntime")})

    def install(self, progress: Progress) -> None:
        """Fetch QEMU and, on another architecture, a Python with ONNX Runtime; what is there is kept.

        Raises:
            ProviderError: Debian's or Python's packages cannot be fetched; with the reason.
        """
        if why := self.unusable():
            raise ProviderError(
                f"the sandbox {self.name!r} cannot be installed: {why}", remedy="check packages of this target on Linux"
            )
        steps = []
        if self._qemu_missing():
            steps.append(_install_qemu)
        if self._root_missing():
            steps.append(self._install_root)
        for step in track(steps, progress, f"Install {self.name}"):
            step()
        if why := self.missing():
            raise ProviderError(f"the sandbox {self.name!r} was installed but is not usable: {why}")

    def run(
        self, tasks: Sequence[Task], *, arguments: Mapping[str, str] | None = None, timeout_s: float = 300.0
    ) -> list[Outcome]:
        """Run ``tasks`` on the processor ``arguments["cpu"]``: a name that QEMU knows, or ``"host"``.

        Raises:
            ProviderError: the sandbox is not installed.
            ConfigError: QEMU does not know the processor, or there is another argument than ``cpu``.
        """
        cpu = dict(arguments or {}).pop("cpu", self.cpu)
        if unknown := set(arguments or {}) - {"cpu"}:
            raise ConfigError(
                f"the sandbox {self.name!r} takes no argument {min(unknown)!r}", remedy="give it cpu only"
            )
        if cpu == _HOST and self._native:
            return run_tasks(Worker(python_command()), tasks, timeout_s=timeout_s)
        qemu = self._require()
        self._check_cpu(qemu, cpu)
        command = [str(qemu), "-cpu", cpu, *self._interpreter()]
        worker = Worker(command, environment=_PLAIN_BLAS if self.machine == "x86_64" else {}, start_s=300.0)
        with_cpu = f", QEMU {'.'.join(map(str, _version(qemu)))} as {cpu}"
        return [
            replace(outcome, version=(outcome.version or f"onnxruntime {_here('onnxruntime')}") + with_cpu)
            for outcome in run_tasks(worker, tasks, timeout_s=timeout_s)
        ]

    def knows(self, cpu: str) -> bool:
        """Whether QEMU emulates a processor of that name; false where the sandbox is not installed, too."""
        qemu = self._qemu()
        return qemu is not None and cpu in _processors(qemu)

    def launcher(self, cpu: str) -> tuple[str, ...]:
        """What stands before the command of a program of this architecture, to run it on ``cpu``.

        Raises:
            ProviderError: the sandbox is not installed.
            ConfigError: QEMU does not know the processor.
        """
        qemu = self._require()
        self._check_cpu(qemu, cpu)
        root = () if self._native else ("-L", str(self._root()))
        return (str(qemu), "-cpu", cpu, *root)

    def package_folder(self, name: str) -> Path:
        """Where the files of an installed Python package of this architecture are, such as ``onnxruntime``."""
        self._require()
        root = self._root()
        if self._native or root is None:
            return Path(str(importlib.metadata.distribution(name).locate_file(name)))
        return root / _SITE / name

    def _require(self) -> Path:
        """QEMU's program, if the sandbox can be used."""
        if why := self.missing():
            raise ProviderError(
                f"the sandbox {self.name!r} is not usable: {why}", remedy=f"edgeq doctor --install-provider {self.name}"
            )
        qemu = self._qemu()
        assert qemu is not None
        return qemu

    def _interpreter(self) -> list[str]:
        if self._native:
            return python_command()
        root = self._root()
        assert root is not None
        return ["-L", str(root), *python_command(_python_of(root))]

    def _check_cpu(self, qemu: Path, cpu: str) -> None:
        known = _processors(qemu)
        if cpu not in known:
            some = ", ".join(known if len(known) < 40 else [*known[:40], "..."])
            raise ConfigError(f"QEMU knows no processor {cpu!r} of {self.machine}", remedy=f"choose one of: {some}")

    def _qemu(self) -> Path | None:
        """The machine's own emulator if it is new enough, else the one in the cache."""
        name = f"qemu-{self.machine}"
        candidates = [Path(found) for found in (shutil.which(name), shutil.which(f"{name}-static")) if found]
        if (own := installed_folder("qemu", _QEMU)) is not None:
            candidates.append(own / name)
        return next((path for path in candidates if _version(path) >= (_OLDEST_QEMU,)), None)

    def _install_root(self) -> None:
        version = _here("onnxruntime")
        with installing(self.name, {"onnxruntime": version}) as folder:
            downloads = folder / "downloads"
            packages = fetch_packages(
                _ROOT_PACKAGES,
                suite=suite_of_this_machine(),
                architecture=_DEBIAN[self.machine],
                folder=downloads,
                dependencies=True,
            )
            extract(packages, folder)
            shutil.rmtree(downloads)
            python = _python_of(folder).name.removeprefix("python")
            install_wheels(
                [f"onnxruntime=={version}", f"numpy=={_here('numpy')}"], self.machine, python, folder / _SITE
            )


def _install_qemu() -> None:
    suite = suite_of_this_machine()
    suite = _SUITE_WITH_QEMU.get(suite, suite)
    machine = _MACHINES.get(platform.machine(), "")
    if machine not in _DEBIAN:
        raise ProviderError(f"QEMU cannot be fetched for a {platform.machine()} machine", remedy="install qemu-user")
    with installing("qemu", _QEMU) as folder:
        downloads = folder / "downloads"
        (package,) = fetch_packages(["qemu-user"], suite=suite, architecture=_DEBIAN[machine], folder=downloads)
        programs = [f"usr/bin/qemu-{name}" for name in _DEBIAN]
        extract_files(package, [*programs, "usr/share/doc/qemu-user/copyright"], folder)
        shutil.rmtree(downloads)


def install_wheels(requirements: Sequence[str], machine: str, python: str, folder: Path) -> None:
    """Wheels of another architecture, or of this one; pip only unpacks them.

    Raises:
        ProviderError: pip cannot fetch them; with its words.
    """
    platforms = [f"--platform=manylinux_2_{minor}_{machine}" for minor in (28, 27, 17)]
    platforms.append(f"--platform=manylinux2014_{machine}")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", *platforms]
    command += ["--implementation=cp", f"--python-version={python}", "--target", str(folder), *requirements]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise ProviderError(
            f"pip cannot fetch {', '.join(requirements)} for {machine}: {' '.join(words[-2:])}",
            remedy="check the network and pip's configuration",
        )


def _python_of(root: Path) -> Path:
    found = [path for path in (root / "usr/bin").glob("python3.*") if re.fullmatch(r"python3\.\d+", path.name)]
    if not found:
        raise ProviderError("Debian's packages hold no Python", where=str(root))
    return found[0]


def _processors(qemu: Path) -> list[str]:
    listed = _output([str(qemu), "-cpu", "help"])
    return [line.split()[0] for line in listed.splitlines()[1:] if line.strip()]


def _version(qemu: Path) -> tuple[int, ...]:
    """QEMU's version; empty if it does not start."""
    found = re.search(r"version (\d+)\.(\d+)\.(\d+)", _output([str(qemu), "--version"]))
    return tuple(int(part) for part in found.groups()) if found else ()


def _output(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _here(package: str) -> str:
    return importlib.metadata.version(package)


def emulated_processors() -> tuple[EmulatedProcessor, ...]:
    """The two architectures that edgeq packages for."""
    arm = EmulatedProcessor(
        name="arm64",
        summary="ONNX Runtime's CPU provider on emulated Arm processors: cortex-a53, cortex-a76, max and others",
        machine="aarch64",
        cpu="cortex-a76",
        size_mb=125,
    )
    x86 = EmulatedProcessor(
        name="x86-64",
        summary="ONNX Runtime's CPU provider on emulated x86-64 processors without VNNI: Haswell, Nehalem and others",
        machine="x86_64",
        cpu="Haswell",
        size_mb=71,
    )
    return arm, x86
