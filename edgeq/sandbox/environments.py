"""Environments of sandboxes in the cache: made whole or not at all, from pinned packages whose licences are known.

``environments.toml`` says what is fetched. pip's own configuration decides where from.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import tempfile
import tomllib
import venv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from edgeq.errors import ProviderError
from edgeq.progress import Progress
from edgeq.resources import cache_folder

__all__ = [
    "Environment",
    "fetch_debian",
    "find_environment",
    "installed_folder",
    "installing",
    "make_environment",
    "python_of",
    "sandbox_folder",
]

_STAMP = "installed.json"


class Environment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of ``environments.toml``.

    ``platforms`` are the systems and architectures that have these packages, ``licences`` what each
    package's metadata states, ``size_mb`` the download.
    """

    summary: str
    licence: str
    platforms: tuple[str, ...]
    packages: tuple[str, ...]
    licences: dict[str, str]
    size_mb: int

    def unusable(self) -> str | None:
        """Why these packages do not run on this machine, or None."""
        here = f"{platform.system()} {platform.machine()}"
        if here in self.platforms:
            return None
        return f"its packages exist for {', '.join(self.platforms)}; this is {here}"


@cache
def _environments() -> dict[str, Environment]:
    table = tomllib.loads((Path(__file__).parent / "environments.toml").read_text(encoding="utf-8"))
    return msgspec.convert(table, dict[str, Environment])


def find_environment(name: str) -> Environment:
    """The table ``name`` of ``environments.toml``."""
    return _environments()[name]


def sandbox_folder(name: str) -> Path:
    """Where the sandbox ``name`` is, or would be, installed."""
    return cache_folder() / "sandboxes" / name


def installed_folder(name: str, stamp: Any) -> Path | None:
    """The folder of a sandbox that was installed whole with this ``stamp`` (plain data); None if it was not."""
    folder = sandbox_folder(name)
    try:
        found = (folder / _STAMP).read_bytes()
    except OSError:
        return None
    return folder if found == msgspec.json.encode(stamp) else None


@contextmanager
def installing(name: str, stamp: Any) -> Iterator[Path]:
    """A new folder to fill, which becomes the sandbox's own when the block ends without an error.

    ``stamp`` is what ``installed_folder`` compares: change it, and the sandbox is installed anew. An
    older installation is replaced, a failed one leaves nothing.

    Raises:
        ProviderError: the cache cannot be written, or a command in the block failed.
    """
    target = sandbox_folder(name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
    except OSError as error:
        raise ProviderError(
            f"the sandbox {name!r} cannot be installed: {error.strerror}",
            where=str(target),
            remedy="point EDGEQ_CACHE to a folder that can be written",
        ) from None
    try:
        yield work
        (work / _STAMP).write_bytes(msgspec.json.encode(stamp))
        old = work.with_name(f"{work.name}.old")
        if target.exists():
            target.rename(old)
        work.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    except subprocess.CalledProcessError as error:
        raise ProviderError(
            f"the sandbox {name!r} cannot be installed: {_last_words(error)}",
            where=" ".join(map(str, error.cmd))[:300],
            remedy="check the network and the configuration of the package manager that the command calls",
        ) from None
    except OSError as error:
        raise ProviderError(
            f"the sandbox {name!r} cannot be installed: {error.strerror or error}",
            where=str(target),
            remedy="check the disk's free space, or point EDGEQ_CACHE elsewhere",
        ) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _last_words(error: subprocess.CalledProcessError) -> str:
    text = error.stderr or error.output or b""
    lines = (text.decode(errors="replace") if isinstance(text, bytes) else str(text)).strip().splitlines()
    errors = [line for line in lines if line.lower().startswith(("error", "e:"))] or lines
    return errors[-1].strip()[:400] if errors else f"exit code {error.returncode}"


def make_environment(folder: Path, environment: Environment, progress: Progress) -> None:
    """A virtual environment with ``environment.packages`` in ``folder / "venv"``; licences are compared.

    Raises:
        ProviderError: a package states another licence than ``environments.toml``.
        subprocess.CalledProcessError: pip failed.
    """
    progress.start("making a virtual environment", None)
    venv.EnvBuilder(symlinks=os.name != "nt", with_pip=True).create(folder / "venv")
    progress.finish()
    python = python_of(folder)
    settings = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    for package in environment.packages:
        progress.start(f"fetching {package.replace('==', ' ')}", None)
        command = [str(python), "-m", "pip", "install", "--no-deps", "--no-input", "--disable-pip-version-check"]
        # Wheels are unpacked; a source archive would run code of its own.
        subprocess.run([*command, "--only-binary=:all:", package], check=True, capture_output=True, env=settings)
        progress.finish()
    _check_licences(folder, environment.licences)


def python_of(folder: Path) -> Path:
    """The interpreter of the virtual environment in a sandbox's folder."""
    return folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _check_licences(folder: Path, expected: Mapping[str, str]) -> None:
    paths = [str(path) for path in (folder / "venv").glob("[Ll]ib/**/site-packages")]
    found = {_plain(d.name): _licence(d.metadata) for d in importlib.metadata.distributions(path=paths)}
    for package, licence in expected.items():
        if found.get(_plain(package)) != licence:
            raise ProviderError(
                f"{package} states the licence {found.get(_plain(package))!r}, edgeq knows it under {licence!r}; "
                "it was not installed",
                remedy="read the new licence; if it is fine, change environments.toml in edgeq/sandbox",
            )


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _licence(metadata: importlib.metadata.PackageMetadata) -> str | None:
    """What a package's metadata states, from the newest field that is there."""
    for key in ("License-Expression", "License"):
        if key in metadata and metadata[key].strip():
            return metadata[key].strip().splitlines()[0]
    named = [c.rpartition(" :: ")[2] for c in metadata.get_all("Classifier") or [] if c.startswith("License ::")]
    return named[0] if named else None


def fetch_debian(package: str, into: Path, files: tuple[str, ...], progress: Progress) -> None:
    """Take ``files`` (patterns below the root) and the copyright out of a Debian package, without installing it.

    Raises:
        subprocess.CalledProcessError: apt-get or dpkg-deb failed.
        FileNotFoundError: there is no apt-get, or the package lacks such a file.
    """
    progress.start(f"fetching Debian's {package}", None)
    with tempfile.TemporaryDirectory(dir=into) as name:
        work = Path(name)
        subprocess.run(["apt-get", "download", package], cwd=work, check=True, capture_output=True)
        archive = next(work.glob("*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(archive), str(work / "root")], check=True, capture_output=True)
        for pattern in (*files, f"usr/share/doc/{package}/copyright"):
            found = list((work / "root").glob(pattern))
            if not found:
                raise FileNotFoundError(2, f"Debian's {package} has no {pattern}")
            for file in found:
                name = f"copyright-{package}" if file.name == "copyright" else file.name
                shutil.copy2(file, into / name)
    progress.finish()
