"""From a bundle to a project for an app build."""

from __future__ import annotations

import os
from pathlib import Path

from edgeq.bundle import read_bundle
from edgeq.embedding import Embedded, EmbedOptions
from edgeq.stages.embed import check_embedding, embed_bundle
from edgeq.trust import check_providers

__all__ = ["check_projects", "embed", "project_folder"]


def project_folder(bundle: Path, platform: str) -> Path:
    """Where a project goes that is not told otherwise: beside the bundle, since a new bundle replaces the old one."""
    return bundle.with_name(f"{bundle.name}-embed") / platform


def check_projects(bundle: Path, platforms: tuple[str, ...]) -> None:
    """Raise what ``embed`` would, before there is a bundle: an unknown platform, a folder that holds something else."""
    for platform in platforms:
        check_embedding(platform, project_folder(bundle, platform), EmbedOptions())


def embed(
    path: str | os.PathLike[str],
    platform: str,
    output: str | os.PathLike[str] | None,
    options: EmbedOptions,
    *,
    trust_provider: bool = False,
) -> Embedded:
    """Verify a bundle and write a project from it; see ``edgeq.embed``."""
    bundle = read_bundle(path)
    if not trust_provider:
        check_providers(bundle)
    folder = Path(output) if output is not None else project_folder(Path(path), platform)
    return embed_bundle(bundle, platform, folder, options)
