"""Labels reach the samples that they belong to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_models import parse, weights

import edgeq


@pytest.mark.parametrize("batch", ["N", 1, 4])
def test_labels_of_held_out_rows(tmp_path: Path, batch: int | str) -> None:
    """Each row's label is what the float model says of it: whoever mixes rows up finds less than 100 %."""
    w = weights(8, 5, scale=1.0)
    model = parse(f"g (float[{batch},8] x) => (float[{batch},5] y) {{ y = Gemm(x, w) }}", w=w)
    x = weights(40, 8, seed=1, scale=1.0)
    np.save(tmp_path / "x.npy", x)
    labels = {f"x.npy[{row}]": int(label) for row, label in enumerate((x @ w).argmax(axis=1))}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    report = edgeq.export(
        model,
        target="linux-x64",
        precision="w8a8",
        calibration=tmp_path / "x.npy",
        labels=tmp_path / "labels.json",
        output=tmp_path / "out",
        measure=False,
    ).report
    assert report.primary == "top-1 accuracy"
    primary = next(metric for metric in report.metrics if metric.name == report.primary)
    assert primary.float_value == 100
    assert primary.value >= 75
    assert primary.samples == 8
