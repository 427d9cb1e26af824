from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from calibrate_models import CONV, parse


@pytest.fixture
def conv() -> ir.Model:
    """Image [batch, 3, 8, 8] -> conv -> relu -> out, dynamic batch."""
    return parse(CONV.format(batch="N"))


@pytest.fixture
def conv1() -> ir.Model:
    """The same with a fixed batch of 1."""
    return parse(CONV.format(batch="1"))


@pytest.fixture
def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [rng.normal(0, 1 + i, (1, 3, 8, 8)).astype(np.float32) for i in range(12)]
