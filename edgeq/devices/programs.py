"""The native runner's binary for each ABI: the packaged one, else one that is compiled once, into the cache.

``python -m edgeq.devices.programs [ABI ...]`` puts binaries where a wheel packs them (``make runner``).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from edgeq.errors import ProviderError
from edgeq.resources import cache_folder

__all__ = ["ABIS", "compile_runner", "find_runner", "host_abi"]

ABIS = ("linux-x86_64", "linux-aarch64", "android-arm64-v8a", "android-x86_64")
"""What the runner is built for; Linux means any with glibc."""

SOURCES = Path(__file__).resolve().parent / "runner"
NAME = "edgeq-runner"
FLAGS = ("-std=c11", "-O2", "-fPIE", "-Wall", "-Wextra", "-Werror")

_MACHINES = {"linux-x86_64": "x86_64", "linux-aarch64": "aarch64"}
_OLDEST_GLIBC = "2.28"
"""What ONNX Runtime's own wheels need."""

_OLDEST_ANDROID = 24
_TRIPLES = {"android-arm64-v8a": "aarch64-linux-android", "android-x86_64": "x86_64-linux-android"}


def host_abi() -> str | None:
    """The ABI of this machine's programs; None where the runner does not run."""
    machine = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    return f"linux-{machine}" if sys.platform == "linux" and f"linux-{machine}" in ABIS else None


@cache
def _digest() -> str:
    """Of all that a binary is made of."""
    total = hashlib.sha256(" ".join(FLAGS).encode())
    for file in sorted([*SOURCES.glob("*.[ch]"), *(SOURCES / "vendor").glob("*.h")]):
        total.update(file.name.encode() + file.read_bytes())
    return total.hexdigest()[:12]


def packaged_runner(abi: str) -> Path:
    """Where a wheel holds the binary, whether it is there or not; one of other sources lies elsewhere."""
    return SOURCES / "bin" / _digest() / abi / NAME


def find_runner(abi: str) -> Path:
    """A binary for ``abi`` that was made of the sources of this installation.

    Raises:
        ProviderError: none is packaged, and there is no compiler for it; with what to install.
    """
    kept = cache_folder() / "runners" / _digest() / abi / NAME
    for path in (packaged_runner(abi), kept):
        if path.is_file():
            return path
    return compile_runner(abi, kept)


def compile_runner(abi: str, output: Path, *, flags: Sequence[str] = ("-s",)) -> Path:
    """Compile the sources for ``abi`` with the first compiler that there is; ``output`` appears whole.

    Raises:
        ProviderError: there is no compiler, or it fails; with its words.
    """
    compilers = _compilers(abi)
    if not compilers:
        raise ProviderError(
            f"this installation has no runner for {abi}, and there is no compiler to make one",
            remedy=_remedy(abi),
        )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent) as folder:
            made = Path(folder) / NAME
            command = [*compilers[0], *FLAGS, *flags, *map(str, sorted(SOURCES.glob("*.c"))), "-o", str(made), "-ldl"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ProviderError(
                    f"the runner for {abi} does not compile: {_error_of(done.stderr)}",
                    where=" ".join(compilers[0]),
                    remedy=_remedy(abi),
                )
            made.replace(output)
    except OSError as error:
        raise ProviderError(
            f"the runner for {abi} cannot be made: {error.strerror or error}",
            where=str(output),
            remedy="point EDGEQ_CACHE to a folder that can be written",
        ) from None
    return output


def _error_of(words: str) -> str:
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[-1] if lines else "no message")[:400]


def _compilers(abi: str) -> list[list[str]]:
    """Commands that compile for ``abi`` on this machine, the best first."""
    if abi in _TRIPLES:
        return [[str(path)] for path in _ndk_compilers(f"{_TRIPLES[abi]}{_OLDEST_ANDROID}-clang")]
    machine = _MACHINES[abi]
    found = []
    if importlib.util.find_spec("ziglang"):  # the only one that makes binaries for older systems than its own
        target = f"{machine}-linux-gnu.{_OLDEST_GLIBC}"
        found.append([sys.executable, "-m", "ziglang", "cc", "-target", target])
    names = [f"{machine}-linux-gnu-gcc"]
    if abi == host_abi():
        names = [*filter(None, [os.environ.get("CC")]), "cc", "gcc", "clang", *names]
    return [*found, *([path] for path in map(shutil.which, names) if path)]


def _ndk_compilers(name: str) -> list[Path]:
    roots = [os.environ.get(key) for key in ("ANDROID_NDK_HOME", "ANDROID_NDK_ROOT", "NDK")]
    folders = [Path(root) for root in roots if root]
    for key in ("ANDROID_HOME", "ANDROID_SDK_ROOT"):
        if root := os.environ.get(key):
            folders += sorted((Path(root) / "ndk").glob("*"), reverse=True)
    return [path for folder in folders for path in sorted(folder.glob(f"toolchains/llvm/prebuilt/*/bin/{name}"))]


def _remedy(abi: str) -> str:
    if abi in _TRIPLES:
        return "install Android's NDK and name its folder in ANDROID_NDK_HOME"
    if abi == host_abi():
        return "install a C compiler (`apt install gcc libc6-dev`), or `pip install ziglang`"
    package = f"gcc-{_MACHINES[abi].replace('_', '-')}-linux-gnu"
    return f"`pip install ziglang`, or Debian's cross compiler (`apt install {package}`)"


def _main() -> None:
    for old in (SOURCES / "bin").glob("*"):
        if old.name != _digest():
            shutil.rmtree(old)  # of other sources
    for abi in sys.argv[1:] or ABIS[:2]:
        try:
            made = compile_runner(abi, packaged_runner(abi))
        except ProviderError as error:
            sys.exit(str(error))
        sys.stdout.write(f"{made}: {made.stat().st_size:,} bytes\n")


if __name__ == "__main__":
    _main()
