"""Proof that an exported model computes what its source computes, before any other stage touches it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgeq import graph, runtime
from edgeq.errors import EdgeqError, ExportError
from edgeq.metrics import sqnr_db
from edgeq.source import Parity

__all__ = ["Arrays", "Reference", "check_parity", "dynamic_axes", "usable", "vary"]

Arrays = Mapping[str, np.ndarray]
Reference = Callable[[Arrays], Arrays]
"""Runs the source: one batch of inputs by name -> outputs by name."""

ABSOLUTE_TOLERANCE = 1e-5
RELATIVE_TOLERANCE = {np.dtype(np.float64): 1e-3, np.dtype(np.float32): 1e-3}
"""Of the output's largest magnitude. Another order of summation costs about 1e-6 of it; a wrong operator far more."""
HALF_TOLERANCE = 2e-2
"""The same for 16-bit floats, whose rounding alone is 5e-4 (float16) or 4e-3 (bfloat16) per operation."""


def check_parity(model: ir.Model, reference: Reference, samples: Sequence[Arrays], *, source: str) -> Parity:
    """Run ``model`` in ONNX Runtime without optimizations and ``reference`` on the same ``samples``.

    Float outputs may differ by ``1e-5 + 1e-3 max|reference|`` (2e-2 for 16-bit floats); integer and
    boolean outputs must be equal. Infinities and NaN must stand in the same places.

    Args:
        model: The exported model.
        reference: The source, as a function of arrays by input name.
        samples: Batches of inputs by name; at least one.
        source: What the reference is, for the record: ``"torch 2.13.0, eager"``.

    Raises:
        ExportError: an output is missing, or of another shape, or too far off; names the worst output.
    """
    rows: list[tuple[float, float, float, float, str]] = []
    with runtime.open_session(model, runtime.session_options(optimization="none")) as session:
        names = [output.name for output in session.get_outputs()]
        for sample in samples:
            expected = reference(sample)
            try:
                found = dict(zip(names, session.run(names, dict(sample)), strict=True))
            except Exception as error:  # ONNX Runtime's exceptions share no public base class
                raise ExportError(
                    f"the exported model fails on inputs that its source accepts: {' '.join(str(error).split())[:300]}",
                    where=", ".join(f"{name}: {array.dtype}{list(array.shape)}" for name, array in sample.items()),
                    remedy="export with fixed shapes, or report this model",
                ) from None
            rows.extend(_compare(name, expected, found[name]) for name in names)
    ratio, off, magnitude, _, worst = max(rows)
    if not ratio <= 1:
        raise ExportError(
            f"the exported model does not match its source: output {worst!r} is off by {off:.3g} "
            f"where values reach {magnitude:.3g} (allowed: {_allowed(off, ratio)})",
            where=f"{len(samples)} samples, reference: {source}",
            remedy="the exporter got an operator wrong: try another version of torch, or change that part of the model",
        )
    return Parity(
        reference=source,
        samples=len(samples),
        max_abs_error=max(row[1] for row in rows),
        max_abs_output=max(row[2] for row in rows),
        sqnr_db=min(row[3] for row in rows),
    )


def _compare(name: str, expected: Arrays, found: np.ndarray) -> tuple[float, float, float, float, str]:
    """(error / tolerance, max error, max magnitude, SQNR in dB, name) of one output."""
    if name not in expected:
        raise ExportError(f"the exported model has an output {name!r} that its source does not have")
    wanted = expected[name]
    if wanted.shape != found.shape or wanted.dtype != found.dtype:
        raise ExportError(
            f"output {name!r} of the exported model is {found.dtype}{list(found.shape)}, "
            f"its source gives {wanted.dtype}{list(wanted.shape)}",
            remedy="export with fixed shapes, or report this model",
        )
    if wanted.dtype == bool or np.issubdtype(wanted.dtype, np.integer):
        off = float(np.abs(wanted.astype(np.float64) - found.astype(np.float64)).max(initial=0.0))
        return 2 * off, off, float(np.abs(wanted.astype(np.float64)).max(initial=0.0)), float("inf"), name
    tolerance = RELATIVE_TOLERANCE.get(wanted.dtype, HALF_TOLERANCE)
    wanted, found = wanted.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(wanted)
    if not np.array_equal(wanted[~finite], found[~finite], equal_nan=True) or not np.isfinite(found[finite]).all():
        return float("inf"), float("inf"), float(np.abs(wanted[finite]).max(initial=0.0)), float("-inf"), name
    wanted, found = wanted[finite], found[finite]
    error = float(np.abs(wanted - found).max(initial=0.0))
    magnitude = float(np.abs(wanted).max(initial=0.0))
    allowed = ABSOLUTE_TOLERANCE + tolerance * magnitude
    return error / allowed, error, magnitude, sqnr_db(wanted, found), name


def _allowed(off: float, ratio: float) -> str:
    return f"{off / ratio:.3g}" if np.isfinite(off) else "finite values only where the source has them"


def dynamic_axes(model: ir.Model) -> dict[str, dict[int, str]]:
    """Axes of the inputs that have a plain name instead of a size (not an expression such as ``2*n``)."""
    axes: dict[str, dict[int, str]] = {}
    for info in graph.input_infos(model):
        named = {axis: dim for axis, dim in enumerate(info.shape) if isinstance(dim, str) and dim.isidentifier()}
        if named:
            axes[info.name] = named
    return axes


def vary(inputs: Arrays, axes: Mapping[str, Mapping[int, str]], *, seed: int = 0) -> dict[str, np.ndarray]:
    """Another valid batch, made of the values of ``inputs``, with other sizes on the dynamic ``axes``.

    Values are taken from the given batch in another order, so that token ids stay in the
    vocabulary and masks stay masks. Constant floats (a batch of zeros) become normal noise. Axis 0
    grows by one, other dynamic axes shrink by one: no limit of the model is passed.
    """
    rng = np.random.default_rng(seed)
    varied: dict[str, np.ndarray] = {}
    for name, array in inputs.items():
        other = rng.permuted(array.reshape(-1)).reshape(array.shape)
        if np.issubdtype(array.dtype, np.floating) and (array.size == 0 or array.min() == array.max()):
            other = np.asarray(array + rng.standard_normal(array.shape), dtype=array.dtype)
        for axis in axes.get(name, {}):
            size = array.shape[axis] + 1 if axis == 0 else max(array.shape[axis] - 1, 1)
            other = np.take(other, np.arange(size), axis=axis, mode="wrap")
        varied[name] = np.ascontiguousarray(other)
    return varied


def usable(reference: Reference, sample: Arrays, fallback: Arrays) -> Arrays:
    """``sample`` if the source accepts it, else ``fallback``: not every size is valid for every model."""
    try:
        reference(sample)
    except EdgeqError:
        return fallback
    return sample
