"""``edgeq targets check`` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from check_models import conv_chain, product
from command_line import edgeq

from edgeq.graph import save_model
from edgeq.target import load_target


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name the targets to check, or give --all"),
        (("linux-x64", "--all"), "not both"),
        (("linux-x64", "--op", "Nonsense"), "linux-x64 promises nothing of Nonsense"),
        (("linux-x64", "--op", "Conv", "--record", "x.json"), "--record cannot keep"),
        (("linux-x64", "android", "--model", "x.onnx"), "--model takes one target"),
        (("linux-x46",), "unknown target 'linux-x46'"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(arguments: tuple[str, ...], said: str) -> None:
    found = edgeq("targets", "check", *arguments)
    assert found.code == 2
    assert said in found.err


def test_the_table_and_the_summary() -> None:
    found = edgeq("targets", "check", "linux-x64", "--op", "Softmax")
    assert found.code == 0
    (row,) = [line.split() for line in found.out.splitlines() if line.startswith("Softmax")]
    assert row[:4] == ["Softmax", "elementwise", "a8", "holds"]
    assert "linux-x64: 3 of 3 hold" in found.out
    assert "onnxruntime" in found.out


def test_what_does_not_hold_ends_in_exit_code_5(tmp_path: Path) -> None:
    profile = tmp_path / "greedy.toml"
    profile.write_text(
        (Path(__file__).parents[2] / "targets" / "linux-x64.toml").read_text()
        + '\n[[capability]]\nops = ["Erf"]\nkind = "elementwise"\nactivation_bits = [8]\nsource = "a wish"\n'
    )
    found = edgeq("targets", "check", profile, "--op", "Erf")
    assert found.code == 5
    assert "does not hold: Erf a8: Erf runs in float, as Erf" in found.out
    (target,) = json.loads(edgeq("targets", "check", profile, "--op", "Erf", "--json").out)
    (capability,) = target["capabilities"]
    assert capability["ops"] == ["Erf"]


def test_a_record_is_kept_and_only_what_changed_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeq.checks.record import load_record
    from edgeq.pipeline import check

    small = load_target("linux-x64")
    kept = tuple(c for c in small.capability if c.ops == ("Conv",))
    monkeypatch.setattr("edgeq.checks.request.load_target", lambda name: _only(kept))
    monkeypatch.setattr(check, "block_cases", lambda profile: ())
    record = tmp_path / "record.json"
    assert edgeq("targets", "check", "linux-x64", "--record", record).code == 0
    first = load_record(record)
    assert len(first.targets["linux-x64"].results) > 5
    monkeypatch.setattr(check, "emit", lambda case: pytest.fail(f"{case.name} is run again"))
    assert edgeq("targets", "check", "linux-x64", "--record", record, "--changed").code == 0
    assert load_record(record) == first


def _only(capability):  # type: ignore[no-untyped-def]
    import msgspec

    return msgspec.structs.replace(load_target("linux-x64"), capability=capability)


def test_a_model_is_checked_by_the_rules(tmp_path: Path) -> None:
    save_model(conv_chain(), tmp_path / "model.onnx")
    good = edgeq("targets", "check", "linux-x64", "--model", tmp_path / "model.onnx")
    assert (good.code, "0 errors" in good.out) == (0, True)
    whole = edgeq("targets", "check", "linux-x64", "--model", tmp_path)
    assert whole.out == good.out, "a bundle is the folder of a model"
    save_model(product("android-npu", "w8a16"), tmp_path / "wide.onnx")
    bad = edgeq("targets", "check", "linux-x64", "--model", tmp_path / "wide.onnx", "--json")
    assert bad.code == 5
    rules = {violation["rule"] for violation in json.loads(bad.out)}
    assert {"op", "activation-type"} <= rules


def test_a_model_that_is_none_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "model.npy", np.zeros(1))
    found = edgeq("targets", "check", "linux-x64", "--model", tmp_path / "model.npy")
    assert found.code == 3
