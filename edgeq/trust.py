"""What a bundle from a stranger may ask of the provider that it names: nothing that loads or writes files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Set

from edgeq.bundle import Bundle
from edgeq.errors import ValidationError
from edgeq.target import Provider, load_target, target_names

__all__ = ["check_providers"]

_PATH_KEY = re.compile(r"path|file|folder|dir|library|prefix", re.IGNORECASE)
_PATH = re.compile(r"[/\\]|\.(so|dll|dylib)\b")


def check_providers(bundle: Bundle) -> None:
    """Refuse a manifest that makes ONNX Runtime load or write what edgeq's own targets do not.

    A plugin's ``module`` is imported, and some options of providers name libraries to load or files to
    write: a checksum says nothing of whether they should.

    Raises:
        ValidationError: an unknown module, or an option that holds a path.
    """
    known = {load_target(name).provider.module for name in target_names()} - {None}
    for graph in bundle.manifest.graphs:
        for what in _demands(graph.provider, known):
            raise ValidationError(
                f"the manifest lets the provider of {graph.model} load or write {what}",
                where=str(bundle.path),
                remedy="if you made this bundle with a target of your own, say so with --trust-provider; "
                "else do not trust it",
            )


def _demands(provider: Provider, known: Set[str | None]) -> Iterator[str]:
    if provider.registration == "plugin" and provider.module not in known:
        yield f"the Python module {provider.module or provider.package!r}, which no target of edgeq uses"
    for key, value in (*provider.options.items(), *provider.session.items()):
        if _PATH.search(value) or _PATH_KEY.search(key):
            yield f"{key} = {value!r}"
