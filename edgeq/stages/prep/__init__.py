"""Float model in, the same function out: folded, canonical, with fixed shapes where asked, and proved.

The passes stand in ``passes.py``; each is one file.
"""

from __future__ import annotations

from edgeq.stages.prep.passes import PREP_PASSES
from edgeq.stages.prep.prepare import Prepared, PrepStep, prepare

__all__ = ["PREP_PASSES", "PrepStep", "Prepared", "prepare"]
