"""One job through the native runner, over any transport: push what changed, run, pull, clean up."""

from __future__ import annotations

import hashlib
import re
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import NoReturn

import msgspec

from edgeq.device_report import DeviceInfo, DeviceState
from edgeq.devices import job_file
from edgeq.devices.protocol import Entry, Job, ModelRun, Outcome
from edgeq.devices.store import Store
from edgeq.devices.transport import Completed, Transport
from edgeq.errors import ConfigError, EdgeqError, MissingProviderError, ModelError, ProviderError
from edgeq.machine import name_instructions
from edgeq.node_times import read_profile

__all__ = ["Programs", "run_native"]

_BAD_INPUT, _BAD_MODEL, _BAD_RUNTIME, _NO_PROVIDER, _NO_OUTPUT, _NO_CORES = 2, 3, 4, 5, 6, 7
_SIGKILL, _SIGSEGV, _SIGILL = 9, 11, 4
_GRACE_S = 10.0

_NO_START = {
    r"[Pp]ermission denied": (
        "the system forbids it",
        "see whether edgeq's folder there is on a file system without programs (mount option noexec), or a security "
        "policy forbids them (SELinux; `dmesg` names it): a phone's maker may have changed it",
    ),
    r"[Ee]xec format error|not executable|cannot execute": (
        "it is made for another processor",
        "check that the device's ABI is {abi}",
    ),
    r"CANNOT LINK|libc|GLIBC": (
        "a library that it needs is missing or too old",
        "update the device's system, or build the runner for it",
    ),
    r"No such file|not found|inaccessible": (
        "the system has no loader for it",
        "the C library must be that of {abi}: glibc on Linux (not musl), Android's own on phones",
    ),
    "": (
        "the system says no more",
        "check that the device's ABI is {abi}, and that it lets edgeq's folder hold programs",
    ),
}
"""What a shell says (exit codes 126 and 127) -> why, and what to do."""


@dataclass(frozen=True)
class Programs:
    """What is run: files of this machine, for the ABI of the device.

    ``libraries`` are put beside ``runtime``, for execution providers that load more; ``plugins`` are those of
    providers that come as a library of their own, by the provider's name. ``launcher`` stands before the runner's
    own command, such as an emulator with its options.
    """

    runner: Path
    runtime: Path
    libraries: tuple[Path, ...] = ()
    plugins: Mapping[str, Path] = field(default_factory=dict)
    launcher: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def run_native(
    transport: Transport, job: Job, programs: Programs, info: DeviceInfo, *, sensors: bool = True
) -> Outcome:
    """Carry ``job`` out; see ``Device.run`` for the errors.

    ``sensors`` false: what the system tells of its temperature, frequency and memory is not the device's.
    """
    store = Store(transport)
    runner, runtime, plugins = _push_programs(store, programs)
    bundles = {entry.name: _push_bundle(store, entry) for entry in job.entries}
    with tempfile.TemporaryDirectory(prefix="edgeq-device-") as folder, _work_folder(transport, Path(folder)) as there:
        local = Path(folder)
        names = job_file.write_feeds(job.feeds, local / job_file.FEEDS)
        text = job_file.write_job(
            job,
            names,
            bundles,
            work=there,
            runtime=runtime,
            plugins=plugins,
            sensors=sensors,
            timeout_s=job.timeout_s + _GRACE_S,
        )
        (local / job_file.JOB).write_bytes(text)
        for name in (job_file.FEEDS, job_file.JOB):
            _send(transport, local / name, there / name)
        done = transport.run(
            [*programs.launcher, str(runner), str(there / job_file.JOB), str(there / job_file.RESULT)],
            environment={
                "ORT_DISABLE_TELEMETRY": "1",
                "LD_LIBRARY_PATH": str(runtime.parent),
                **programs.environment,
            },
            timeout_s=job.timeout_s,
        )
        result = _result(transport, done, local, there, info)
        runs = [
            _model_run(transport, entry, index, len(job.feeds), local, there)
            for index, entry in enumerate(result.entries)
        ]
        return _outcome(result, runs, info, sensors)


def _push_programs(store: Store, programs: Programs) -> tuple[PurePosixPath, PurePosixPath, dict[str, PurePosixPath]]:
    runner = store.put(programs.runner, f"bin/{programs.runner.name}", executable=True)
    runtime = store.put(programs.runtime, f"lib/{programs.runtime.name}")
    for library in programs.libraries:
        store.put(library, f"lib/{library.name}")
    plugins = {name: store.put(plugin, f"lib/{plugin.name}") for name, plugin in programs.plugins.items()}
    return runner, runtime, plugins


def _push_bundle(store: Store, entry: Entry) -> PurePosixPath:
    """Bundles of one name have a folder each, told apart by where they lie on this machine."""
    own = hashlib.sha256(str(entry.bundle.path.resolve()).encode()).hexdigest()[:12]
    return store.put_folder(entry.bundle.path, job_file.files_of(entry), f"bundles/{own}")


