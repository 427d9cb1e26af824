"""Where a package is to be run besides this process, as ``--on`` spells it: ``qnn``, ``arm64:cortex-a53``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgeq.errors import ConfigError, ProviderError
from edgeq.sandbox.protocol import Sandbox
from edgeq.sandbox.registry import find_sandbox

__all__ = ["Place", "parse_place"]


@dataclass(frozen=True)
class Place:
    """A sandbox by name, with its arguments, such as the processor to emulate."""

    sandbox: str
    arguments: Mapping[str, str] = field(default_factory=dict)

    def find(self) -> Sandbox:
        """The sandbox; raises ConfigError if there is none of that name."""
        return find_sandbox(self.sandbox)

    def require(self) -> None:
        """Raise ProviderError if it was asked for and cannot be used: before the work, not after it."""
        sandbox = self.find()
        if why := sandbox.missing():
            raise ProviderError(
                f"the package cannot be run on {self}: {why}",
                remedy="leave out --on, or run this on a machine that can"
                if sandbox.unusable()
                else f"edgeq doctor --install-provider {self.sandbox}",
            )

    def __str__(self) -> str:
        """What ``parse_place`` reads: ``NAME``, ``NAME:VALUE`` or ``NAME:key=value,key=value``."""
        if not self.arguments:
            return self.sandbox
        if list(self.arguments) == [self.find().option]:
            return f"{self.sandbox}:{next(iter(self.arguments.values()))}"
        return f"{self.sandbox}:{','.join(f'{key}={value}' for key, value in self.arguments.items())}"


def parse_place(text: str) -> Place:
    """``"arm64:cortex-a53"`` -> the sandbox ``arm64`` with that processor.

    Raises:
        ConfigError: no such sandbox, or a value where it takes none.
    """
    name, _, value = text.partition(":")
    option = find_sandbox(name).option
    if not value:
        return Place(name)
    if option is None:  # its worker would pass over it in silence
        raise ConfigError(f"{name!r} takes no value, but {text!r} gives one", remedy=f"write {name} alone")
    if "=" in value:
        pairs = [part.partition("=") for part in value.split(",")]
        return Place(name, {key: setting for key, _, setting in pairs})
    return Place(name, {option: value})
