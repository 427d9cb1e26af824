"""Debian packages into a folder of edgeq's own: nothing is installed, and the machine's own apt is left as it is.

apt runs with a configuration, lists and a package database of its own. The mirror and the way to it
(proxies, certificates) are those that the machine's apt is set up with.
"""

from __future__ import annotations

import os
import platform
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from edgeq.errors import ProviderError

__all__ = ["extract", "extract_files", "fetch_packages", "suite_of_this_machine"]

_KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_MINUTES = 20 * 60.0


def suite_of_this_machine() -> str:
    """Debian's name of the installed release (``"bookworm"``); raises ProviderError elsewhere."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    if release.get("ID") != "debian" or not release.get("VERSION_CODENAME"):
        raise ProviderError(
            f"this machine runs {release.get('NAME', 'no known Linux')}, whose packages are not Debian's",
            remedy="install this sandbox on Debian, in a container, say",
        )
    return release["VERSION_CODENAME"]


def fetch_packages(
    packages: Sequence[str], *, suite: str, architecture: str, folder: Path, dependencies: bool = False
) -> list[Path]:
    """Download packages of a Debian suite into ``folder``, with all that they depend on if asked to.

    ``architecture`` is Debian's name of it (``"arm64"``). apt checks the signatures.

    Raises:
        ProviderError: apt is not there, has no Debian mirror, or cannot download; with apt's words.
    """
    folder = folder.absolute()  # apt takes what is relative to be in its own
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="edgeq-apt-") as work:
        configuration = _configure(Path(work), _mirror(), suite, architecture, folder)
        _apt(["apt-get", "update"], configuration, folder)
        command = ["apt-get", "download", *packages]
        if dependencies:
            command = ["apt-get", "install", "--yes", "--no-install-recommends", "--download-only", *packages]
        _apt(command, configuration, folder)
    return sorted(folder.glob("*.deb"))


def _mirror() -> str:
    """The address from which the machine's own apt gets Debian's main packages."""
    suite = suite_of_this_machine()
    fields = "$(CREATED_BY)|$(RELEASE)|$(COMPONENT)|$(SITE)"
    for line in _apt(["apt-get", "indextargets", "--no-release-info", "--format", fields], None, None).splitlines():
        kind, release, component, site = line.split("|", 3)
        if kind == "Packages" and component == "main" and release in (suite, "stable", "oldstable", "testing"):
            return site
    raise ProviderError(
        f"the machine's apt has no source of Debian's {suite}",
        where="/etc/apt",
        remedy=f"add a source with {suite} and main",
    )


def _configure(work: Path, mirror: str, suite: str, architecture: str, folder: Path) -> Path:
    """An apt configuration that reads and writes nothing of the machine's but its way to the network."""
    (work / "lists" / "partial").mkdir(parents=True)
    (folder / "partial").mkdir(exist_ok=True)
    (work / "status").touch()
    keys = f" signed-by={_KEYS}" if _KEYS.exists() else ""
    (work / "sources.list").write_text(f"deb [arch={architecture}{keys}] {mirror} {suite} main\n", encoding="utf-8")
    ways = [line for line in _apt(["apt-config", "dump"], None, None).splitlines() if line.startswith("Acquire::")]
    own = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "",  # the download goes into a folder that only this user may write
        "Debug::NoLocking": "true",
        "Dir::Cache::archives": folder,
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "Dir::Etc::main": "/dev/null",
        "Dir::Etc::parts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::Etc::sourcelist": work / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": work / "lists",
        "Dir::State::status": work / "status",
        "Dir::State::extended_states": work / "extended_states",
    }
    ways += [f'{key} "{value}";' for key, value in own.items()]
    file = work / "apt.conf"
    file.write_text("\n".join(ways) + "\n", encoding="utf-8")
    return file


def _apt(command: Sequence[str], configuration: Path | None, folder: Path | None) -> str:
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    if configuration is not None:
        environment["APT_CONFIG"] = str(configuration)
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_MINUTES, check=False
        )
    except FileNotFoundError:
        raise ProviderError(
            f"{command[0]} is not installed: packages of Debian cannot be fetched here", remedy="install apt"
        ) from None
    except subprocess.TimeoutExpired:
        raise ProviderError(
            f"`{' '.join(command)}` did not end within {_MINUTES / 60:g} minutes",
            remedy="see that apt reaches its mirror, and try again",
        ) from None
    if done.returncode:
        words = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()
        raise ProviderError(f"`{' '.join(command)}` failed: {' '.join(words[-3:])}", remedy="see that apt works here")
    return done.stdout


def extract(packages: Iterable[Path], folder: Path) -> None:
    """Unpack packages over one another into ``folder``; their scripts are not run."""
    for package in packages:
        _unpack(["dpkg-deb", "--extract", str(package), str(folder)])
    for name in ("lib", "lib64", "bin"):  # since Debian 13 they are links, which no package brings
        if (folder / "usr" / name).exists() and not (folder / name).exists():
            (folder / name).symlink_to(f"usr/{name}")


def extract_files(package: Path, members: Iterable[str], folder: Path) -> list[Path]:
    """Unpack single files (``"usr/bin/name"``) into ``folder``, without their folders."""
    wanted = {f"./{member}" for member in members}
    found = []
    with tempfile.TemporaryFile() as stream:
        _unpack(["dpkg-deb", "--fsys-tarfile", str(package)], stream.fileno())
        stream.seek(0)
        with tarfile.open(fileobj=stream) as archive:
            for member in archive:
                if member.name in wanted:
                    member.name = Path(member.name).name
                    archive.extract(member, folder, filter="data")
                    found.append(folder / member.name)
    if len(found) < len(wanted):
        raise ProviderError(
            f"{package.name} does not hold {', '.join(sorted(wanted))}",
            remedy="install the program itself with the system's package manager",
        )
    return found


def _unpack(command: Sequence[str], output: int = subprocess.DEVNULL) -> None:
    try:
        done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, check=False)
    except FileNotFoundError:
        raise ProviderError(
            "dpkg-deb is not installed: packages of Debian cannot be unpacked here", remedy="install dpkg"
        ) from None
    if done.returncode:
        raise ProviderError(
            f"a package cannot be unpacked: {done.stderr.strip()[-300:]}",
            where=command[2],
            remedy="check the disk's free space, and install the sandbox again",
        )
