"""A profile that promises too much is caught by the real provider; one that does not is not."""

from __future__ import annotations

import itertools
import time
from typing import Any

import msgspec
import numpy as np
import pytest

from edgeq.checks.record import Result
from edgeq.errors import ProviderError
from edgeq.pipeline.check import check_target
from edgeq.sandbox import Outcome, Task, find_sandbox
from edgeq.target import Capability, TargetProfile, load_target

needs_qnn = pytest.mark.skipif(
    find_sandbox("qnn").missing() is not None, reason=f"the HTP emulator: {find_sandbox('qnn').missing()}"
)


def promising(name: str, types: dict[str, str] | None = None, **keys: Any) -> TargetProfile:
    """A profile with this one capability only."""
    profile = load_target(name)
    capability = Capability(**{"kind": "elementwise", "activation_bits": (8,), "source": "a test", **keys})
    weights = msgspec.structs.replace(profile.weights, types={**profile.weights.types, **(types or {})})
    return msgspec.structs.replace(profile, capability=(capability,), weights=weights)


def checked(profile: TargetProfile, *ops: str) -> list[Result]:
    return [result for result in check_target(profile, ops=ops).results if result.op in ops]


def test_the_cpu_runs_what_its_profile_says_of_conv() -> None:
    results = checked(load_target("linux-x64"), "Conv")
    assert len(results) > 5
    assert {(result.verdict, result.proof) for result in results} == {("holds", "numbers")}


def test_a_kernel_that_the_cpu_lacks_is_caught() -> None:
    (result,) = checked(promising("linux-x64", ops=("Tanh",)), "Tanh")
    assert result.verdict == "does not hold"
    assert result.reason == "Tanh runs in float, as Tanh"


def test_sixteen_bits_are_caught_on_the_cpu() -> None:
    profile = promising("linux-x64", ops=("Conv",), kind="compute", activation_bits=(16,), weight_bits=(8,))
    wide = msgspec.structs.replace(profile.activations, types={"16": "uint16"})
    results = checked(msgspec.structs.replace(profile, activations=wide), "Conv")
    assert {result.verdict for result in results} == {"does not hold"}
    assert {str(result.reason) for result in results} == {"Conv runs in float, as Conv"}


def test_a_type_that_the_profile_lacks_is_no_crash() -> None:
    profile = promising("linux-x64", ops=("Conv",), kind="compute", activation_bits=(16,), weight_bits=(8,))
    results = checked(profile, "Conv")
    assert {result.verdict for result in results} == {"does not hold"}
    assert "linux-x64 has no 16-bit activations" in str(results[0].reason)


def test_a_target_without_a_sandbox_is_checked_by_its_rules() -> None:
    profile = load_target("linux-x64")
    nowhere = msgspec.structs.replace(
        profile, verification=msgspec.structs.replace(profile.verification, sandbox=None), precisions=("w8a8",)
    )
    results = check_target(nowhere, ops=("Conv", "MatMul")).results
    assert {(result.verdict, result.proof) for result in results} == {("rules only", "rules")}


def test_a_sandbox_that_is_not_installed_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = find_sandbox("cpu")
    monkeypatch.setattr(type(sandbox), "missing", lambda self: "it is not there")
    results = check_target(load_target("linux-x64"), ops=("Conv",)).results
    assert {(result.verdict, result.reason) for result in results} == {("not verified", "cpu: it is not there")}


@pytest.mark.slow
@needs_qnn
def test_the_emulator_runs_what_its_profile_says_of_softmax() -> None:
    results = checked(load_target("android-npu"), "Softmax")
    assert results
    assert {result.verdict for result in results} == {"holds"}


@needs_qnn
def test_an_operator_that_the_emulator_refuses_is_caught() -> None:
    (result,) = checked(promising("android-npu", ops=("Erf",)), "Erf")
    assert result.verdict == "does not hold"
    assert "Erf" in str(result.reason)
    assert "not supported by QNN" in str(result.reason)


@needs_qnn
def test_a_type_that_the_emulator_takes_and_computes_wrong_is_caught() -> None:
    keys: dict[str, Any] = {"ops": ("MatMul",), "kind": "compute", "weight_bits": (2,)}
    results = checked(promising("android-npu", {"2": "int2"}, **keys), "MatMul")
    assert {result.verdict for result in results} == {"does not hold"}


@pytest.mark.slow
@needs_qnn
def test_weights_that_the_emulator_refuses_are_caught() -> None:
    keys: dict[str, Any] = {"ops": ("Conv",), "kind": "compute", "weight_bits": (4,)}
    results = checked(promising("android-npu", {"4": "uint4"}, **keys), "Conv")
    assert "does not hold" in {result.verdict for result in results}


def test_what_two_targets_share_is_run_once() -> None:
    profile = load_target("linux-x64")
    first = check_target(profile, ops=("Softmax",))
    marked = msgspec.structs.replace(first.capabilities[0].results[0], reason="seen before")
    capability = msgspec.structs.replace(first.capabilities[0], results=(marked,))
    before = msgspec.structs.replace(first, capabilities=(capability,))
    assert check_target(profile, ops=("Softmax",), before=[before]).results == (marked,)
    other = msgspec.structs.replace(profile, absorbs=())
    assert check_target(other, ops=("Softmax",), before=[before]).results != (marked,)


def test_a_sandbox_that_does_not_start_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ProviderError("its process does not start")

    monkeypatch.setattr(type(find_sandbox("cpu")), "run", broken)
    results = check_target(load_target("linux-x64"), ops=("Conv",)).results
    assert {(r.verdict, r.reason) for r in results} == {("not verified", "cpu: its process does not start")}


def test_an_interrupted_check_does_not_run_what_is_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def chunk(made: list[object], *_: object) -> list[object]:
        started.append(len(made))
        time.sleep(0.2)
        return []

    def interrupted(_: object) -> None:
        if next(emitted) == 20:
            raise KeyboardInterrupt

    emitted = itertools.count()
    monkeypatch.setattr("edgeq.pipeline.check._CHUNK", 1)
    monkeypatch.setattr("edgeq.pipeline.check._try", interrupted)
    monkeypatch.setattr("edgeq.pipeline.check._run_chunk", chunk)
    with pytest.raises(KeyboardInterrupt):
        check_target(load_target("linux-x64"), ops=("Conv", "MatMul", "Gemm", "Add", "Mul"))
    assert len(started) < 10


def test_outputs_of_another_size_do_not_hold_and_end_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def shorter(_: object, tasks: list[Task], **__: object) -> list[Outcome]:
        return [Outcome("ran", outputs=tuple({"y": np.zeros((1, 2), np.float32)} for _ in t.feeds)) for t in tasks]

    monkeypatch.setattr(type(find_sandbox("cpu")), "run", shorter)
    profile = load_target("linux-x64")
    results = check_target(profile, ops=("Softmax", "Conv")).results
    assert {r.verdict for r in results} == {"does not hold"}
    assert "output 'y' is [1, 2], not" in str(results[0].reason)
