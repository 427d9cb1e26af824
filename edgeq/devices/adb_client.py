"""Android's own adb: where it is, which phones it sees, and what its words mean."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgeq.devices.shell import run_client
from edgeq.errors import ConfigError, ProviderError

__all__ = ["Adb", "Listed", "find_adb", "problem_of"]

_PROGRAM = "adb.exe" if os.name == "nt" else "adb"
_SDK_VARIABLES = ("ANDROID_HOME", "ANDROID_SDK_ROOT")
_USUAL_SDKS = ("Android/Sdk", "Library/Android/sdk", "AppData/Local/Android/Sdk")
"""Where Android Studio puts the SDK on Linux, macOS and Windows, below the user's folder."""

_PROBLEMS = {
    "unauthorized": (
        "has not allowed this computer",
        "unlock the phone and answer 'Allow USB debugging?' with yes; if it does not ask, revoke the USB debugging "
        "authorizations in its developer options and plug it in again",
    ),
    "authorizing": ("is being asked whether it allows this computer", "unlock the phone, say yes, and try again"),
    "connecting": ("is being connected", "try again in a few seconds"),
    "offline": ("is offline", "plug it in again, or run `adb reconnect offline`; on an emulator wait until it is up"),
    "no permissions": (
        "may not be opened by this user",
        "on Linux install the udev rules of Android devices (Debian: android-sdk-platform-tools-common), join the "
        "group plugdev, and plug it in again",
    ),
    "bootloader": ("is in its bootloader", "start Android: `fastboot reboot`"),
    "recovery": ("is in recovery mode", "start Android: `adb reboot`"),
    "sideload": ("is in sideload mode", "start Android: `adb reboot`"),
}
"""State in ``adb devices`` -> what is wrong with the phone, and what to do."""

_ATTACH = (
    "connect a phone by USB with USB debugging switched on in its developer options, or `adb connect HOST:PORT`; "
    "`adb devices` lists it then"
)


@dataclass(frozen=True)
class Listed:
    """One line of ``adb devices -l``; ``state`` is ``"device"`` if it can be used."""

    serial: str
    state: str
    facts: dict[str, str] = field(default_factory=dict)


def problem_of(listed: Listed) -> tuple[str, str] | None:
    """Why this phone cannot be used, and what to do; None if it can."""
    if listed.state == "device":
        return None
    what, remedy = _PROBLEMS.get(listed.state, (f"is in the state {listed.state!r}", "see `adb devices -l`"))
    return f"the phone {listed.serial} {what}", remedy


def find_adb() -> Path | None:
    """Adb from the PATH, ``ANDROID_HOME`` or ``ANDROID_SDK_ROOT``, the SDK's usual place, or the package adbutils."""
    if found := shutil.which("adb"):
        return Path(found)
    kits = [Path(value) for name in _SDK_VARIABLES if (value := os.environ.get(name))]
    kits += [Path.home() / name for name in _USUAL_SDKS]
    candidates = [kit / "platform-tools" / _PROGRAM for kit in kits]
    if (package := importlib.util.find_spec("adbutils")) is not None and package.origin:
        candidates.append(Path(package.origin).parent / "binaries" / _PROGRAM)
    return next((path for path in candidates if path.is_file() and os.access(path, os.X_OK)), None)


@dataclass(frozen=True)
class Adb:
    """Adb's client; every call names the phone it is for."""

    program: Path

    @classmethod
    def find(cls) -> Adb:
        """Raises ProviderError if there is none."""
        program = find_adb()
        if program is None:
            raise ProviderError(
                "there is no adb: phones cannot be reached",
                where=f"looked for on the PATH, in {' and '.join(_SDK_VARIABLES)}, and in the package adbutils",
                remedy="pip install 'edgeq[device]', or install Android's platform-tools",
            )
        return cls(program)

    def call(self, serial: str | None, *arguments: str, timeout_s: float = 60.0) -> tuple[int | None, str, str]:
        """Exit code (None: it took too long, and was ended), output and errors of one adb command.

        Raises:
            ProviderError: adb does not start.
        """
        try:
            return run_client(self.command(serial, *arguments), timeout_s=timeout_s)
        except OSError as error:
            raise ProviderError(
                f"adb does not start: {error.strerror}",
                where=str(self.program),
                remedy="install Android's platform-tools, or pip install 'edgeq[device]'",
            ) from None

    def command(self, serial: str | None, *arguments: str) -> list[str]:
        """The command line of one adb command."""
        return [str(self.program), *(["-s", serial] if serial else []), *arguments]

    def devices(self) -> list[Listed]:
        """All that adb knows of, usable or not.

        Raises:
            ProviderError: adb's server does not start; with its words.
        """
        code, out, err = self.call(None, "devices", "-l", timeout_s=30)
        if code != 0:
            raise ProviderError(
                f"adb does not list its devices: {(err or out).strip()[-300:] or 'no answer within 30 s'}",
                where=str(self.program),
                remedy="run `adb kill-server`, and try again",
            )
        found = (_parse(line) for line in out.splitlines())
        return [listed for listed in found if listed is not None]

    def choose(self, serial: str) -> str:
        """The serial number of the phone that is meant (``""``: the only one), if it can be used.

        Raises:
            ProviderError: there is none, or it cannot be used; with what to do.
            ConfigError: none is named, and there are several.
        """
        every = self.devices()
        named = ", ".join(f"adb:{listed.serial} ({_name(listed)})" for listed in every)
        if not every:
            raise ProviderError("no phone is attached", where=str(self.program), remedy=_ATTACH)
        if serial:
            chosen = [listed for listed in every if listed.serial == serial]
            if not chosen:
                raise ProviderError(f"there is no phone {serial!r}", remedy=f"attach it, or choose one of: {named}")
        else:
            usable = [listed for listed in every if problem_of(listed) is None]
            if len(usable) > 1:
                raise ConfigError("several phones are attached, and none is named", remedy=f"choose one of: {named}")
            chosen = usable or every[:1]
        if (wrong := problem_of(chosen[0])) is not None:
            raise ProviderError(wrong[0], remedy=wrong[1])
        return chosen[0].serial

    def lost(self, serial: str, doing: str, words: str) -> ProviderError:
        """The error for a connection that broke while ``doing``: what adb says of the phone now."""
        try:
            found = [listed for listed in self.devices() if listed.serial == serial]
        except ProviderError as error:
            return error
        said = f"; adb's words: {_last_line(words)}" if words else ""
        if not found:
            return ProviderError(
                f"the phone {serial} was lost while {doing}{said}", remedy=f"{_ATTACH}; then try again"
            )
        if (wrong := problem_of(found[0])) is not None:
            return ProviderError(f"{wrong[0]}: it was lost while {doing}{said}", remedy=wrong[1])
        return ProviderError(
            f"the connection to the phone {serial} broke while {doing}{said}",
            remedy="try again; if it happens again, try another cable or port",
        )


def _parse(line: str) -> Listed | None:
    """``SERIAL  state key:value ...``; the state of a phone without permissions has two words and a reason."""
    found = re.match(r"(\S+)\s+(no permissions|[a-z]+)(.*)", line)
    if found is None or line.startswith(("List of", "*")):
        return None
    facts = dict(re.findall(r"(\w+):(\S+)", found.group(3)))
    return Listed(found.group(1), found.group(2), facts)


def _name(listed: Listed) -> str:
    model = listed.facts.get("model", "").replace("_", " ")
    return model if model and listed.state == "device" else listed.state


def _last_line(words: Sequence[str] | str) -> str:
    lines = [line.strip() for line in str(words).splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
