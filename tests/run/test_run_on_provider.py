"""A packaged model on its provider: real sandboxes where they are installed, and one that misbehaves on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from small_models import parse, quantized, samples, weights

from edgeq import export, run
from edgeq.bundle import Bundle, Manifest, read_bundle
from edgeq.errors import ConfigError, ProviderError, ValidationError
from edgeq.graph import save_model
from edgeq.runtime import run_model
from edgeq.sandbox import Outcome, Task, find_sandbox, registry
from edgeq.sandbox.place import Place, parse_place
from edgeq.stages.package import write_bundle
from edgeq.stages.run.on_provider import Samples, check_findings, places_for, run_everywhere, run_on, run_on_own
from edgeq.stages.run.validate import validate
from edgeq.target import Provider, Verification, load_target

CPU = Provider(name="CPUExecutionProvider", package="onnxruntime", version=">=1.24.2")


@dataclass
class Stub:
    """A sandbox that answers with what it is told to, and remembers what it was asked."""

    outcome: Outcome = field(default_factory=lambda: Outcome("built", version="stub 1"))
    name: str = "stub"
    summary: str = "a stub"
    licence: str = "none"
    gives: Literal["numbers", "build"] = "numbers"
    size_mb: int = 0
    quick: bool = True
    option: str | None = "cpu"
    lacking: str | None = None
    useless: str | None = None
    asked: list[tuple[Task, Mapping[str, str] | None]] = field(default_factory=list)

    def unusable(self) -> str | None:
        return self.useless

    def missing(self) -> str | None:
        return self.useless or self.lacking

    def install(self, progress: object) -> None:
        raise AssertionError("nobody asked for that")

    def run(
        self, tasks: Sequence[Task], *, arguments: Mapping[str, str] | None = None, timeout_s: float = 300.0
    ) -> list[Outcome]:
        assert timeout_s > 0
        self.asked += [(task, arguments) for task in tasks]
        return [self.outcome for _ in tasks]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    made = Stub()
    monkeypatch.setattr(registry, "_SANDBOXES", (*registry._SANDBOXES, made))
    return made


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Samples]:
    """A QDQ model as a file, with samples and the float model's answers."""
    text = """g (float[1,8,12,12] x) => (float[1,10] y) { c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c)
        p = GlobalAveragePool(r) f = Flatten(p) y = Gemm<transB=1>(f, m, n) }"""
    model = parse(text, w=weights(16, 8, 3, 3), b=weights(16), m=weights(10, 16), n=weights(10))
    feed = samples(model, 6)
    path = tmp_path_factory.mktemp("packaged") / "model.onnx"
    save_model(quantized(model, feed=feed).model, path)
    answers = [run_model(model, batch) for batch in feed[:3]]
    return path, Samples(feed[:3], answers, task="image-classification", text="3 samples")


def verification(**keys: object) -> Verification:
    return Verification(note="a test", **keys)


def bundle(folder: Path, checked: Verification, provider: Provider = CPU) -> Bundle:
    """y = 0.9 x, which has an SQNR of 20 dB to y = x."""
    folder.mkdir()
    inputs = [{"x": np.full((1, 3), float(i + 1), np.float32)} for i in range(2)]
    write_bundle(
        folder,
        model=parse("g (float[1,3] x) => (float[1,3] y) { y = Mul(x, c) }", c=np.float32(0.9)),
        manifest=Manifest(
            edgeq="0", name="tiny", target="t", precision="w8a8", provider=provider, verification=checked
        ),
        sample_inputs=inputs,
        reference_outputs=[{"y": feed["x"]} for feed in inputs],
        sqnr_db={"y": 20.0},
    )
    return read_bundle(folder)


