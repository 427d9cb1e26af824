"""Proof that a pass kept the model's outputs, in ONNX Runtime without its own optimizations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from edgeq.errors import ModelError
from edgeq.graph import feeds_for, input_infos
from edgeq.metrics import sqnr_db
from edgeq.runtime import Optimization, open_session, session_options
from edgeq.stages.prep.fix_shapes import fit_inputs
from edgeq.stages.prep.rewrite import Effect

__all__ = ["MIN_SQNR_DB", "RELATIVE_TOLERANCE", "Difference", "Proof"]

MIN_SQNR_DB = 90.0
RELATIVE_TOLERANCE = 1e-4
"""Largest error over largest output. Rounding differently in float32 stays a hundred times below."""

_HALF_SQNR_DB = 40.0
_HALF_TOLERANCE = 2e-2
"""The same for outputs in float16 and bfloat16, whose steps are 2^-11 and 2^-8."""

_MARGIN_DB = 10.0
_LEAST_SQNR_DB = 40.0
"""A model that rounds badly by itself may differ by 10 dB more than it does by itself, down to 40 dB: see `Proof`."""

_REMEDY = "this is a defect of edgeq: please report it with the model"


@dataclass(frozen=True)
class Difference:
    """The worst over all outputs and samples; ``output`` is the name of the worst output."""

    output: str
    max_abs_error: float
    sqnr_db: float


class Proof:
    """Holds the original model's outputs on the example inputs and on one seeded variation of them.

    Outputs that are small differences of large numbers, or the tail of a sigmoid, are known to less
    than `MIN_SQNR_DB`: the original itself gives others once ONNX Runtime optimizes it. Where a
    pass exceeds the fixed limits, that difference is measured, and the pass may add 10 dB to it.

    Args:
        model: The original; it must not be changed while the proof is in use.
        fixed: The model with the dimensions fixed that are to be fixed. Where a dimension is left
            dynamic, the variation is one longer, if the original runs at that size at all.
        example_inputs: One batch by input name; repeated or cut to the fixed sizes.

    Raises:
        ModelError: an input is missing, or ONNX Runtime cannot load or run the original.
    """

    def __init__(self, model: ir.Model, fixed: ir.Model, example_inputs: Mapping[str, np.ndarray]) -> None:
        pairs = feeds_for(input_infos(fixed), fit_inputs(fixed, example_inputs))
        example = {info.name: array for info, array in pairs}
        varied = vary(example)
        self._model = model
        self._names = [str(output.name) for output in model.graph.outputs]
        self._feeds = (example, fit_inputs(fixed, varied, longer=1))
        try:
            self._original = self._run(model)
        except ModelError:
            self._feeds = (example, varied)
            self._original = self._run(model)
        self._last = self._original

    def check(self, model: ir.Model, pass_name: str, effect: Effect) -> Difference:
        """Compare with the original, and for an exact pass with the model before it.

        Raises:
            ModelError: the outputs differ by more than the pass may; names the pass.
        """
        try:
            outputs = self._run(model)
        except ModelError as error:
            what = f"preparation pass {pass_name!r} broke the model: {error.what}"
            raise ModelError(what, where=error.where, remedy=_REMEDY) from None
        difference = worst(self._names, self._original, outputs)
        step = worst(self._names, self._last, outputs)
        exact = effect != "reorders"
        loss = f"may lose no more than {MIN_SQNR_DB:g} dB and {RELATIVE_TOLERANCE:g} of the largest output"
        for index, name in enumerate(self._names):
            for number, (original, last, output) in enumerate(zip(self._original, self._last, outputs, strict=True)):
                if exact and not _equal(last[index], output[index]):
                    raise _failure(pass_name, name, step, "must keep outputs to the bit")
                if _close(original[index], output[index]):
                    continue
                if not _within(original[index], output[index], self._rounded[number][index]):
                    raise _failure(pass_name, name, difference, loss)
        self._last = outputs
        return difference

    @cached_property
    def _rounded(self) -> list[list[np.ndarray]]:
        """The original's outputs after ONNX Runtime's optimizations: the same function, rounded differently."""
        return self._run(self._model, "all")

    def _run(self, model: ir.Model, optimization: Optimization = "none") -> list[list[np.ndarray]]:
        # A weight known in advance is packed for another kernel, which rounds differently: with
        # packing off, it makes no difference whether an operand is computed or folded.
        config = {"session.disable_prepacking": "1"}
        with open_session(model, session_options(optimization=optimization, config=config)) as session:
            try:
                return [session.run(self._names, dict(feeds)) for feeds in self._feeds]
            except Exception as error:  # ONNX Runtime's exceptions share no public base class
                raise ModelError(f"the model fails while running: {str(error).strip()[:300]}") from None


def vary(example: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Other inputs that are as valid: values shuffled along the last axis; floats also halved.

    Token ids stay in the vocabulary, masks stay masks.
    """
    rng = np.random.default_rng(0)
    varied = {}
    for name, array in sorted(example.items()):
        shuffled = rng.permuted(array, axis=-1) if array.ndim else array
        varied[name] = shuffled * array.dtype.type(0.5) if array.dtype.kind == "f" else shuffled
    return varied


