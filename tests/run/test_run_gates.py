"""Each gate fires where it should, names the nodes, and is silent on a graph that is clean."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from small_models import parse, quantized, weights

from edgeq.errors import ConfigError
from edgeq.gates import parse_gates, strict, unchecked
from edgeq.report import Finding, NodePlacement
from edgeq.stages.run.gates import gate_findings
from edgeq.stages.run.placement import Placement, read_placement
from edgeq.target import Gates, load_target

CONV = "Conv<pads=[1,1,1,1]>"
CLEAN = f"g (float[1,3,8,8] x) => (float y) {{ a = {CONV}(x, w) r = Relu(a) y = {CONV}(r, v) }}"
TANH = f"g (float[1,3,8,8] x) => (float y) {{ a = {CONV}(x, w) r = Tanh(a) y = {CONV}(r, v) }}"
CONSTANTS = {"w": weights(8, 3, 3, 3), "v": weights(8, 8, 3, 3, seed=1)}


def gates(placement: Placement) -> dict[str, Finding]:
    return {str(finding.gate): finding for finding in placement.findings if finding.gate is not None}


def run(text: str, severities: Gates | None = None) -> dict[str, Finding]:
    chain = quantized(parse(text, **CONSTANTS))
    return gates(read_placement(chain.model, expected=chain.plan.nodes, gates=severities))


def test_a_clean_graph_passes_all_gates() -> None:
    assert run(CLEAN) == {}


def test_a_float_operator_between_integer_ones_is_a_leftover() -> None:
    found = run(TANH)
    assert list(found) == ["leftover"]
    assert found["leftover"].nodes == ("r",)
    assert found["leftover"].severity == "info"
    assert found["leftover"].remedy


def test_symmetric_integers_around_a_relu_leave_pairs_and_unfused_convolutions(conv_relu) -> None:
    """The 45-fold slowdown: no Relu is absorbed, so its convolution dequantizes weights at every run."""
    found = gates(read_placement(conv_relu(np.int8, zero=0)))
    assert set(found) == {"unfused", "leftover"}
    assert found["unfused"].nodes == ("conv1",)
    assert found["unfused"].severity == "error"
    assert "conv1" in found["leftover"].nodes


def test_the_same_convolutions_with_a_zero_point_at_the_end_pass(conv_relu) -> None:
    assert gates(read_placement(conv_relu())) == {}


def test_a_symmetric_profile_leaves_the_relu_between_pairs() -> None:
    target = load_target("linux-x64")
    symmetric = msgspec.structs.replace(target.activations, types={"8": "int8"}, symmetric=True)
    chain = quantized(parse(CLEAN, **CONSTANTS), msgspec.structs.replace(target, activations=symmetric))
    found = gates(read_placement(chain.model, expected=chain.plan.nodes))
    assert list(found) == ["leftover"]
    assert found["leftover"].nodes == ("r",)


def test_weights_that_wait_to_be_dequantized_are_unfused_even_if_planned(build) -> None:
    build.add("ConvTranspose", [build.qdq("x"), build.weight("k", (4, 2, 2, 2))], "up")
    model = build.model((1, 4, 8, 8), {"up": (1, 2, 9, 9)})
    chain_says = quantized(parse(TANH, **CONSTANTS)).plan.nodes["r"]
    planned = {"up": msgspec.structs.replace(chain_says, node="up", op_type="ConvTranspose", kind="float")}
    found = gates(read_placement(model, expected=planned))
    assert found["unfused"].nodes == ("up",)


def test_rows_of_an_integer_table_are_no_leftover() -> None:
    """They are stored in integers on purpose: no pair stands there."""
    text = "g (int64[1,4] i) => (float y) { e = Gather(t, i) n = Tanh(e) y = MatMul(n, m) }"
    chain = quantized(parse(text, t=weights(1000, 32), m=weights(32, 8)))
    placement = read_placement(chain.model, expected=chain.plan.nodes)
    assert "e_rows" in {value.name for node in chain.model.graph for value in node.outputs}
    assert gates(placement) == {}


def test_what_falls_to_the_cpu_is_a_fallback() -> None:
    pytest.importorskip("onnxruntime_qnn")
    target = load_target("android-npu")
    text = f"g (float[1,3,8,8] x) => (float y) {{ a = {CONV}(x, w) r = Erf(a) y = {CONV}(r, v) }}"
    chain = quantized(parse(text, **CONSTANTS), target)
    assert chain.plan.nodes["r"].provider == "CPUExecutionProvider"
    found = gates(read_placement(chain.model, target.provider, expected=chain.plan.nodes))
    assert found["fallback"].nodes == ("r",)
    assert found["fallback"].severity == "warning"
    assert "Erf" in found["fallback"].text
    clean = quantized(parse(CLEAN, **CONSTANTS), target)
    assert gates(read_placement(clean.model, target.provider, expected=clean.plan.nodes)) == {}


def test_severity_comes_from_the_profile_and_rises_where_asked() -> None:
    off = Gates(leftover="off")
    assert run(TANH, off) == {}
    assert run(TANH, strict(off, frozenset({"leftover"})))["leftover"].severity == "error"
    assert strict(off, frozenset()) == off


def test_a_prediction_is_judged_where_the_provider_does_not_run() -> None:
    """What the profile sends to the CPU is a fallback, told or not; that nobody looked is said."""
    forecast = quantized(parse(TANH, **CONSTANTS)).plan.nodes["r"]
    node = NodePlacement(node="r", op_type="Tanh", provider=forecast.provider, runs_as="not run here", kind="float")
    (finding,) = gate_findings([node], "QNNExecutionProvider", {"r": forecast}, {}, Gates())
    assert (finding.gate, finding.nodes) == ("fallback", ("r",))
    (warning,) = unchecked(frozenset({"fallback"}), [node])
    assert "judged by the profile's prediction" in warning.text
    assert unchecked(frozenset(), [node]) == []
    assert unchecked(frozenset({"fallback"}), [msgspec.structs.replace(node, runs_as="Tanh")]) == []


def test_names_of_gates() -> None:
    assert parse_gates(["unfused", "leftover"]) == {"unfused", "leftover"}
    assert parse_gates(["all"]) == {"unfused", "fallback", "leftover"}
    assert parse_gates([]) == frozenset()
    with pytest.raises(
        ConfigError, match=r"there is no gate 'fused'\s+remedy: choose among unfused, fallback, leftover"
    ):
        parse_gates(["fused"])
