"""The largest magnitude of every float tensor, from a few samples: what decides whether float16 can hold it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import islice

import numpy as np
import onnx_ir as ir

from edgeq.errors import CalibrationError
from edgeq.runtime import open_session, reason, session_options

__all__ = ["PEAK_SAMPLES", "observe_peaks"]

PEAK_SAMPLES = 8
"""Batches that are looked at: magnitudes are far from the limit, or beyond it, whatever the sample."""


def observe_peaks(
    model: ir.Model, batches: Iterable[Mapping[str, np.ndarray]], *, wanted: Collection[str] | None = None
) -> dict[str, float]:
    """The largest magnitude of each float32 tensor of the main graph, by name, over the first batches.

    With ``wanted`` only of those.

    Only one number per tensor leaves the model, so that memory does not grow with it. A batch in which a
    tensor is empty or holds an infinity does not count for it; without any other it is missing. ``model``
    is left as it is.

    Raises:
        CalibrationError: the model fails on a sample.
        ModelError: ONNX Runtime cannot load the model.
    """
    probed, names = _probe(model, wanted)
    peaks: dict[str, float] = {}
    if not names:
        return peaks
    with open_session(probed, session_options()) as session:
        outputs = list(names)
        for number, batch in enumerate(islice(batches, PEAK_SAMPLES)):
            try:
                values = session.run(outputs, dict(batch))
            except Exception as error:  # ONNX Runtime's exceptions share no public base class
                raise CalibrationError(
                    f"the model fails on sample number {number}: {reason(error)}",
                    remedy="compare the sample's shapes and values with what the model expects",
                ) from None
            for output, value in zip(outputs, values, strict=True):
                if np.isfinite(value):
                    peaks[names[output]] = max(peaks.get(names[output], 0.0), float(value))
    return peaks


def _probe(model: ir.Model, wanted: Collection[str] | None) -> tuple[ir.Model, dict[str, str]]:
    """A copy (weights shared) whose outputs are the magnitudes alone, and the tensor that each belongs to."""
    copy = model.clone()
    floats = [value for value in copy.graph.inputs if _float(value)]
    floats += [output for node in copy.graph for output in node.outputs if _float(output)]
    floats = [value for value in floats if wanted is None or value.name in wanted]
    names: dict[str, str] = {}
    outputs = []
    for number, value in enumerate(floats):
        size = ir.node("Abs", [value])
        peak = ir.node("ReduceMax", [size.outputs[0]], {"keepdims": 0})
        output = peak.outputs[0]
        size.outputs[0].name, output.name = f"edgeq_size_{number}", f"edgeq_peak_{number}"
        output.type, output.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
        copy.graph.extend([size, peak])
        names[output.name] = str(value.name)
        outputs.append(output)
    copy.graph.outputs[:] = outputs
    return copy, names


def _float(value: ir.Value) -> bool:
    # An output that nobody wants, such as the states of an LSTM, has no name.
    named = bool(value.name) and not value.is_initializer()
    return named and value.dtype == ir.DataType.FLOAT and isinstance(value.type, ir.TensorType)
