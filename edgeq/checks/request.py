"""What a user can ask to be checked: targets on their providers, or one model by the rules of a target."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from edgeq.checks.lint import lint
from edgeq.checks.rules import Violation
from edgeq.errors import ConfigError
from edgeq.graph import load_model
from edgeq.target import TargetProfile, load_target, target_names

__all__ = ["all_profiles", "check_model", "chosen_profiles"]


def all_profiles() -> list[TargetProfile]:
    """Every target, and behind it its variants other than the default."""
    profiles = []
    for name in target_names():
        profile = load_target(name)
        profiles.append(profile)
        profiles += [load_target(f"{name}@{variant}") for variant in profile.variants if variant != profile.variant]
    return profiles


def chosen_profiles(
    names: Sequence[str],
    *,
    everything: bool,
    model: Path | None,
    ops: Sequence[str],
    record: Path | None,
) -> list[TargetProfile]:
    """The profiles that are to be checked.

    Raises:
        ConfigError: an unknown target, none at all, or options that contradict one another.
    """
    if everything == bool(names):
        raise ConfigError(
            "name the targets to check, or give --all" if not names else "give names or --all, not both",
            remedy="such as `edgeq targets check android-npu`; `edgeq targets` lists them",
        )
    if model is not None and (len(names) != 1 or ops or record is not None):
        raise ConfigError("--model takes one target and neither --op nor --record")
    if ops and record is not None:
        raise ConfigError("--op checks a part of a target, which --record cannot keep", remedy="leave out --op")
    profiles = all_profiles() if everything else [load_target(name) for name in names]
    known = {op for profile in profiles for capability in profile.capability for op in capability.ops}
    unknown = [op for op in ops if op not in known]
    if unknown:
        raise ConfigError(
            f"{', '.join(profile.name for profile in profiles)} promises nothing of {', '.join(unknown)}",
            remedy="`edgeq targets show NAME` lists the operators",
        )
    return profiles


def check_model(path: str | os.PathLike[str], profile: TargetProfile) -> list[Violation]:
    """What the rules of ``profile`` say of a quantized ONNX model, or of the model in a bundle.

    Raises:
        ModelError: the file is missing or no ONNX model.
    """
    file = Path(path)
    return lint(load_model(file / "model.onnx" if file.is_dir() else file), profile)