def worst(
    names: Sequence[str], reference: Sequence[Sequence[np.ndarray]], outputs: Sequence[Sequence[np.ndarray]]
) -> Difference:
    """The output and sample with the lowest SQNR."""
    found = Difference(names[0] if names else "", 0.0, float("inf"))
    for index, name in enumerate(names):
        for ours, theirs in zip(reference, outputs, strict=True):
            error, sqnr = _measure(ours[index], theirs[index])
            lowest = min(sqnr, found.sqnr_db)
            found = Difference(name if sqnr < found.sqnr_db else found.output, max(error, found.max_abs_error), lowest)
    return found


def _measure(reference: np.ndarray, output: np.ndarray) -> tuple[float, float]:
    if _equal(reference, output):
        return 0.0, float("inf")
    if reference.shape != output.shape or reference.dtype != output.dtype or reference.dtype.kind not in "fiub":
        return float("inf"), float("-inf")
    a, b = reference.astype(np.float64), output.astype(np.float64)
    # Where the original is not finite, the output must be the same; elsewhere it is measured.
    wild = ~np.isfinite(a)
    if not _equal(a[wild], b[wild]):
        return float("inf"), float("-inf")
    a, b = a[~wild], b[~wild]
    return float(np.abs(a - b).max(initial=0.0)), sqnr_db(a, b)


def _equal(reference: np.ndarray, output: np.ndarray) -> bool:
    if reference.dtype != output.dtype or reference.shape != output.shape:
        return False
    return np.array_equal(reference, output, equal_nan=reference.dtype.kind == "f")


def _close(reference: np.ndarray, output: np.ndarray) -> bool:
    if _equal(reference, output):
        return True
    if reference.dtype.kind != "f":
        return False
    error, sqnr = _measure(reference, output)
    finite = np.abs(reference[np.isfinite(reference)]).astype(np.float64)
    half = reference.dtype.itemsize < 4
    tolerance, least = (_HALF_TOLERANCE, _HALF_SQNR_DB) if half else (RELATIVE_TOLERANCE, MIN_SQNR_DB)
    return sqnr >= least and error <= tolerance * float(finite.max(initial=0.0))


def _within(reference: np.ndarray, output: np.ndarray, rounded: np.ndarray) -> bool:
    """Whether ``output`` is hardly farther from ``reference`` than ``rounded`` is, which is as right as they are."""
    error, sqnr = _measure(reference, output)
    own_error, own_sqnr = _measure(reference, rounded)
    if not np.isfinite(own_error):
        return False
    return sqnr >= max(own_sqnr - _MARGIN_DB, _LEAST_SQNR_DB) and error <= 10 ** (_MARGIN_DB / 20) * own_error


def _failure(pass_name: str, output: str, difference: Difference, rule: str) -> ModelError:
    return ModelError(
        f"preparation pass {pass_name!r} changed output {output!r}: largest error {difference.max_abs_error:.3g}, "
        f"SQNR {difference.sqnr_db:.1f} dB; it {rule}",
        where=f"pass {pass_name!r}",
        remedy=_REMEDY,
    )
