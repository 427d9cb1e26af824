"""Qualcomm's neural processor as a device: the emulator of one chip, in a process of its own.

It accepts, refuses and computes as the chip does, so that outputs and placement are the chip's. Its time is that
of an emulator and is never told.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np

from edgeq.device_report import DeviceInfo
from edgeq.devices.made_for import made_for
from edgeq.devices.protocol import THIS_MACHINE, Entry, Job, ModelRun, Outcome
from edgeq.errors import ConfigError, ModelError, ProviderError
from edgeq.progress import Progress, Silent
from edgeq.sandbox import Outcome as Ran
from edgeq.sandbox import Sandbox, Task, find_sandbox
from edgeq.target import Chip, Compile, TargetProfile, load_target

__all__ = ["HtpDevice", "find_htp"]

_TARGET = "android-npu"
"""The profile that knows the chips, the options of the provider, and what emulates them."""


@dataclass(frozen=True)
class HtpDevice:
    """``htp:v79`` or ``htp:SM8750``; ``name`` is what it is called by, of the two."""

    chip: Chip
    name: str

    @classmethod
    def parse(cls, value: str) -> HtpDevice:
        """``"v79"``, ``"SM8750"`` or ``""``, which is the default of the target ``android-npu``.

        Raises:
            ConfigError: no chip or architecture that this target knows.
        """
        profile = load_target(_TARGET)
        chip = _chips(profile).find(value or str(profile.variant))
        if chip is None:
            known = ", ".join(f"htp:{c.variant} (htp:{c.name})" for c in _chips(profile).known)
            raise ConfigError(f"no chip or architecture {value!r} is known", remedy=f"choose one of: {known}")
        by_name = value.strip().lower() in (chip.name.lower(), chip.value)
        return cls(chip, chip.name if by_name else chip.variant)

    @property
    def spelling(self) -> str:
        return f"htp:{self.name}"

    @property
    def machine(self) -> str:
        return THIS_MACHINE

    def missing(self) -> str | None:
        try:
            _usable()
        except ProviderError as error:
            return f"{error.what}: {error.remedy}"
        return None

    def describe(self) -> DeviceInfo:
        """Raises ProviderError if the emulator is not installed or does not run on this machine."""
        _usable()
        return DeviceInfo(
            spelling=self.spelling,
            kind="htp",
            model=f"Qualcomm HTP {self.chip.variant}",
            soc=self.chip.name,
            emulated=True,
            providers=(_profile(self.chip).provider.name,),
        )

    def run(self, job: Job, progress: Progress | None = None) -> Outcome:
        """See ``Device.run``. Graphs that were made for the CPU are given to the chip as they are."""
        info, profile = self.describe(), _profile(self.chip)
        progress = progress or Silent()
        progress.start(f"running on {self.spelling}", None)
        try:
            tasks = [self._task(entry, job, profile) for entry in job.entries]
            found = _usable().run(tasks, timeout_s=job.timeout_s)
        finally:
            progress.finish()
        runs = [self._model_run(entry, ran, profile) for entry, ran in zip(job.entries, found, strict=True)]
        notes = [f"{name} fixed to {size}" for entry in job.entries for name, size in _dimensions(entry, job).items()]
        notes += [_placement(run) + ("" if len(runs) == 1 else f" ({run.name})") for run in runs if run.assigned]
        if job.measure or job.profile:
            notes.append("latency, memory and time per node: n/a, as an emulator computes what the chip would")
        return Outcome(info, found[0].version, tuple(runs), threads=1, notes=tuple(dict.fromkeys(notes)))

    def _task(self, entry: Entry, job: Job, profile: TargetProfile) -> Task:
        own = made_for(entry, profile.provider.name, self.spelling, f"{_TARGET}@{self.chip.variant}")
        provider = entry.graph.provider if own else profile.provider
        chosen = {_chips(profile).option: self.chip.value}
        provider = msgspec.structs.replace(provider, options={**provider.options, **chosen})
        model = entry.bundle.file(entry.graph.model)
        return Task(model, provider, job.feeds, dimensions=_dimensions(entry, job))

    def _model_run(self, entry: Entry, ran: Ran, profile: TargetProfile) -> ModelRun:
        if ran.status != "ran":
            raise ModelError(
                ran.reason or f"{ran.status} without a reason",
                where=str(entry.bundle.path / entry.graph.model),
                remedy=f"package the model for {_TARGET}@{self.chip.variant}, whose rules are this chip's",
            )
        if ran.assigned and profile.provider.name not in ran.assigned.values():
            raise ModelError(
                f"{profile.provider.name} takes none of the model's {len(ran.assigned)} nodes",
                where=str(entry.bundle.path / entry.graph.model),
                remedy=f"package the model for {_TARGET}@{self.chip.variant}: it wants static shapes, and types "
                "that this package does not have",
            )
        return ModelRun(entry.name, profile.provider.name, assigned=ran.assigned, outputs=ran.outputs)


def find_htp() -> list[HtpDevice]:
    """One per architecture; raises ProviderError, with what to do, if there is no emulator."""
    _usable()
    return [
        HtpDevice.parse(variant) for variant in dict.fromkeys(c.variant for c in _chips(load_target(_TARGET)).known)
    ]


def _profile(chip: Chip) -> TargetProfile:
    return load_target(f"{_TARGET}@{chip.variant}")


def _chips(profile: TargetProfile) -> Compile:
    assert profile.compile is not None
    return profile.compile


def _usable() -> Sandbox:
    """The sandbox that emulates the chips; raises ProviderError if it cannot be used."""
    sandbox = find_sandbox(str(load_target(_TARGET).verification.sandbox))
    if why := sandbox.unusable():
        raise ProviderError(f"Qualcomm's emulator does not run here: {why}", remedy="use such a machine, or a device")
    if why := sandbox.missing():
        raise ProviderError(
            f"Qualcomm's emulator cannot be used: {why}", remedy=f"edgeq doctor --install-provider {sandbox.name}"
        )
    return sandbox


def _dimensions(entry: Entry, job: Job) -> dict[str, int]:
    """The chip takes static shapes only: what the bundle leaves open is as in the first batch."""
    return {
        name: size
        for tensor in entry.bundle.manifest.inputs
        for name, size in zip(tensor.shape, np.shape(job.feeds[0][tensor.name]), strict=True)
        if isinstance(name, str)
    }


def _placement(run: ModelRun) -> str:
    """How many nodes each provider took, with some names of those that are not on the chip."""
    names: dict[str, list[str]] = {}
    for node, provider in (run.assigned or {}).items():
        names.setdefault(provider, []).append(node)
    told = [
        f"{len(nodes)} on {provider}" + ("" if provider == run.provider else f" ({', '.join(nodes[:4])}{_more(nodes)})")
        for provider, nodes in sorted(names.items(), key=lambda item: -len(item[1]))
    ]
    return f"nodes, Q/DQ among them: {', '.join(told)}"


def _more(nodes: list[str]) -> str:
    return ", ..." if len(nodes) > 4 else ""