def test_a_place_reads_as_it_is_written() -> None:
    assert parse_place("arm64:cortex-a53") == Place("arm64", {"cpu": "cortex-a53"})
    assert parse_place("qnn:backend_type=htp,soc_model=43").arguments == {"backend_type": "htp", "soc_model": "43"}
    for text in ("cpu", "qnn:43", "arm64:max", "qnn:backend_type=htp,soc_model=43"):
        assert str(parse_place(text)) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nowhere", "there is no sandbox 'nowhere'"),
        ("cpu:5", "takes no value"),
        ("cpu:profile=here", "takes no value"),
    ],
)
def test_a_place_that_is_not_there_is_an_error(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_place(text)


def test_a_place_that_was_asked_for_must_be_installed_before_the_work(tmp_path: Path, stub: Stub) -> None:
    bundle(tmp_path / "b", verification())
    stub.lacking = "it is not installed"
    with pytest.raises(ProviderError, match=r"cannot be run on stub:old: it is not installed"):
        run(tmp_path / "b", on=["stub:old"])
    with pytest.raises(ProviderError, match=r"edgeq doctor --install-provider stub"):
        export("no such file", target="linux-x64", on=["stub:old"], output=tmp_path / "out")
    stub.useless = "it runs on Macs only"
    with pytest.raises(ProviderError, match=r"on a machine that can"):
        run(tmp_path / "b", on=["stub"])


def test_a_place_concerns_the_graph_whose_profile_names_it() -> None:
    npu, cpu = verification(sandbox="qnn"), verification(sandbox="arm64")
    asked = [parse_place(text) for text in ("arm64:max", "qnn:43", "x86-64:Haswell")]
    assert [[str(p) for p in places] for places in places_for([npu, cpu], asked)] == [
        ["qnn:43", "x86-64:Haswell"],
        ["arm64:max"],
    ]


def test_the_cpu_sandbox_gives_this_machines_outputs_and_the_float_models_distance(packaged) -> None:
    path, fed = packaged
    (ran,) = run_everywhere(path, CPU, None, fed, [Place("cpu")])
    check = ran.check
    assert (check.status, check.place, check.taken, check.nodes) == ("ran", "cpu", 5, 5)
    figures = {metric.name: metric.value for metric in check.metrics}
    outputs = np.concatenate([run_model(path, batch, optimization="all")["y"] for batch in fed.inputs])
    expected = np.concatenate([answer["y"] for answer in fed.references])
    noise = 10 * np.log10(np.square(expected).sum() / np.square(expected - outputs).sum())
    assert figures["SQNR on cpu"] == pytest.approx(noise, abs=0.01)
    assert figures["SQNR to this machine's outputs on cpu"] == 200
    assert figures["top-1 agreement on cpu"] == 100 * np.mean(expected.argmax(1) == outputs.argmax(1))
    assert check.version.startswith("onnxruntime ")
    assert check.metrics[0].source.startswith("3 samples on CPUExecutionProvider, onnxruntime ")
    assert "its outputs are this machine's" in check.text
    assert ran.assigned["c"] == "CPUExecutionProvider"


@pytest.mark.parametrize(("noise", "severity"), [(0.001, None), (0.05, "warning"), (0.5, "error")])
def test_a_provider_that_computes_something_else_is_a_finding(packaged, stub: Stub, noise: float, severity) -> None:
    """Judged at 50 dB by the specification, a provider may round otherwise, but not lose most of it."""
    path, fed = packaged
    answers = tuple({"y": answer["y"] * np.float32(1 + noise)} for answer in fed.references)
    stub.outcome = Outcome("ran", answers, version="stub 1")
    ran = run_on(Place("stub"), path, CPU, replace(fed, judged_db={"y": 50.0}))
    found = check_findings([ran.check])
    assert [finding.severity for finding in found] == ([severity] if severity else [])
    assert all(f"{-20 * np.log10(noise):.1f} dB" in finding.text for finding in found)
    assert not check_findings([run_on(Place("stub"), path, CPU, fed).check]), "judged by nothing, it is behind nothing"


def test_a_provider_that_is_not_in_the_sandbox_refuses(packaged) -> None:
    path, fed = packaged
    ran = run_on(Place("cpu"), path, Provider(name="NoSuchExecutionProvider", package="none", version=">=1"), fed)
    assert ran.check.status == "refused"
    assert not ran.check.metrics
    assert not ran.closeness
    (finding,) = check_findings([ran.check])
    assert finding.severity == "error"
    assert "NoSuchExecutionProvider" in finding.text


@pytest.mark.slow
@pytest.mark.parametrize("processor", ["cortex-a53", "max"])
def test_8_bit_kernels_on_emulated_arm_give_this_machines_integers(packaged, processor: str) -> None:
    if why := find_sandbox("arm64").missing():
        pytest.skip(why)
    path, fed = packaged
    profile = load_target("android")
    (ran,) = run_everywhere(path, profile.provider, None, fed, [Place("arm64", {"cpu": processor})])
    assert ran.check.status == "ran"
    figures = {metric.name: metric.value for metric in ran.check.metrics}
    assert figures[f"SQNR to this machine's outputs on arm64:{processor}"] == 200


def test_what_runs_in_this_process_is_not_run_again(packaged, stub: Stub) -> None:
    assert run_on_own(*packaged[:1], CPU, verification(sandbox="stub"), packaged[1]) is None
    assert run_on_own(*packaged[:1], CPU, None, packaged[1]) is None
    assert not stub.asked


def test_a_quick_sandbox_is_used_unasked_and_a_slow_one_is_named(packaged, stub: Stub) -> None:
    path, fed = packaged
    checked = verification(sandbox="stub", accuracy="specification", arguments={"cpu": "tiny"})
    stub.gives, stub.outcome = "build", Outcome("built", assigned={"c": "CPUExecutionProvider", "y": "Other"})
    ran = run_on_own(path, CPU, checked, fed)
    assert ran.check.status == "built"
    assert ran.check.text == "compiled, not run; CPUExecutionProvider took 1 of 2 nodes"
    ((task, arguments),) = stub.asked
    assert (task.model, task.provider, task.feeds, arguments) == (path, CPU, (), {"cpu": "tiny"})
    stub.quick = False
    ran = run_on_own(path, CPU, checked, fed)
    assert (ran.check.status, ran.check.remedy) == ("left out", "edgeq run BUNDLE --on stub:tiny")
    assert len(stub.asked) == 1
    asked = run_everywhere(path, CPU, checked, fed, [parse_place("stub:large")])
    assert [one.check.place for one in asked] == ["stub:large"], "in place of the profile's own"


def test_what_cannot_be_verified_here_is_said_with_what_to_do(packaged, stub: Stub) -> None:
    path, fed = packaged
    checked = verification(sandbox="stub", accuracy="specification")
    stub.lacking = "it is not installed"
    check = run_on_own(path, CPU, checked, fed).check
    assert (check.status, check.text) == ("absent", "not verified on stub here: it is not installed")
    assert check.remedy == "edgeq doctor --install-provider stub"
    stub.useless = "it runs on Macs only"
    assert run_on_own(path, CPU, checked, fed).check.remedy is None, "there is nothing to install"
    none = run_on_own(path, CPU, verification(accuracy="specification"), fed).check
    assert none.status == "none"
    assert none.text.startswith("rules only")
    assert not stub.asked


def test_q_and_dq_that_are_left_to_another_provider_are_counted(packaged, stub: Stub) -> None:
    assigned = {"c": "CPUExecutionProvider", "x_QuantizeLinear": "Other", "made_while_loading": "Other"}
    stub.outcome = Outcome("built", assigned=assigned)
    check = run_on(Place("stub"), packaged[0], CPU, packaged[1]).check
    assert check.text == "compiled, not run; CPUExecutionProvider took all 1 nodes, and left 1 Q/DQ to others"


def answers(factor: float) -> Outcome:
    outputs = tuple({"y": np.full((1, 3), factor * (i + 1), np.float32)} for i in range(2))
    return Outcome("ran", outputs=outputs, assigned={"y": "CPUExecutionProvider"}, version="stub 1")


def test_a_bundle_is_judged_by_its_provider_too(tmp_path: Path, stub: Stub) -> None:
    made = bundle(tmp_path / "b", verification(sandbox="stub", accuracy="specification"))
    stub.outcome = answers(0.91)
    report = validate(made, latency=False, memory=False)
    assert report.metric("SQNR").value == pytest.approx(20, abs=0.01)
    assert report.checks[0].metrics[1].name == "SQNR on stub"
    assert [clause.option for clause in report.contract.clauses] == ["SQNR of y", "SQNR of y on stub"]
    assert len(stub.asked[0][0].feeds) == 2
    stub.outcome = answers(0.5)
    with pytest.raises(ValidationError, match=r"SQNR of y on stub is 6\.0 dB, but the manifest says 20\.0 dB"):
        validate(made, latency=False, memory=False)


@pytest.mark.parametrize("status", ["refused", "crashed"])
def test_a_bundle_that_its_provider_refuses_is_not_valid(tmp_path: Path, stub: Stub, status) -> None:
    made = bundle(tmp_path / "b", verification(sandbox="stub", accuracy="specification"))
    stub.outcome = Outcome(status, reason="no kernel for Mul")
    with pytest.raises(ValidationError, match=f"model.onnx for t on stub: {status}: no kernel for Mul"):
        validate(made, latency=False, memory=False)


def test_where_nodes_run_comes_from_the_sandbox_if_the_provider_is_not_here(tmp_path: Path, stub: Stub) -> None:
    coreml = replace_name(CPU, "CoreMLExecutionProvider")
    made = bundle(tmp_path / "b", verification(sandbox="stub", accuracy="specification"), coreml)
    stub.outcome = replace(answers(0.9), assigned={"y": "CoreMLExecutionProvider"})
    report = validate(made, latency=True, memory=True)
    assert {place.provider for place in report.placement} == {"CoreMLExecutionProvider"}
    assert report.latency is None, "the CPU's latency says nothing of CoreML"
    assert report.memory is None


def replace_name(provider: Provider, name: str) -> Provider:
    return Provider(name=name, package=provider.package, version=provider.version)
