"""The ONNX Runtime library that is brought to a device: for boards out of its wheel, for phones out of the AAR.

The wheel is fetched with pip. The AAR cannot be: it is what an app's build has, or what the user names.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import tempfile
import zipfile
from pathlib import Path

from edgeq.errors import ConfigError, ProviderError
from edgeq.output import atomic_file
from edgeq.resources import cache_folder
from edgeq.sandbox.emulated import install_wheels

__all__ = ["ANDROID_RUNTIME", "android_runtime", "board_runtime", "check_library", "library_in"]

ANDROID_RUNTIME = "EDGEQ_ANDROID_RUNTIME"
"""Names an AAR or a libonnxruntime.so."""

_COORDINATES = "com.microsoft.onnxruntime:onnxruntime-android"
_MACHINES = {"arm64-v8a": 183, "armeabi-v7a": 40, "x86_64": 62, "x86": 3, "aarch64": 183}
"""ABI -> e_machine in the header of its ELF files."""

_LIBRARY = "libonnxruntime.so"
_LARGEST = 2**30


def android_runtime(abi: str) -> Path:
    """The library for a phone's ABI (``"arm64-v8a"``), from ``EDGEQ_ANDROID_RUNTIME`` or an AAR of Gradle or Maven.

    Raises:
        ConfigError: the variable names something else.
        ProviderError: there is none, or none for this ABI; with where to get one.
    """
    named = os.environ.get(ANDROID_RUNTIME)
    found = Path(named) if named else _newest_aar()
    if found is None:
        raise ProviderError(
            "there is no ONNX Runtime for Android on this machine",
            where=f"{ANDROID_RUNTIME} is not set, and neither Gradle nor Maven has fetched {_COORDINATES}",
            remedy=f"build an app that uses {_COORDINATES}:VERSION once, or download that AAR (MIT) and name it: "
            f"{ANDROID_RUNTIME}=FILE.aar",
        )
    if not found.is_file():
        raise ConfigError(f"{ANDROID_RUNTIME} names no file", where=str(found), remedy="name an AAR or an .so file")
    library = _from_aar(found, abi) if zipfile.is_zipfile(found) else found
    check_library(library, abi)
    return library


def _newest_aar() -> Path | None:
    """What Gradle or Maven has fetched for an app, the newest version of it."""
    home = Path.home()
    gradle = Path(os.environ.get("GRADLE_USER_HOME") or home / ".gradle")
    group, _, name = _COORDINATES.partition(":")
    found = [
        *(gradle / "caches/modules-2/files-2.1" / group / name).glob(f"*/*/{name}-*.aar"),
        *(home / ".m2/repository" / group.replace(".", "/") / name).glob(f"*/{name}-*.aar"),
    ]
    return max(found, key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)], default=None)


def _from_aar(aar: Path, abi: str) -> Path:
    """Unpacked into the cache, once for each AAR: its hash tells it from others."""
    with aar.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    library = cache_folder() / "runtimes" / f"android-{digest}" / abi / _LIBRARY
    if library.is_file():
        return library
    member = f"jni/{abi}/{_LIBRARY}"
    with zipfile.ZipFile(aar) as archive:
        try:
            entry = archive.getinfo(member)
        except KeyError:
            abis = sorted({name.split("/")[1] for name in archive.namelist() if re.fullmatch(r"jni/[^/]+/.+", name)})
            raise ProviderError(
                f"the AAR holds no ONNX Runtime for {abi}, the phone's ABI",
                where=str(aar),
                remedy=f"name another one; it has {', '.join(abis) or 'no libraries at all'}",
            ) from None
        if entry.file_size > _LARGEST:
            raise ProviderError(f"{member} of the AAR claims {entry.file_size / 1e6:.0f} MB", where=str(aar))
        try:
            with archive.open(entry) as source, atomic_file(library) as work, work.open("wb") as target:
                shutil.copyfileobj(source, target)
        except zipfile.BadZipFile as error:
            raise ProviderError(f"the AAR is damaged: {error}", where=str(aar), remedy="fetch it again") from None
    return library


def check_library(library: Path, abi: str) -> None:
    """Raise ProviderError unless this is a library for ``abi``: the device would only say that it does not load."""
    with library.open("rb") as stream:
        header = stream.read(20)
    if header[:4] != b"\x7fELF":
        raise ProviderError("this is no library", where=str(library), remedy=f"name {_LIBRARY} or an AAR that holds it")
    found = int.from_bytes(header[18:20], "little")
    if found != _MACHINES.get(abi):
        names = [name for name, number in _MACHINES.items() if number == found]
        raise ProviderError(
            f"the library is made for {names[0] if names else f'another processor ({found})'}, the device is {abi}",
            where=str(library),
            remedy=f"name one that is made for {abi}",
        )


def board_runtime(machine: str) -> Path:
    """The library for Linux on ``machine`` (``"aarch64"`` or ``"x86_64"``), of the version that is installed here.

    It comes from the package that is installed, or out of the wheel for that machine, which pip fetches once.

    Raises:
        ProviderError: pip cannot fetch it; with its words.
    """
    version = importlib.metadata.version("onnxruntime")
    if platform.machine() == machine and platform.system() == "Linux":
        installed = Path(str(importlib.metadata.distribution("onnxruntime").locate_file("onnxruntime")))
        return library_in(installed)
    library = cache_folder() / "runtimes" / f"linux-{machine}-{version}" / _LIBRARY
    if not library.is_file():
        python = ".".join(platform.python_version_tuple()[:2])
        with tempfile.TemporaryDirectory(prefix="edgeq-wheel-") as folder:
            install_wheels([f"onnxruntime=={version}"], machine, python, Path(folder))
            with atomic_file(library) as work:
                shutil.copyfile(library_in(Path(folder) / "onnxruntime"), work)
    return library


def library_in(package: Path) -> Path:
    """ONNX Runtime's library in the files of its Python package; raises ProviderError if there is none."""
    found = sorted((package / "capi").glob(f"{_LIBRARY}*"))
    if not found:
        raise ProviderError(
            "this ONNX Runtime brings no library of its own that other programs can load",
            where=str(package / "capi"),
            remedy="install the package `onnxruntime` from PyPI, 1.24 or later",
        )
    return found[0]
