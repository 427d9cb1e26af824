"""What the report's page shows of the trials: for each block what was kept, and what it gained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeq.qtypes import Trial

__all__ = ["trials_page"]


def trials_page(trials: Sequence[Trial]) -> dict[str, Any] | None:
    """The template's variables for the trials, a row per block in the order of the walk; None without any trial."""
    if not trials:
        return None
    blocks: dict[str, list[Trial]] = {}
    for trial in trials:
        blocks.setdefault(trial.block, []).append(trial)
    return {
        "tried": len(trials),
        "kept": sum(trial.kept for trial in trials),
        "rows": [_row(block, tried) for block, tried in blocks.items()],
    }


def _row(block: str, tried: Sequence[Trial]) -> dict[str, Any]:
    kept = [trial for trial in tried if trial.kept]
    return {
        "block": block,
        "kept": [{"method": trial.method, "gain": _gain(trial)} for trial in kept],
        "refused": len(tried) - len(kept),
        "before": _decibel(tried[0].before_db),
        "after": _decibel(kept[-1].after_db if kept else tried[0].before_db),
    }


def _gain(trial: Trial) -> str:
    if trial.before_db is None or trial.after_db is None:
        return ""
    return f"{trial.after_db - trial.before_db:+.1f} dB"


def _decibel(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.1f} dB"