@contextmanager
def _work_folder(transport: Transport, local: Path) -> Iterator[PurePosixPath]:
    """A folder there for one job, removed at the end whatever happens."""
    seen = transport.sees(local)
    if seen is not None:
        yield seen
        return
    # Left by jobs whose device was lost, a day ago or longer.
    old = ["-maxdepth", "1", "-name", "job-*", "-mtime", "+0", "-exec", "rm", "-rf", "{}", "+"]
    transport.run(["find", str(transport.folder()), *old])
    there = transport.folder() / f"job-{secrets.token_hex(6)}"
    try:
        yield there
    except BaseException:
        with suppress(ProviderError):  # the device may be lost, which is what the first error says
            transport.remove(there)
        raise
    transport.remove(there)


def _send(transport: Transport, local: Path, there: PurePosixPath) -> None:
    if transport.sees(local) is None:
        transport.push(local, there)


def _fetch(transport: Transport, there: PurePosixPath, local: Path) -> None:
    if transport.sees(local) is None:
        transport.pull(there, local)


def _result(
    transport: Transport, done: Completed, local: Path, there: PurePosixPath, info: DeviceInfo
) -> job_file.RunnerResult:
    file = local / job_file.RESULT
    if done.code in (0, _BAD_INPUT, _BAD_MODEL, _BAD_RUNTIME, _NO_PROVIDER, _NO_OUTPUT, _NO_CORES):
        try:
            _fetch(transport, there / job_file.RESULT, file)
            result = job_file.read_result(file.read_bytes())
        except (OSError, ProviderError):
            raise died(done, info) from None
        if result.error is not None:
            _raise(result.error)
        if done.code == 0:
            return result
    raise died(done, info)


def _raise(error: job_file.RunnerError) -> NoReturn:
    """The runner's error as one of edgeq's."""
    what = error.text
    if error.code == _BAD_MODEL:
        raise ModelError(what, remedy="check that the device's ONNX Runtime knows every operator of the model")
    if error.code == _NO_PROVIDER:
        raise MissingProviderError(what, remedy="run it where that provider exists, or package for another target")
    if error.code == _BAD_RUNTIME:
        raise ProviderError(what, remedy="check that the library is made for this device (ABI, C library)")
    if error.code == _NO_OUTPUT:
        raise ProviderError(what, remedy="make room on the device")
    if error.code == _NO_CORES:
        raise ConfigError(what, where="--cores", remedy="choose among the cores that the device has, or all")
    raise ConfigError(
        what, remedy="if the bundle's files are what edgeq wrote, this is a fault of it: please report it"
    )


def died(done: Completed, info: DeviceInfo) -> EdgeqError:
    """Why the runner left no result, as far as its exit code and last words tell."""
    words = " | ".join(line.strip() for line in (done.err or done.out).splitlines() if line.strip())[-600:]
    behind = f"; its last words: {words}" if words else ""
    if done.code == -_SIGKILL:
        return ModelError(
            f"the system killed the runner{behind}",
            remedy="the model needs more memory than the device gives, most likely: use a smaller one, or free memory",
        )
    if done.code in (-_SIGSEGV, -_SIGILL):
        name = "SIGSEGV" if done.code == -_SIGSEGV else "SIGILL"
        return ModelError(
            f"ONNX Runtime crashed there with {name}{behind}",
            remedy="try another version of ONNX Runtime there, or the fallback graph",
        )
    if done.code in (126, 127):
        why, remedy = next((value for key, value in _NO_START.items() if re.search(key, words)), _NO_START[""])
        return ProviderError(
            f"the runner does not start: {why}{behind}",
            remedy=remedy.format(abi=info.abi or "that of its runner"),
        )
    return ProviderError(f"the runner ended with exit code {done.code} and no result{behind}", remedy="run it again")


def _model_run(
    transport: Transport, entry: job_file.EntryResult, index: int, feeds: int, local: Path, there: PurePosixPath
) -> ModelRun:
    name = job_file.outputs_name(index)
    _fetch(transport, there / name, local / name)
    outputs = job_file.read_outputs(local / name, entry.outputs, feeds)
    if entry.profile is None:
        return entry.model_run(outputs, ())
    profile = PurePosixPath(entry.profile).name
    _fetch(transport, there / profile, local / profile)
    try:
        text = (local / profile).read_bytes()
    except OSError as error:
        raise ProviderError(f"the profile that the runner brought back cannot be read: {error.strerror}") from None
    return entry.model_run(outputs, read_profile(text))


def _outcome(result: job_file.RunnerResult, runs: list[ModelRun], info: DeviceInfo, sensors: bool) -> Outcome:
    # QEMU shows programs for Arm the emulated processor's features, and programs for x86-64 the host's.
    told = result.features if sensors or result.machine == "aarch64" else ""
    info = msgspec.structs.replace(info, providers=result.providers, isa=info.isa or name_instructions(told))
    if not sensors:
        runs = [replace(run, peak_mb=None, baseline_mb=None, energy_mj=None) for run in runs]
    return Outcome(
        info,
        f"onnxruntime {result.runtime}",
        tuple(runs),
        result.threads,
        core_mask=result.core_mask if sensors else None,
        before=result.before or DeviceState(),
        after=result.after or DeviceState(),
        notes=result.notes,
    )
