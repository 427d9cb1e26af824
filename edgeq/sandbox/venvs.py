"""Sandboxes that are a pinned virtual environment and one of the worker scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from edgeq.errors import ProviderError
from edgeq.progress import Progress
from edgeq.sandbox.environments import find_environment, installed_folder, installing, make_environment, python_of
from edgeq.sandbox.process import Worker, python_command, run_tasks
from edgeq.sandbox.protocol import Outcome, Task

__all__ = ["VenvSandbox"]


class VenvSandbox:
    """A sandbox whose table in ``environments.toml`` has its name.

    Subclasses add what is not a Python package (``_add``) and what the process needs (``_variables``).
    """

    def __init__(
        self,
        name: str,
        *,
        gives: Literal["numbers", "build"] = "numbers",
        script: str = "ort_worker.py",
        quick: bool = True,
        option: str | None = None,
    ) -> None:
        self._environment = find_environment(name)
        self._script = script
        self.name = name
        self.gives = gives
        self.summary = self._environment.summary
        self.licence = self._environment.licence
        self.size_mb = self._environment.size_mb
        self.quick = quick
        self.option = option

    def unusable(self) -> str | None:
        return self._environment.unusable()

    def missing(self) -> str | None:
        if why := self.unusable():
            return why
        return None if self._folder() else "it is not installed"

    def install(self, progress: Progress) -> None:
        if why := self.unusable():
            raise ProviderError(
                f"the sandbox {self.name!r} cannot run here: {why}",
                remedy="check packages of this target on such a machine",
            )
        if self._folder() is not None:
            return
        with installing(self.name, self._environment.packages) as folder:
            make_environment(folder, self._environment, progress)
            self._add(folder, progress)

    def run(
        self, tasks: Sequence[Task], *, arguments: Mapping[str, str] | None = None, timeout_s: float = 300.0
    ) -> list[Outcome]:
        folder = self._folder()
        if folder is None:
            raise ProviderError(
                f"the sandbox {self.name!r} is not usable: {self.missing()}",
                remedy=f"edgeq doctor --install-provider {self.name}",
            )
        worker = Worker(python_command(python_of(folder), self._script), self._variables(folder))
        return run_tasks(worker, tasks, arguments=arguments, timeout_s=timeout_s)

    def _folder(self) -> Path | None:
        return installed_folder(self.name, self._environment.packages)

    def _add(self, folder: Path, progress: Progress) -> None:
        """Put into ``folder`` what is needed beside the packages."""

    def _variables(self, folder: Path) -> dict[str, str]:  # noqa: ARG002 subclasses use it
        """Environment variables of the worker."""
        return {}
