"""The time of each kernel on this machine, from a session that is made for it: profiling slows what it watches."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import onnx_ir as ir

from edgeq import graph
from edgeq.errors import ModelError
from edgeq.node_times import NodeTime, read_profile
from edgeq.runtime import open_session, reason, session_options

if TYPE_CHECKING:
    from edgeq.target import Provider

__all__ = ["named_after", "profile_nodes"]

_WARMUP_RUNS = 2
_MIN_RUNS = 4
_MAX_RUNS = 100

_SUFFIXES = re.compile(r"(_nchwc)?(_token_\d+)?(/duplicated)?$")
"""What ONNX Runtime puts behind the name of a node, or of the tensor that it makes, when it rewrites it."""

_ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish"})


def profile_nodes(
    model: ir.Model | str | os.PathLike[str],
    inputs: Mapping[str, np.ndarray],
    *,
    provider: Provider | None = None,
    threads: int = 1,
    seconds: float = 0.5,
) -> tuple[NodeTime, ...]:
    """Run for ``seconds``, 6 to 102 times, and say how long each kernel took; see ``read_profile``, ``named_after``.

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
        return named_after(read_profile(profile.read_bytes(), warmup_runs=_WARMUP_RUNS), model)


def named_after(nodes: Sequence[NodeTime], model: ir.Model | str | os.PathLike[str]) -> tuple[NodeTime, ...]:
    """The kernels under the names of ``model``'s own nodes where that can be told, so that two models can be compared.

    A kernel that ONNX Runtime named after a tensor gets the name of the node that computes it; with an
    activation merged into it, that of the node in front.
    """
    if not isinstance(model, ir.Model):
        model = graph.load_model(model)
    makers = {str(value.name): node for node in model.graph for value in node.outputs}
    known = {**makers, **{str(node.name): node for node in model.graph}}

    def name(kernel: NodeTime) -> str:
        found = known.get(_SUFFIXES.sub("", kernel.node))
        while found is not None and found.op_type in _ACTIVATIONS and found.op_type not in kernel.op_type:
            found = found.inputs[0].producer() if found.inputs[0] is not None else None
        return kernel.node if found is None else str(found.name)

    return tuple(msgspec.structs.replace(node, node=name(node)) for node in nodes)
