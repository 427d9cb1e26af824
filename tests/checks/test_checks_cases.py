"""Cases and their records: every promise becomes a model, and a changed promise is noticed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeq.checks.cases import Case, block_cases, capability_cases
from edgeq.checks.record import (
    CapabilityRecord,
    Record,
    Result,
    TargetRecord,
    fingerprint,
    load_record,
    save_record,
    summary,
)
from edgeq.checks.request import all_profiles
from edgeq.checks.table import compatibility_page, unrecorded
from edgeq.errors import ConfigError
from edgeq.target import TargetProfile, load_target, target_names

X64 = load_target("linux-x64")


def cases(profile: TargetProfile) -> list[Case]:
    found = [case for capability in profile.capability for case in capability_cases(profile, capability)]
    return [*found, *block_cases(profile)]


@pytest.mark.parametrize("name", target_names())
def test_every_promise_is_a_model(name: str) -> None:
    """The form of an operator that no text describes is a guess: it must at least be a valid graph."""
    profile = load_target(name)
    for capability in profile.capability:
        made = {case.op for case in capability_cases(profile, capability)}
        # Passive ones are checked behind an Add, which not every target has.
        assert capability.passive or made == set(capability.ops), set(capability.ops) - made
    for text, case in {case.text: case for case in cases(profile)}.items():
        model = case.model()
        assert list(model.graph), text
        for sample in case.feeds(model):
            assert all(np.isfinite(array).all() for array in sample.values())


@pytest.mark.parametrize("name", target_names())
def test_names_are_unique_within_a_capability(name: str) -> None:
    profile = load_target(name)
    for capability in profile.capability:
        counts = Counter(case.name for case in capability_cases(profile, capability))
        assert max(counts.values(), default=1) == 1, counts.most_common(3)


def test_a_case_is_the_same_every_time() -> None:
    first, second = (next(iter(capability_cases(X64, X64.capability[0]))) for _ in range(2))
    assert first.name == "Conv w8a8 per channel"
    for one, other in zip(first.feeds(first.model()), second.feeds(second.model()), strict=True):
        assert all(np.array_equal(one[key], other[key]) for key in one)


def test_a_case_is_judged_alone() -> None:
    """Another capability of the same operator cannot stand in for the one in question."""
    for capability in X64.capability:
        for case in capability_cases(X64, capability):
            assert {c.kind for c in case.profile.capabilities(case.op)} == {capability.kind}


@pytest.mark.parametrize(
    "change",
    [
        {"activation_bits": (8, 16)},
        {"weight_bits": (4, 8)},
        {"per_channel": False},
        {"ops": ("Conv", "ConvTranspose")},
        {"output": "optional"},
    ],
)
def test_a_changed_promise_has_another_fingerprint(change: dict[str, object]) -> None:
    conv = X64.capability[0]
    other = msgspec.structs.replace(conv, **change)
    profile = msgspec.structs.replace(X64, capability=(other, *X64.capability[1:]))
    assert fingerprint(profile, other) != fingerprint(X64, conv)
    assert fingerprint(profile) != fingerprint(X64)
    assert fingerprint(profile, profile.capability[1]) == fingerprint(X64, X64.capability[1])


def test_what_decides_the_models_of_all_is_part_of_each_fingerprint() -> None:
    conv = X64.capability[0]
    weights = msgspec.structs.replace(X64.weights, reduce_range=True)
    assert fingerprint(msgspec.structs.replace(X64, weights=weights), conv) != fingerprint(X64, conv)
    elsewhere = msgspec.structs.replace(X64.verification, arguments={"cpu": "Haswell"})
    assert fingerprint(msgspec.structs.replace(X64, verification=elsewhere), conv) != fingerprint(X64, conv)


def test_words_for_people_change_no_fingerprint() -> None:
    conv = msgspec.structs.replace(X64.capability[0], source="said otherwise")
    weights = msgspec.structs.replace(X64.weights, source="said otherwise")
    profile = msgspec.structs.replace(X64, capability=(conv, *X64.capability[1:]), weights=weights, summary="other")
    assert fingerprint(profile, conv) == fingerprint(X64, X64.capability[0])
    assert fingerprint(profile) == fingerprint(X64)


def record_of(*profiles: TargetProfile) -> Record:
    results = (
        Result("Conv", "w8a8", "per channel", 43.1, 38.2),
        Result("Conv", "w8a8", "depthwise", 3.0, 3.0, "does not hold", "numbers", "wrong | numbers"),
        Result("Softmax", "a16", "", None, 50.0, "rules only", "rules"),
        Result("Relu", "float16", verdict="not verified", proof="none", reason="not installed"),
    )
    targets = {
        profile.name: TargetRecord(
            target=profile.name,
            provider=profile.provider.name,
            sandbox="cpu",
            version="onnxruntime 1.32.0",
            checked="2026-11-23",
            capabilities=tuple(
                CapabilityRecord(fingerprint=print_, kind="compute", ops=("Conv",), results=results)
                for print_ in (*(fingerprint(profile, c) for c in profile.capability), fingerprint(profile))
            ),
        )
        for profile in profiles
    }
    return Record(targets=targets)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = record_of(X64, load_target("android"))
    save_record(tmp_path / "record.json", record)
    assert load_record(tmp_path / "record.json") == record
    lines = (tmp_path / "record.json").read_text().splitlines()
    assert '   ["Conv","w8a8","per channel",43.1,38.2],' in lines
    assert load_record(tmp_path / "none.json") == Record()


def test_a_broken_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text("{")
    with pytest.raises(ConfigError, match="not readable") as caught:
        load_record(tmp_path / "record.json")
    assert caught.value.where == str(tmp_path / "record.json")


def test_what_was_changed_since_is_listed() -> None:
    record = record_of(X64)
    assert unrecorded(record, [X64]) == []
    conv = msgspec.structs.replace(X64.capability[0], activation_bits=(8, 16))
    profile = msgspec.structs.replace(X64, capability=(conv, *X64.capability[1:]))
    assert unrecorded(record, [profile]) == ["linux-x64: compute Conv", "linux-x64: blocks"]
    assert "android: blocks" in unrecorded(record, [load_target("android")])


def test_the_summary_counts_each_verdict() -> None:
    (target,) = record_of(X64).targets.values()
    capability = target.capabilities[0]
    assert summary(capability.results) == "1 of 2 hold, 1 does not, 1 not verified, 1 by rules only"
    assert summary(()) == "nothing to check"


def test_the_page_shows_each_verdict() -> None:
    page = compatibility_page(record_of(X64))
    assert "| Conv | ~~w8a8~~ |" in page
    assert "| Softmax | (a16) |" in page
    assert "| Relu | f16? |" in page
    assert "| Conv w8a8 depthwise | `linux-x64` | wrong \\| numbers |" in page
    assert "| Conv | compute | w8a8 | 2 | holds, does not hold | 3 dB | 3 dB |" in page


def test_all_profiles_are_all_variants_once() -> None:
    names = [profile.name for profile in all_profiles()]
    assert len(names) == len(set(names))
    assert set(target_names()) <= set(names)
    assert "linux-x64@avx2" in names
    assert "linux-x64@vnni" not in names, "the default goes by the target's own name"
