"""Every error a user can meet: what was asked, what was found, where, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeq.report import Report
    from edgeq.request import Exported

__all__ = [
    "CalibrationError",
    "ConfigError",
    "ContractError",
    "EdgeqError",
    "ExportError",
    "GateError",
    "MissingProviderError",
    "ModelError",
    "NothingToQuantizeError",
    "OutputError",
    "ProviderError",
    "ValidationError",
]


class EdgeqError(Exception):
    """Base of all errors that edgeq raises on purpose.

    Args:
        what: What was asked and what was found instead, in one sentence.
        where: File, node, tensor or option that the sentence is about.
        remedy: What the user can do next.

    ``exit_code`` is the process's exit code when the error reaches the command line.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.what = what
        self.where = where
        self.remedy = remedy
        super().__init__(self.__str__())

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.remedy:
            lines.append(f"  remedy: {self.remedy}")
        return "\n".join(lines)


class ConfigError(EdgeqError):
    """A target profile, recipe or option is unknown or malformed."""

    exit_code = 2


class ExportError(EdgeqError):
    """A source could not be turned into a float ONNX model that matches it."""

    exit_code = 3


class ModelError(EdgeqError):
    """A model does not parse, is inconsistent, or uses an operator that cannot be run."""

    exit_code = 3


class NothingToQuantizeError(ModelError):
    """A precision leaves every tensor of a model as it is: the package would be the float model."""


class CalibrationError(EdgeqError):
    """Calibration data is missing, unreadable, of the wrong shape or type, or gives NaN."""

    exit_code = 4


class ProviderError(EdgeqError):
    """An execution provider is absent or refused the model."""

    exit_code = 5


class MissingProviderError(ProviderError):
    """A machine or device runs models, but lacks the execution provider that a graph is made for."""


class ValidationError(EdgeqError):
    """A bundle does not reproduce what its manifest or its reference outputs say."""

    exit_code = 6


class ContractError(EdgeqError):
    """A result was produced, but it does not meet ``--max-drop`` or another limit.

    ``exported`` is the best result, an ``edgeq.request.Exported``.
    """

    exit_code = 7

    def __init__(self, what: str, where: str, remedy: str, exported: Exported) -> None:
        self.exported = exported
        super().__init__(what, where=where, remedy=remedy)


class GateError(EdgeqError):
    """A result was produced, but not as ``--gate`` demands: some nodes do not run as they should.

    ``report`` is the whole report; ``exported`` the package, an ``edgeq.request.Exported``, where one was made.
    """

    exit_code = 9

    def __init__(self, what: str, where: str, remedy: str, report: Report, exported: Exported | None = None) -> None:
        self.report = report
        self.exported = exported
        super().__init__(what, where=where, remedy=remedy)


class OutputError(EdgeqError):
    """An output cannot be written: it exists already, or the disk is full or read-only."""

    exit_code = 8
