"""Prediction against reality, node by node: what the profile alone says, and what the provider does.

``python -m pytest -m slow -s tests/run/test_run_agreement.py`` prints the figures.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from placement_corpus import GRAPHS, build

from edgeq.agreement import agreement, agrees, disagreeing
from edgeq.graph import input_infos
from edgeq.pipeline import Job
from edgeq.qtypes import Scheme
from edgeq.report import NodePlacement
from edgeq.request import Data
from edgeq.stages.run.placement import read_placement

SIZES = {"batch": 1, "height": 16, "width": 16, "length": 6}
TARGETS = {"linux-x64": ("w8a8",), "android-npu": ("w8a8", "w8a16")}
GOAL = 0.99
CPU = "CPUExecutionProvider"
QNN = "QNNExecutionProvider"


def needs(target: str) -> None:
    if target.startswith("android-npu") and importlib.util.find_spec("onnxruntime_qnn") is None:
        pytest.skip("onnxruntime-qnn is not installed")


def feed(model: ir.Model, count: int = 4) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(count):
        sample: dict[str, np.ndarray] = {}
        for info in input_infos(model):
            shape = tuple(d if isinstance(d, int) else SIZES[str(d)] for d in info.shape)
            values = rng.standard_normal(shape) if info.dtype.kind == "f" else rng.integers(0, 2, shape)
            sample[info.name] = values.astype(info.dtype)
        drawn.append(sample)
    return drawn


def placed(source: Any, target: str, scheme: str, **options: Any) -> tuple[NodePlacement, ...]:
    """Every node of a source that edgeq itself quantized on random data, with prediction and reality."""
    job = Job(source, target, precision=scheme, **options)
    job.data = Data(calibration=feed(job.prepared.model))
    parsed = Scheme.parse(scheme)
    shaped = job.shaped(parsed)
    alone = job.forecast(shaped, job.layout(shaped, parsed))
    _, plan, model = job.quantize(parsed)
    # What inspect says without data is what the report holds reality against.
    for name, node in alone.items():
        assert (plan.nodes[name].foreseen or plan.nodes[name].kind, plan.nodes[name].provider) == (
            node.kind,
            node.provider,
        )
    found = read_placement(model, job.target.provider, expected=plan.nodes)
    assert [p.node for p in found.nodes] == [name for name in plan.nodes if name in {p.node for p in found.nodes}]
    assert all(p.predicted is not None for p in found.nodes)
    return found.nodes


def corpus(name: str, target: str, scheme: str) -> tuple[NodePlacement, ...]:
    model = build(name)
    named = {str(d) for info in input_infos(model) for d in info.shape if not isinstance(d, int)}
    fixed = {key: size for key, size in SIZES.items() if key in named} if target != "linux-x64" else {}
    return placed(ir.to_proto(model), target, scheme, fixed_dims=fixed)


def describe(name: str, nodes: tuple[NodePlacement, ...]) -> list[str]:
    return [
        f"{name}: {p.node} ({p.op_type}) was to be {p.predicted} on {p.predicted_provider}, "
        f"is {p.kind} on {p.provider} as {p.runs_as}, into {p.fused_into}: {p.why}"
        for p in disagreeing(nodes)
    ]


def judge(found: dict[str, tuple[NodePlacement, ...]], target: str) -> None:
    """The aggregate over all graphs, printed; each node that differs is named if the goal is missed."""
    total = sum(len(nodes) for nodes in found.values())
    differ = [line for name, nodes in found.items() for line in describe(name, nodes)]
    share = 1 - len(differ) / total
    print(f"\n{target}: {len(found)} graphs, {total} nodes, agreement {100 * share:.2f} %")  # noqa: T201
    print("\n".join(differ))  # noqa: T201
    assert share >= GOAL, "\n".join(differ)


SLICE = {
    "linux-x64": (
        "conv-relu6-residual",
        "squeeze-excite",
        "hard-swish",
        "clip-odd-bounds",
        "attention-mask",
        "gelu-by-erf",
        "embedding",
        "conv-lstm",
        "detection-heads",
        "channel-attention",
        "comparisons",
        "dynamic-tokens",
    ),
    "android-npu": ("conv-relu6-residual", "attention-mask", "conv-lstm", "comparisons"),
}


@pytest.mark.parametrize(("target", "name"), [(target, name) for target, names in SLICE.items() for name in names])
def test_every_node_of_a_small_graph_runs_as_predicted(target: str, name: str) -> None:
    needs(target)
    nodes = corpus(name, target, TARGETS[target][-1])
    assert not describe(name, nodes)
    assert agreement(nodes) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_runs_as_predicted(target: str) -> None:
    needs(target)
    more = {name: graph.schemes if target == "linux-x64" else () for name, graph in GRAPHS.items()}
    runs = [(name, scheme) for name in GRAPHS for scheme in (*TARGETS[target], *more[name])]
    judge({f"{name} {scheme}": corpus(name, target, scheme) for name, scheme in runs}, target)


@pytest.fixture(scope="module")
def exported() -> dict[str, ir.Model]:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from exported_models import EXPORTED

    models = {}
    for name, make in EXPORTED.items():
        torch.manual_seed(0)
        module, inputs = make()
        models[name] = ir.to_proto(Job(module.eval(), "linux-x64", example_inputs=inputs).source.model)
    return models


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("target", TARGETS)
def test_exported_networks_run_as_predicted(target: str, exported: dict[str, ir.Model]) -> None:
    needs(target)
    runs = [(name, scheme) for name in exported for scheme in TARGETS[target]]
    judge({f"{name} {scheme}": placed(exported[name], target, scheme) for name, scheme in runs}, target)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("source", ["example:efficientnet-lite0", "example:minilm"])
def test_the_examples_run_as_predicted(source: str) -> None:
    model = ir.to_proto(Job(source, "linux-x64").source.model)
    for target in TARGETS:
        needs(target)
        fixed = {"batch": 1} if "net" in source else {"batch": 1, "sequence": 32}
        scheme = "w8a16" if (source, target) == ("example:minilm", "android-npu") else "w8a8"
        judge({f"{source} {scheme}": placed(model, target, scheme, fixed_dims=fixed)}, target)


# -- what agreement means


def place(node: str, kind: str, predicted: str | None, into: str | None = None, **more: str) -> NodePlacement:
    there = {"provider": CPU, "predicted_provider": CPU, "runs_as": "Some", "op_type": "Some", **more}
    return NodePlacement(node=node, kind=kind, predicted=predicted, fused_into=into, **there)


HEADS = [
    place("conv", "integer", "integer"),
    place("gelu", "float", "float"),
    place("flat", "moves data", "moves data"),
]


@pytest.mark.parametrize(
    ("node", "agreed"),
    [
        (place("n", "integer", "integer"), True),
        (place("n", "float", "integer"), False),
        (place("n", "integer", "float"), False),
        (place("n", "fused", "fused", "conv"), True),
        (place("n", "fused", "fused", "gelu"), False),
        (place("n", "integer", "fused"), False),
        (place("n", "fused", "integer", "conv"), False),  # merging was not promised
        (place("n", "fused", "float", "conv"), False),
        (place("n", "fused", "float", "gelu"), True),
        (place("n", "fused", "moves data", "conv"), True),
        (place("n", "fused", "moves data", "flat"), True),
        (place("n", "fused", "moves data", "gelu"), False),
        (place("n", "fused", "float", "nowhere"), False),
        (place("n", "fused", "integer", runs_as="constant"), True),
        (place("n", "float", "float", provider=CPU, predicted_provider=QNN), False),
        (place("n", "integer", "integer", provider=QNN, predicted_provider=CPU), False),
        (place("n", "integer", "integer", runs_as="not run here"), None),
        (place("n", "integer", None), None),
    ],
)
def test_when_a_node_agrees(node: NodePlacement, agreed: bool | None) -> None:
    assert agrees(node, {p.node: p for p in (*HEADS, node)}) is agreed


def test_agreement_is_a_share_of_what_was_told() -> None:
    wrong, untold = place("w", "float", "integer"), place("u", "float", None)
    assert agreement([*HEADS, wrong, untold]) == 0.75
    assert disagreeing([*HEADS, wrong, untold]) == (wrong,)
    assert agreement([untold]) is None


def test_nodes_that_calibration_demotes_are_counted_and_named() -> None:
    """A mask of -3.4e38 is known only from data: the profile had promised integers."""
    from small_models import parse, quantized, weights

    model = parse(
        "g (float[2,8] x) => (float y) { a = MatMul(x, w) big = Mul(x, low) b = Add(a, big) y = MatMul(b, w) }",
        w=weights(8, 8),
        low=np.float32(1e35),
    )
    chain = quantized(model)
    found = read_placement(chain.model, chain.target.provider, expected=chain.plan.nodes)
    demoted = {name for name, node in chain.plan.nodes.items() if node.foreseen is not None}
    assert demoted
    assert {p.node for p in disagreeing(found.nodes)} == demoted
    (finding,) = [f for f in found.findings if "otherwise than predicted" in f.text]
    assert set(finding.nodes) == demoted
    assert finding.severity == "info"
