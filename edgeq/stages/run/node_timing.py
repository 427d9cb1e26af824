"""The time of each kernel on this machine, from a session that is made for it: profiling slows what it watches."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeq.errors import ModelError
from edgeq.node_times import NodeTime, read_profile
from edgeq.runtime import open_session, reason, session_options

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgeq.target import Provider

__all__ = ["profile_nodes"]

_WARMUP_RUNS = 2
_MIN_RUNS = 4
_MAX_RUNS = 100


def profile_nodes(
    model: ir.Model | str | os.PathLike[str],
    inputs: Mapping[str, np.ndarray],
    *,
    provider: Provider | None = None,
    threads: int = 1,
    seconds: float = 0.5,
) -> tuple[NodeTime, ...]:
    """Run for ``seconds``, 6 to 102 times, and say how long each kernel took; see ``read_profile``.

    Raises:
        ModelError: the model does not load or run.
        ProviderError: the provider is not available on this machine.
    """
    with tempfile.TemporaryDirectory(prefix="edgeq-") as folder:
        options = session_options(threads=threads, config=provider.session if provider else None)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        with open_session(model, options, provider) as session:
            try:
                for _ in range(_WARMUP_RUNS):
                    session.run(None, dict(inputs))
                start, runs = time.perf_counter(), 0
                while runs < _MIN_RUNS or (runs < _MAX_RUNS and time.perf_counter() - start < seconds):
                    session.run(None, dict(inputs))
                    runs += 1
            except Exception as error:  # ONNX Runtime's exceptions share no public base class
                raise ModelError(
                    f"the model fails while its nodes are timed: {reason(error)}",
                    remedy="check the names, types and shapes of the inputs",
                ) from None
            finally:
                profile = Path(session.end_profiling())
        return read_profile(profile.read_bytes(), warmup_runs=_WARMUP_RUNS)
