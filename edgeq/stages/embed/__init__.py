"""From a bundle to a project that an app build takes in: typed code, the model as an asset, tests on the device."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edgeq.bundle import Bundle
from edgeq.embedding import Embedded, EmbedOptions
from edgeq.errors import ConfigError
from edgeq.stages.embed.meaning import pictures_at_once
from edgeq.stages.embed.platforms import PLATFORMS
from edgeq.stages.embed.project import Platform, Request
from edgeq.stages.embed.write import Record, made_files, read_record, write_project

__all__ = ["PLATFORMS", "check_embedding", "embed_bundle"]


def check_embedding(platform: str, folder: Path, options: EmbedOptions) -> Platform:
    """The platform, if a project for it may be written to ``folder``: before an hour's work, not after it.

    Raises:
        ConfigError: an unknown platform, or an option that it does not have.
        OutputError: the folder holds something else.
    """
    if platform not in PLATFORMS:
        raise ConfigError(f"unknown platform {platform!r}", remedy=f"choose one of: {', '.join(PLATFORMS)}")
    PLATFORMS[platform].check(options)
    read_record(folder, platform)
    return PLATFORMS[platform]


def embed_bundle(bundle: Bundle, platform: str, folder: Path, options: EmbedOptions) -> Embedded:
    """Write a project, or bring one up to date that was written before; see ``edgeq.embed``.

    Raises:
        ConfigError: an unknown platform, an option that it does not have, or a model that it cannot run.
        OutputError: the folder holds something else or cannot be written.
    """
    chosen = check_embedding(platform, folder, options)
    earlier = read_record(folder, platform)
    if earlier is not None:
        options = options.over(earlier.options)
    with tempfile.TemporaryDirectory(prefix="edgeq-") as scratch:
        project = chosen.make(Request(bundle, options, Path(scratch), made_files(folder, earlier)))
        changes = write_project(folder, project, Record(platform=platform, options=options), earlier)
    return Embedded(
        path=folder,
        platform=platform,
        written=tuple(changes.written),
        unchanged=tuple(changes.unchanged),
        kept=tuple(changes.kept),
        conflicts=tuple(changes.conflicts),
        removed=tuple(changes.removed),
        sizes=project.sizes,
        notes=(*project.notes, *_batch_notes(bundle), *chosen.notes(bundle.manifest.target)),
        next=project.next,
    )


def _batch_notes(bundle: Bundle) -> tuple[str, ...]:
    """What to say of a model that takes more than one picture at a time."""
    count = pictures_at_once(bundle.manifest)
    if count == 1:
        return ()
    return (
        f"the model takes {count} pictures at a time, so nothing is written that takes one: run takes tensors; "
        "export a model for one picture (batch 1 or of any size) to have it",
    )
