"""Run batches through a model, and remember what the float model answers: many candidates are compared with it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgeq.errors import ModelError
from edgeq.runtime import Optimization, open_session, session_options

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgeq.target import Provider

__all__ = ["Predict", "Reference", "predictor"]

Predict = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
"""Runs one batch: arrays by input name to arrays by output name."""

_MOST_BYTES = 1 << 28
"""How much of the answers is kept in memory; what is more is computed again."""


@dataclass
class Reference:
    """A float model whose answers are kept, by the bytes of what was asked, as far as they fit in memory."""

    model: ir.Model
    most_bytes: int = _MOST_BYTES
    held: dict[bytes, dict[str, np.ndarray]] = field(default_factory=dict, repr=False)
    held_bytes: int = 0

    @contextmanager
    def predictor(self, threads: int = 0) -> Iterator[Predict]:
        """As ``predictor`` of the model; a session is opened only for what is not known yet."""
        with ExitStack() as stack:
            run: list[Predict] = []

            def predict(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
                key = _key(inputs)
                if key in self.held:
                    return dict(self.held[key])
                if not run:
                    run.append(stack.enter_context(predictor(self.model, threads=threads)))
                found = run[0](inputs)
                size = sum(array.nbytes for array in found.values())
                if self.held_bytes + size <= self.most_bytes:
                    self.held[key], self.held_bytes = dict(found), self.held_bytes + size
                return found

            yield predict


def _key(inputs: Mapping[str, np.ndarray]) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(inputs):
        digest.update(f"{name} {inputs[name].dtype} {inputs[name].shape} ".encode())
        digest.update(np.ascontiguousarray(inputs[name]).tobytes())
    return digest.digest()


@contextmanager
def predictor(
    model: ir.Model | str | os.PathLike[str] | Reference,
    *,
    provider: Provider | None = None,
    optimization: Optimization = "all",
    threads: int = 0,
) -> Iterator[Predict]:
    """A function that runs batches through one session; a ``Reference`` runs on the CPU, or remembers."""
    if isinstance(model, Reference):
        with model.predictor(threads) as remembered:
            yield remembered
        return
    options = session_options(
        threads=threads, optimization=optimization, config=provider.session if provider is not None else None
    )
    with open_session(model, options, provider) as session:
        names = [output.name for output in session.get_outputs()]

        def predict(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            try:
                return dict(zip(names, session.run(names, dict(inputs)), strict=True))
            except Exception as error:  # ONNX Runtime's exceptions share no public base class
                raise ModelError(
                    f"the model fails on the evaluation's data: {str(error)[:300]}",
                    remedy="check the names, types and shapes of the data against `edgeq inspect`",
                ) from None

        yield predict
