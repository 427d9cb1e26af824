"""Releases of ONNX Runtime: which models each reads. Platforms pin one, or take any from some version on."""

from __future__ import annotations

import re

from edgeq.bundle import GraphEntry
from edgeq.errors import ConfigError
from edgeq.graph import load_model
from edgeq.stages.embed.project import Request

__all__ = ["at_least", "check_release", "needed_release", "oldest_release", "reads", "reduced_build"]

_READS = {
    (1, 17): (20, 9),
    (1, 18): (21, 10),
    (1, 21): (22, 10),
    (1, 23): (23, 11),
    (1, 24): (25, 13),
    (1, 27): (26, 13),
    (1, 32): (28, 14),
}
"""The newest opset and IR version that a release loads, on the CPU provider.

Measured with one operator on pip's packages of 1.17.3, 1.18.1, 1.19.2, 1.20.1, 1.21.1, 1.22.1, 1.23.2, 1.24.2, 1.27.0,
1.29.0, 1.30.0, 1.31.1 and 1.32.0; those that are not in the table load what the one before them does. All builds of a
release have the same sources.
"""

_WRITTEN_FOR = {"MatMulNBits": (1, 29)}
"""Operators that newer releases write to the ort format in a way that older ones refuse, and which release reads it.

Measured: 1.32 writes MatMulNBits with an attribute (weight_prepacked) that 1.29.0 knows, 1.24.2 and 1.27.0 do not.
Models of 8 bits without that operator that 1.32 wrote gave the same outputs in 1.24.2, 1.29.0 and 1.30.0.
"""


def reads(version: str) -> tuple[int, int]:
    """The newest opset and IR version that a release reads, or one before it that was measured."""
    return max(found for release, found in _READS.items() if release <= _parse(version))


def oldest_release(opset: int, ir_version: int) -> str | None:
    """The oldest release that reads such a model, such as ``"1.18"``; None if none is known that does."""
    for release, (most, newest) in sorted(_READS.items()):
        if opset <= most and ir_version <= newest:
            return ".".join(map(str, release))
    return None


def check_release(request: Request, package: str, version: str, target: str) -> None:
    """Check that a platform's pinned release reads all graphs as they are put into the project.

    ``package`` is what the platform calls it, ``target`` the one to export for.

    Raises:
        ConfigError: the opset or IR version of a graph is newer, or its ort format is.
    """
    import onnxruntime

    opset, ir_version = reads(version)
    for graph in request.graphs:
        found = _versions(request, graph.entry)
        if found[0] > opset or found[1] > ir_version:
            raise ConfigError(
                f"{graph.entry.model} has opset {found[0]} and IR version {found[1]}; {package} {version} reads "
                f"up to {opset} and {ir_version}",
                remedy=f"export the model again with --target {target}, which chooses the opset",
            )
        if graph.converted is not None and (operator := _unreadable(graph.converted.operators, version)):
            raise ConfigError(
                f"the model has {operator}, which ONNX Runtime {onnxruntime.__version__} writes to its own format in a "
                f"way that {package} {version} does not read",
                where="--format",
                remedy="use --format onnx",
            )


def reduced_build(request: Request, version: str) -> str | None:
    """The operators of a reduced build (`Request.operators`); None where the release does not read the ort format.

    Such a build takes nothing else.
    """
    operators = request.operators
    return None if operators is None or _unreadable(operators, version) else operators


def needed_release(request: Request) -> str:
    """The oldest release that reads all graphs as they are put into the project, for platforms that take any.

    The ort format is promised to later releases than the one that wrote it only.
    """
    import onnxruntime

    newest = request.bundle.manifest.versions.get("onnxruntime", onnxruntime.__version__)
    needed = [
        onnxruntime.__version__ if graph.converted else oldest_release(*_versions(request, graph.entry)) or newest
        for graph in request.graphs
    ]
    return max(needed, key=_parse)


def at_least(versions: str, needed: str) -> str:
    """A version specifier such as ``">=1.24.2"`` that leaves out what is older than ``needed``, too."""
    lowest = re.search(r"[>=]=\s*(\d+\.\d+)", versions)
    if lowest is not None and _parse(lowest[1]) >= _parse(needed):
        return versions
    others = re.sub(r"^>=\s*[\d.]+$", "", versions)
    return ",".join(filter(None, (others, f">={needed}")))


def _versions(request: Request, entry: GraphEntry) -> tuple[int, int]:
    """Opset and IR version of a graph's model."""
    model = load_model(request.bundle.file(entry.model))
    return model.opset_imports.get("", 1), model.ir_version or 1


def _unreadable(operators: str, version: str) -> str | None:
    """An operator that this installation's ONNX Runtime writes to the ort format as the release does not read it."""
    import onnxruntime

    writes = _parse(onnxruntime.__version__)
    found = (name for name, since in _WRITTEN_FOR.items() if name in operators and _parse(version) < since <= writes)
    return next(found, None)


def _parse(version: str) -> tuple[int, int]:
    numbers = re.match(r"(\d+)\.(\d+)", version)
    assert numbers is not None, version
    return int(numbers[1]), int(numbers[2])
