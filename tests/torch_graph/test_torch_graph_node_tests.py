"""The specification's own node tests, all that concern operators of the table (expected outputs come with them)."""

from __future__ import annotations

import warnings
from collections import defaultdict

import numpy as np
import onnx
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")

from edgeq.torch_graph import TorchGraph, unsupported  # noqa: E402
from edgeq.torch_graph.dtypes import to_torch  # noqa: E402
from edgeq.torch_graph.operators import OPERATORS  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow]

NAMES = sorted(name for domain, name in OPERATORS if domain == "")

DISAGREE = {
    "test_resize_downsample_scales_linear_align_corners": "ONNX Runtime aligns the corners of a whole number of pixels",
    "test_resize_downsample_scales_cubic_align_corners": "ONNX Runtime aligns the corners of a whole number of pixels",
}
"""Cases where ONNX Runtime does not do what the specification's reference does, and this follows ONNX Runtime."""

EXPANDED = "several nodes"


@pytest.fixture(scope="module")
def cases():
    """The supported cases by the type of their only node."""
    from onnx.backend.test import loader

    found = defaultdict(list)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for case in loader.load_model_tests(kind="node"):
            nodes = case.model.graph.node
            model = ir.from_proto(case.model)
            if not unsupported(model) and case.name not in DISAGREE:
                found[nodes[0].op_type if len(nodes) == 1 else EXPANDED].append((case, model))
    return found


def array_of(given) -> torch.Tensor:
    if isinstance(given, onnx.TensorProto):
        return to_torch(ir.from_proto(given))
    return to_torch(ir.tensor(np.asarray(given)))


def check(case, model) -> None:
    graph = TorchGraph(model)
    for inputs, outputs in case.data_sets:
        feeds = dict(zip((value.name for value in case.model.graph.input), map(array_of, inputs), strict=True))
        names = [value.name for value in case.model.graph.output]
        with torch.no_grad():
            found = graph.run(feeds, names)
        for name, wanted in zip(names, map(array_of, outputs), strict=True):
            # One unit of a 16-bit float. An integer type that torch lacks is held in a wider one.
            unit = {torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6}.get(wanted.dtype, 0.0)
            np.testing.assert_allclose(
                found[name].to(torch.float64).numpy(),
                wanted.to(torch.float64).numpy(),
                rtol=max(case.rtol, unit),
                atol=case.atol,
                err_msg=f"{case.name}, {name}",
                strict=True,
            )


@pytest.mark.parametrize("name", [*NAMES, EXPANDED])
def test_node_cases(cases, name) -> None:
    if name not in cases:
        pytest.skip("no case of this operator alone")
    failed = []
    for case, model in cases[name]:
        try:
            check(case, model)
        except Exception as error:
            failed.append(f"{case.name}: {error}")
    assert not failed, f"{len(failed)} of {len(cases[name])} cases\n" + "\n".join(failed)
