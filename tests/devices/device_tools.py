"""The parts that devices are tried with where there are none: adb's daemon and OpenSSH's, from Debian.

``python tests/devices/device_tools.py`` (``make device-tools``) fetches them into edgeq's cache, with the emulated
processor that the phone and the board have; nothing is installed on this machine, and no service is started.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from edgeq.devices.programs import find_runner
from edgeq.errors import ProviderError
from edgeq.sandbox import find_sandbox
from edgeq.sandbox.debian import extract, fetch_packages, suite_of_this_machine
from edgeq.sandbox.environments import installed_folder, installing, sandbox_folder

__all__ = ["PhoneParts", "install", "phone_parts", "sshd_folder", "why_no_phone", "why_no_runner", "why_no_sshd"]

FIRST_SUITE_WITH_ADBD = "trixie"
ADBD, SSHD = "adbd", "sshd"
STAMPS = {ADBD: ["adbd", FIRST_SUITE_WITH_ADBD], SSHD: ["openssh-server"]}
PROGRAMS = ("unshare", "nsenter", "ip", "chroot", "mount")
DEBIAN = {"x86_64": "amd64", "aarch64": "arm64"}
INSTALL = "make device-tools"


@dataclass(frozen=True)
class PhoneParts:
    """Folders of adbd with its libraries and of arm64's C library and ONNX Runtime, and QEMU's program."""

    adbd: Path
    arm_root: Path
    qemu: Path


def phone_parts() -> PhoneParts:
    """Raises LookupError that says what is missing."""
    if why := why_no_phone():
        raise LookupError(why)
    adbd = installed_folder(ADBD, STAMPS[ADBD])
    assert adbd is not None
    qemu = sandbox_folder("qemu") / "qemu-aarch64"
    return PhoneParts(adbd, sandbox_folder("arm64"), qemu if qemu.exists() else Path(str(shutil.which("qemu-aarch64"))))


def why_no_phone() -> str | None:
    """Why no phone can be emulated here, with what to do; None if one can."""
    if platform.machine() != "x86_64" or sys.platform != "linux":
        return "a phone is emulated on Linux for x86-64 only"
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"needs {', '.join(missing)}"
    if installed_folder(ADBD, STAMPS[ADBD]) is None:
        return f"there is no adbd: {INSTALL}"
    if why := find_sandbox("arm64").missing():
        return f"{why}: {INSTALL}"
    spaces = ["unshare", "--user", "--map-root-user", "--mount", "--net", "--pid", "--fork"]
    tried = subprocess.run(
        [*spaces, "mount", "-t", "binfmt_misc", "none", "/proc/sys/fs/binfmt_misc"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no namespace of one's own: {tried.stderr.strip()}" if tried.returncode else None


def sshd_folder() -> Path | None:
    """The folder that holds OpenSSH's server."""
    return installed_folder(SSHD, STAMPS[SSHD])


def why_no_sshd() -> str | None:
    """Why no board can be reached here, with what to do; None if one can."""
    if missing := [name for name in ("ssh", "sftp", "ssh-keygen") if shutil.which(name) is None]:
        return f"needs {', '.join(missing)}"
    return None if sshd_folder() else f"there is no sshd: {INSTALL}"


def install() -> None:
    """Fetch what is not there yet."""
    from edgeq.progress import Silent

    architecture = DEBIAN[platform.machine()]
    for name, package, suite in (
        (ADBD, "adbd", FIRST_SUITE_WITH_ADBD),
        (SSHD, "openssh-server", suite_of_this_machine()),
    ):
        if installed_folder(name, STAMPS[name]) is None:
            print(f"fetching {package} of Debian {suite}")  # noqa: T201
            with installing(name, STAMPS[name]) as folder:
                downloads = folder / "downloads"
                wanted = [package] if name == ADBD else [package, "openssh-sftp-server", "libwrap0"]
                packages = fetch_packages(
                    wanted, suite=suite, architecture=architecture, folder=downloads, dependencies=name == ADBD
                )
                extract(packages, folder)
                shutil.rmtree(downloads)
    if find_sandbox("arm64").missing():
        print("fetching the emulated processor")  # noqa: T201
        find_sandbox("arm64").install(Silent())


def why_no_runner() -> str | None:
    """Why there is no runner for the phone's processor, with what to do."""
    try:
        find_runner("linux-aarch64")
    except ProviderError as error:
        return f"{error.what}: {error.remedy}"
    return None


if __name__ == "__main__":
    install()
    for name, why in (("phone", why_no_phone()), ("its runner", why_no_runner()), ("board", why_no_sshd())):
        print(f"{name}: {why or 'ready'}")  # noqa: T201
